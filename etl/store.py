"""The only file that speaks Delta: create, read at a version, write once, lease, history, optimise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import filelock
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from etl.arrow import in_utc
from etl.cache import cache_folder, made
from etl.history import COMMITS, Commit, clear_unmade, data_version, is_made, refuse_gaps
from etl.lease import held
from etl.log_scrub import has_dead_files, without_values
from etl.stage import Slice, Table, UserError, conform, digest, predicate

RETENTION = "interval 400 days"
"""Receipts can be replayed as long: Delta's own defaults would forget after 7 and 30 days."""
CHECKPOINT_COMMITS = "50"
"""Delta's own 10 is for commits of many files; ours are few."""


@dataclass(frozen=True)
class Store:
    """All tables of one project: `root` is a folder or URL, or `catalog:NAME` on Unity Catalog."""

    spark: SparkSession
    root: str
    _commits: dict[tuple[Path, int], Commit] = field(default_factory=dict, compare=False, repr=False)
    """File of a local log, as it was at a time -> what it says."""

    def name(self, dataset: str, table: Table) -> str:
        """How SQL names a table: delta.`ROOT/dataset/table`, or catalog.dataset.table."""
        schema = self._schema(dataset, table)
        if self.root.startswith("catalog:"):
            return f"{self.root.removeprefix('catalog:')}.{schema}.{table.name}"
        return f"delta.`{self.root}/{schema}/{table.name}`"

    def _schema(self, dataset: str, table: Table) -> str:
        return "project" if table.is_project_wide else dataset

    def _lease_stem(self, dataset: str, table: Table) -> Path:
        folder = Path(self.root) / "_leases" if self._is_local else cache_folder() / "leases" / digest(self.root)[:16]
        return made(folder) / f"{self._schema(dataset, table)}.{table.name}"

    @property
    def _is_local(self) -> bool:
        return "://" not in self.root and not self.root.startswith("catalog:")

    def _alone(self, dataset: str, table: Table) -> AbstractContextManager[Any]:
        """On a local disk, the only one at this table's log; elsewhere Delta decides between those who meet."""
        lock = f"{self._lease_stem(dataset, table)}.append.lock"
        return filelock.FileLock(lock) if self._is_local else nullcontext()

    def create(self, dataset: str, table: Table) -> None:
        """The table with its columns, checks and retention in one statement: a kill cannot leave one without."""
        properties = {
            "delta.logRetentionDuration": RETENTION,
            "delta.deletedFileRetentionDuration": RETENTION,
            "delta.checkpointInterval": CHECKPOINT_COMMITS,
            "delta.dataSkippingNumIndexedCols": "0",  # no query is by a range, and a log keeps what rows no longer have
            **{f"delta.constraints.{name}": condition for name, condition in table.checks.items()},
        }
        listed = ", ".join(f"'{key}' = '{_sql(value)}'" for key, value in properties.items())
        partitioned = f"PARTITIONED BY ({', '.join(table.sliced_by)})" if table.sliced_by else ""
        create = f"CREATE TABLE IF NOT EXISTS {self.name(dataset, table)} ({table.ddl}) USING DELTA {partitioned}"
        with self._alone(dataset, table):  # of two who make one at the same time, Delta refuses one
            if log := self._log(dataset, table):
                clear_unmade(log)
            self.spark.sql(f"{create} TBLPROPERTIES ({listed})")

    def extend(self, dataset: str, table: Table) -> None:
        """Adds the columns that a table of an earlier release lacks; they are NULL in its rows."""
        there, wanted = self.schema(dataset, table).names, StructType.fromDDL(table.ddl)
        new = [f for f in wanted.fields if f.name not in there]  # type: ignore[attr-defined]
        if new:
            comments = {f.name: _sql(f.metadata.get("comment", "")) for f in new}
            columns = [f"{f.name} {f.dataType.simpleString()} COMMENT '{comments[f.name]}'" for f in new]
            self.spark.sql(f"ALTER TABLE {self.name(dataset, table)} ADD COLUMNS ({', '.join(columns)})")

    def exists(self, dataset: str, table: Table) -> bool:
        if self.root.startswith("catalog:"):
            return self.spark.catalog.tableExists(self.name(dataset, table))
        if log := self._log(dataset, table):
            return is_made(log)
        import fsspec

        files, path = fsspec.url_to_fs(f"{self.root}/{self._schema(dataset, table)}/{table.name}/_delta_log")
        return bool(files.exists(path))

    def history(self, dataset: str, table: Table) -> list[Commit]:
        """All versions that are still known, newest first."""
        if log := self._log(dataset, table):
            # Read from the log: asked for at every look at every table, and a Spark command takes as long as a write.
            paths = sorted(log.glob(COMMITS), reverse=True)
            refuse_gaps(log, paths)
            return [self._commit(path) for path in paths]
        # Sorted here: the command's own rows come without a Spark job.
        rows = self.spark.sql(f"DESCRIBE HISTORY {self.name(dataset, table)}").collect()
        told = ((int(r["version"]), r["operation"], r["userMetadata"], r["operationParameters"]) for r in rows)
        commits = [Commit.of(*each) for each in told]
        return sorted(commits, key=lambda commit: -commit.version)

    def _commit(self, path: Path) -> Commit:
        key = path, path.stat().st_mtime_ns  # the time, for a table that was removed and made anew
        if key not in self._commits:
            self._commits[key] = Commit.in_file(path)
        return self._commits[key]

    def _log(self, dataset: str, table: Table) -> Path | None:
        """The table's log on a local disk; None elsewhere."""
        return Path(self.root) / self._schema(dataset, table) / table.name / "_delta_log" if self._is_local else None

    def read(self, dataset: str, table: Table, *, version: int | None = None, where: Slice | None = None) -> DataFrame:
        """A table, or a slice of it, at a pinned version."""
        at = "" if version is None else f" VERSION AS OF {version}"
        return self.spark.sql(f"SELECT * FROM {self.name(dataset, table)}{at} WHERE {predicate(where or {})}")

    def apart(
        self, dataset: str, table: Table, *, since: int, version: int, where: Slice
    ) -> tuple[DataFrame, DataFrame] | None:
        """(rows that version `since` had, rows that came later) of a slice at `version`, read at that version.

        By the names of their files, so that no key is shuffled; by key where files were compacted in between. None
        where rows went or changed in between, or where the log does not reach back as far.
        """
        commits = {c.version: c for c in self.history(dataset, table) if since <= c.version <= version}
        if since > version or len(commits) != version - since + 1:
            return None
        between = [commits[v] for v in range(since + 1, version + 1)]
        if any(c.changes(where) and not c.is_append for c in between):
            return None
        before, now = (self.read(dataset, table, version=v, where=where) for v in (since, version))
        if any(c.operation == "OPTIMIZE" for c in between):
            keys = before.select(*table.key)
            return before, now.join(keys, on=list(table.key), how="left_anti")
        names = [(uri.rpartition("/")[2],) for uri in before.inputFiles()]
        known = F.broadcast(self.spark.createDataFrame(names, "_file string"))
        named = now.withColumn("_file", F.substring_index(F.input_file_name(), "/", -1))
        was, came = (named.join(known, on="_file", how=how).drop("_file") for how in ("left_semi", "left_anti"))
        return was, came

    def rows(self, dataset: str, table: Table, rows: Sequence[Sequence[Any]]) -> DataFrame:
        """A few rows of a table, from Python values in the order of its columns; by Arrow, which needs no Spark job."""
        schema = self.schema(dataset, table)
        arrow = in_utc(schema)
        columns = zip(*rows, strict=True) if rows else ((),) * len(schema.names)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, arrow, strict=True)]
        nullable = pa.schema([field.with_nullable(True) for field in arrow])
        return self.spark.createDataFrame(pa.Table.from_arrays(arrays, schema=nullable))

    def schema(self, dataset: str, table: Table) -> StructType:
        return self.read(dataset, table).schema

    def append_once(self, frame: DataFrame, dataset: str, table: Table, *, content: str, note: dict[str, Any]) -> None:
        """Append rows in one commit, at most once per `content`, whoever else appends at the same time.

        On a local disk a lock and the notes of earlier commits see to that. Elsewhere Delta does, which skips a commit
        whose (txnAppId, txnVersion) it has seen: for that it computes the table's whole state, at twice a write's cost.
        Of two such commits at the same time it lets one through.
        """
        id_ = digest(table.name, note.get("slice"), content)
        if not self._is_local:
            try:
                self._write(frame, dataset, table, note, "append", {"txnAppId": id_, "txnVersion": "0"})
            except Exception as error:  # of another class under Spark Connect
                if "DELTA_CONCURRENT_TRANSACTION" not in str(error):
                    raise
            return
        with self._alone(dataset, table):
            if not any(commit.note.get("once") == id_ for commit in self.history(dataset, table)):
                self._write(frame, dataset, table, {**note, "once": id_}, "append", {})

    def replace(self, frame: DataFrame, dataset: str, table: Table, *, where: Slice, note: dict[str, Any]) -> None:
        """Replace a slice (or all) of a table in one commit."""
        # Committed also where no row comes and none goes, since the note counts.
        if self._is_local:
            self.spark.conf.set("spark.databricks.delta.skipRecordingEmptyCommits", "false")
            known = self.history(dataset, table)
            if known[-1].version == 0 and data_version(known, where) < 0:  # no row can be there: a fifth of the work
                self._write(_within(frame, where), dataset, table, note, "append", {})
                return
            options = {}
        else:  # where settings may not be ours to change, a transaction makes Delta commit
            number = self.history(dataset, table)[0].version + 1
            options = {"txnAppId": "replace", "txnVersion": str(number)}
        if where:
            options["replaceWhere"] = predicate(where)
        self._write(frame, dataset, table, note, "overwrite", options)

    def merge(
        self, frame: DataFrame, dataset: str, table: Table, *, note: dict[str, Any], do: Literal["delete", "update"]
    ) -> None:
        """Rows there with a key of `frame` go, or are as `frame`, which then has all columns, says. One commit."""
        frame.createOrReplaceTempView("_merged")
        keys = " AND ".join(f"t.{column} <=> s.{column}" for column in table.key)
        settings = {
            "spark.databricks.delta.commitInfo.userMetadata": json.dumps(note),
            # Rows go from the files that hold them, and are not only marked.
            "spark.databricks.delta.merge.deletionVectors.persistent": "false",
        }
        with self._set(settings):
            self.spark.sql(
                f"MERGE INTO {self.name(dataset, table)} t USING _merged s ON {keys} "
                f"WHEN MATCHED THEN {'DELETE' if do == 'delete' else 'UPDATE SET *'}"
            )
        self.spark.catalog.dropTempView("_merged")

    def purge(self, dataset: str, table: Table) -> bool:
        """Nothing of what older versions alone hold is left: their files go, and values go from the log.

        Time travel ends there. False where the log is not ours to mend, on an object store or in a catalog: that of an
        older table holds smallest and largest values until `delta.logRetentionDuration` has passed.
        """
        if (log := self._log(dataset, table)) is None or has_dead_files(log):
            with self._set({"spark.databricks.delta.retentionDurationCheck.enabled": "false"}):
                self.spark.sql(f"VACUUM {self.name(dataset, table)} RETAIN 0 HOURS")
        if log:
            without_values(log)
        return log is not None

    @contextmanager
    def _set(self, settings: dict[str, str]) -> Iterator[None]:
        for setting in settings.items():
            self.spark.conf.set(*setting)
        try:
            yield
        finally:
            for key in settings:
                self.spark.conf.unset(key)

    def _write(self, frame: DataFrame, dataset: str, table: Table, note: dict[str, Any],
               mode: Literal["append", "overwrite"], options: dict[str, str]) -> None:  # fmt: skip
        conformed = conform(frame, self.schema(dataset, table), table)
        writer = conformed.write.format("delta").mode(mode).options(userMetadata=json.dumps(note), **options)
        target = self.name(dataset, table)
        if target.startswith("delta.`"):
            writer.save(target.removeprefix("delta.`").removesuffix("`"))
        else:
            writer.saveAsTable(target)

    def drop(self, dataset: str, table: Table) -> None:
        """The table with all that is in it, for good."""
        if self.root.startswith("catalog:"):
            self.spark.sql(f"DROP TABLE IF EXISTS {self.name(dataset, table)}")
            return
        import fsspec

        files, path = fsspec.url_to_fs(f"{self.root}/{self._schema(dataset, table)}/{table.name}")
        files.rm(path, recursive=True)

    def optimise(self, dataset: str, table: Table) -> None:
        """Compact small files. Readers and receipts see no data change."""
        self.spark.sql(f"OPTIMIZE {self.name(dataset, table)}")

    def lease(self, dataset: str, table: Table) -> AbstractContextManager[None]:
        """Keep a second writer out of a table. The operating system frees a dead holder's lease at once.

        Raises UserError with the holder's host and process.
        """
        return held(self._lease_stem(dataset, table))


