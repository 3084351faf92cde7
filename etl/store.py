"""The only file that speaks Delta: session, create, read at a version, write once, lease, history, optimise.

`python -m etl.store` fetches Delta's jars into the cache and says where they are.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import filelock
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from etl.stage import Slice, Table, UserError, conform, digest, overlap, predicate

DELTA_PACKAGE = "io.delta:delta-spark_4.2_2.13:4.4.0"
SPARK_HAS = (
    "org.apache.hadoop:hadoop-client-api", "org.apache.hadoop:hadoop-client-runtime",
    "org.apache.parquet:parquet-hadoop", "org.apache.parquet:parquet-column", "org.apache.parquet:parquet-common",
    "org.apache.logging.log4j:log4j-api", "org.apache.logging.log4j:log4j-core",
    "org.apache.logging.log4j:log4j-slf4j2-impl", "org.slf4j:slf4j-api",
    "com.fasterxml.jackson.core:jackson-core", "com.fasterxml.jackson.core:jackson-databind",
    "com.fasterxml.jackson.core:jackson-annotations", "com.fasterxml.jackson.datatype:jackson-datatype-jdk8",
    "com.google.code.findbugs:jsr305", "org.roaringbitmap:RoaringBitmap", "org.roaringbitmap:shims",
)  # fmt: skip
"""What Delta names and Spark ships: leaving it out makes 13 MB of 87, and keeps one version on the class path."""
RETENTION = "interval 400 days"
"""Receipts can be replayed as long: Delta's own defaults would forget after 7 and 30 days."""
NO_DATA_CHANGE = {"OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "CREATE TABLE", "ADD CONSTRAINT"}
LOG_CONFIG = Path(__file__).with_name("log4j2.properties").absolute().as_uri()
JIT = "-XX:TieredStopAtLevel=1"
FAST_LOCAL = {
    # Small tables on one machine: one task for the Delta log, two for a shuffle, no UI, cheap JIT.
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    "spark.ui.enabled": "false",
    "spark.driver.extraJavaOptions": f"{JIT} -XX:+UseSerialGC -Dlog4j2.configurationFile={LOG_CONFIG}",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "2g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


def cache_folder() -> Path:
    """Where everything downloaded is kept: $DFN_CACHE, else ~/.cache/dfn-etl."""
    return Path(os.environ.get("DFN_CACHE") or Path.home() / ".cache" / "dfn-etl")


def delta_jars(cache: Path | None = None) -> list[Path]:
    """Delta's jars, fetched once by Spark's own Ivy: resolving them at each start would take 15 to 30 s."""
    folder = (cache or cache_folder()) / "jars" / DELTA_PACKAGE.replace(":", "-")
    if not folder.is_dir():
        with filelock.FileLock(f"{_made(folder.parent)}/jars.lock"):
            if not folder.is_dir():
                _fetch_jars(folder)
    return sorted(folder.glob("*.jar"))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetch_jars(folder: Path) -> None:
    ivy = _made(folder.parent / f"ivy-{os.getpid()}")
    code = "from pyspark.sql import SparkSession; SparkSession.builder.getOrCreate().stop()"
    conf = {
        "spark.jars.packages": DELTA_PACKAGE,
        "spark.jars.excludes": ",".join(SPARK_HAS),
        "spark.jars.ivy": str(ivy),
        "spark.ui.enabled": "false",
    }
    arguments = " ".join(f"--conf {name}={value}" for name, value in conf.items())
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": f"--master local[1] {arguments} pyspark-shell"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    found = list(ivy.glob("jars/*.jar"))
    if done.returncode or not found:
        raise UserError(
            f"wanted the jars of {DELTA_PACKAGE} from Maven; found: {done.stderr[-800:]}; fix: check network"
        )
    staging = _made(folder.with_suffix(f".{os.getpid()}"))
    for jar in found:
        shutil.move(jar, staging / jar.name)
    staging.rename(folder)
    shutil.rmtree(ivy)


def session(name: str = "dfn", *, master: str = "local[2]", conf: Mapping[str, str] | None = None) -> SparkSession:
    """A Spark session that knows Delta. On Databricks and under spark-submit the running one is taken as it is."""
    if active := SparkSession.getActiveSession():
        return active
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.appName(name)
    if remote := os.environ.get("SPARK_REMOTE"):
        return builder.remote(remote).getOrCreate()
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.jars": ",".join(str(jar) for jar in delta_jars()),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        **(FAST_LOCAL if master.startswith("local") else {}),
        **(conf or {}),
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.master(master).getOrCreate()


@dataclass(frozen=True)
class Commit:
    """One version in a table's history, with what this application wrote beside the data."""

    version: int
    operation: str
    note: dict[str, Any]


@dataclass(frozen=True)
class Store:
    """All tables of one project: `root` is a folder or URL, or `catalog:NAME` on Unity Catalog."""

    spark: SparkSession
    root: str
    _histories: dict[str, tuple[str, list[Commit]]] = field(default_factory=dict, compare=False, repr=False)

    def name(self, dataset: str, table: Table) -> str:
        """How SQL names a table: delta.`ROOT/dataset/table`, or catalog.dataset.table."""
        schema = self._schema(dataset, table)
        if self.root.startswith("catalog:"):
            return f"{self.root.removeprefix('catalog:')}.{schema}.{table.name}"
        return f"delta.`{self.root}/{schema}/{table.name}`"

    def _schema(self, dataset: str, table: Table) -> str:
        return "project" if table.is_project_wide else dataset

    def _lease_folder(self) -> Path:
        return Path(self.root) / "_leases" if self._is_local else cache_folder() / "leases" / digest(self.root)[:16]

    @property
    def _is_local(self) -> bool:
        return "://" not in self.root and not self.root.startswith("catalog:")

    def create(self, dataset: str, table: Table) -> None:
        """The table with its columns, checks and retention in one statement: a kill cannot leave one without."""
        properties = {
            "delta.logRetentionDuration": RETENTION,
            "delta.deletedFileRetentionDuration": RETENTION,
            **{f"delta.constraints.{name}": condition for name, condition in table.checks.items()},
        }
        listed = ", ".join(f"'{key}' = '{_sql(value)}'" for key, value in properties.items())
        partitioned = f"PARTITIONED BY ({', '.join(table.sliced_by)})" if table.sliced_by else ""
        self.spark.sql(
            f"CREATE TABLE IF NOT EXISTS {self.name(dataset, table)} ({table.ddl}) USING DELTA {partitioned} "
            f"TBLPROPERTIES ({listed})"
        )

    def exists(self, dataset: str, table: Table) -> bool:
        if self.root.startswith("catalog:"):
            return self.spark.catalog.tableExists(self.name(dataset, table))
        if log := self._log(dataset, table):
            return log.is_dir()
        import fsspec

        files, path = fsspec.url_to_fs(f"{self.root}/{self._schema(dataset, table)}/{table.name}/_delta_log")
        return bool(files.exists(path))

    def history(self, dataset: str, table: Table) -> list[Commit]:
        """All versions that are still known, newest first."""
        log = self._log(dataset, table)
        newest = max((path.name for path in log.glob("*.json")), default="") if log else ""
        if not newest:
            return self._history(dataset, table)
        # Read again only when the log on disk has grown: asked for at every look at every table.
        known = self._histories.get(str(log))
        if known is None or known[0] != newest:
            known = self._histories[str(log)] = (newest, self._history(dataset, table))
        return known[1]

    def _log(self, dataset: str, table: Table) -> Path | None:
        """The table's log on a local disk; None elsewhere."""
        return Path(self.root) / self._schema(dataset, table) / table.name / "_delta_log" if self._is_local else None

    def _history(self, dataset: str, table: Table) -> list[Commit]:
        # Sorted here: the command's own rows come without a Spark job.
        rows = self.spark.sql(f"DESCRIBE HISTORY {self.name(dataset, table)}").collect()
        commits = [Commit(int(r["version"]), r["operation"], _note(r["userMetadata"])) for r in rows]
        return sorted(commits, key=lambda commit: -commit.version)

    def read(self, dataset: str, table: Table, *, version: int | None = None, where: Slice | None = None) -> DataFrame:
        """A table, or a slice of it, at a pinned version."""
        at = "" if version is None else f" VERSION AS OF {version}"
        return self.spark.sql(f"SELECT * FROM {self.name(dataset, table)}{at} WHERE {predicate(where or {})}")

    def rows(self, dataset: str, table: Table, rows: Sequence[Sequence[Any]]) -> DataFrame:
        """A few rows of a table, from Python values in the order of its columns; by Arrow, which needs no Spark job."""
        schema = self.schema(dataset, table)
        arrow = to_arrow_schema(schema, timezone="UTC")
        columns = zip(*rows, strict=True) if rows else ((),) * len(schema.names)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, arrow, strict=True)]
        nullable = pa.schema([field.with_nullable(True) for field in arrow])
        return self.spark.createDataFrame(pa.Table.from_arrays(arrays, schema=nullable))

    def schema(self, dataset: str, table: Table) -> StructType:
        return self.read(dataset, table).schema

    def append_once(self, frame: DataFrame, dataset: str, table: Table, *, content: str, note: dict[str, Any]) -> None:
        """Append rows in one commit, at most once per `content`.

        Delta skips a commit whose (txnAppId, txnVersion) it has seen, whatever its rows: so the id names the content.
        """
        app_id = digest(table.name, note.get("slice"), content)
        self._write(frame, dataset, table, note, "append", {"txnAppId": app_id, "txnVersion": "0"})

    def replace(self, frame: DataFrame, dataset: str, table: Table, *, where: Slice, note: dict[str, Any]) -> None:
        """Replace a slice (or all) of a table in one commit."""
        options = {"replaceWhere": predicate(where)} if where else {}
        self._write(frame, dataset, table, note, "overwrite", options)

    def _write(
        self,
        frame: DataFrame,
        dataset: str,
        table: Table,
        note: dict[str, Any],
        mode: Literal["append", "overwrite"],
        options: dict[str, str],
    ) -> None:
        conformed = conform(frame, self.schema(dataset, table), table)
        writer = conformed.write.format("delta").mode(mode).options(userMetadata=json.dumps(note), **options)
        target = self.name(dataset, table)
        if target.startswith("delta.`"):
            writer.save(target.removeprefix("delta.`").removesuffix("`"))
        else:
            writer.saveAsTable(target)

    def optimise(self, dataset: str, table: Table) -> None:
        """Compact small files. Readers and receipts see no data change."""
        self.spark.sql(f"OPTIMIZE {self.name(dataset, table)}")

    @contextmanager
    def lease(self, dataset: str, table: Table) -> Iterator[None]:
        """Keep a second writer out of a table. The operating system frees a dead holder's lease at once.

        Raises UserError with the holder's host, process and start.
        """
        schema = self._schema(dataset, table)
        stem = _made(self._lease_folder()) / f"{schema}.{table.name}"
        lock = filelock.FileLock(f"{stem}.lock")
        holder = Path(f"{stem}.holder")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            who = holder.read_text() if holder.exists() else "an unknown process"
            raise UserError(
                f"wanted to write {schema}.{table.name}; found it being written by {who}; fix: wait for it or stop it"
            ) from None
        try:
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def data_version(history: list[Commit], where: Slice) -> int:
    """The newest version in which rows of a slice changed; compaction and commits of other slices do not count."""
    changed = (
        c.version for c in history if c.operation not in NO_DATA_CHANGE and overlap(c.note.get("slice", {}), where)
    )
    return max(changed, default=-1)


def _note(text: str | None) -> dict[str, Any]:
    try:
        note = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(note, dict):
        return {}
    note["slice"] = {k: v if isinstance(v, str) else tuple(v) for k, v in note.get("slice", {}).items()}
    return note


def _sql(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


if __name__ == "__main__":
    sys.stdout.write(f"Delta's jars: {delta_jars()[0].parent}\n")