def _within(frame: DataFrame, where: Slice) -> DataFrame:
    """`frame`, that fails where a row is outside of its slice, as `replaceWhere` does."""
    outside = F.raise_error(F.lit(f"a row does not conform to its slice {predicate(where)}"))
    return frame.where(F.when(F.expr(predicate(where)), True).otherwise(outside)) if where else frame


def pin_table(spark: SparkSession, name: str) -> str:
    """NAME@VERSION of a table that somebody else writes, by path or catalog name. Raises UserError."""
    given, _, version = name.partition("@")
    try:
        newest = spark.sql(f"DESCRIBE HISTORY {_others(given)} LIMIT 1").collect()[0]["version"]
    except Exception as error:  # of another class under Spark Connect
        found = " ".join(str(error).split())[:150]
        raise UserError(f"table:{name}: wanted a Delta table; found {found}; fix: its name") from None
    return f"{given}@{version or newest}"


def read_pinned(spark: SparkSession, pinned: str) -> DataFrame:
    """The rows of NAME@VERSION."""
    name, _, version = pinned.rpartition("@")
    return spark.sql(f"SELECT * FROM {_others(name)} VERSION AS OF {int(version)}")


def _others(name: str) -> str:
    return f"delta.`{name}`" if "/" in name else ".".join(f"`{part}`" for part in name.split("."))


def _sql(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
