"""The Spark session: the jars of Delta, fetched once, and settings for runs on one machine. Touches the cache.

`python -m etl.session` fetches the jars and says where they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import filelock
from pyspark.sql import SparkSession

from etl.stage import UserError

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
LOG_CONFIG = Path(__file__).with_name("log4j2.properties").absolute().as_uri()
JIT = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
"""Quick to compile. Its code fills the 48 MB that this JIT reserves within a minute, and then nothing is compiled."""
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
        with filelock.FileLock(f"{made(folder.parent)}/jars.lock"):
            if not folder.is_dir():
                _fetch_jars(folder)
    return sorted(folder.glob("*.jar"))


def made(folder: Path) -> Path:
    """`folder`, made if it was not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetch_jars(folder: Path) -> None:
    ivy = made(folder.parent / f"ivy-{os.getpid()}")
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
    staging = made(folder.with_suffix(f".{os.getpid()}"))
    for jar in found:
        shutil.move(jar, staging / jar.name)
    staging.rename(folder)
    shutil.rmtree(ivy)


def session(name: str = "dfn", *, master: str = "local[2,4]", conf: Mapping[str, str] | None = None) -> SparkSession:
    """A Spark session that knows Delta. On Databricks the running one is taken as it is.

    Under spark-submit the master and Delta's jars are those of its command line; only `conf` goes over its settings.
    """
    if active := SparkSession.getActiveSession():
        return active
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.appName(name)
    if (remote := os.environ.get("SPARK_REMOTE", "")).startswith("sc:"):  # the server has its own jars and settings
        connected = builder.remote(remote).getOrCreate()
        connected.conf.set("spark.sql.session.timeZone", "UTC")
        return connected
    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit has started the JVM that this process talks to
    is_local = master.startswith("local") and not is_submitted
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        **({} if is_submitted else {"spark.jars": ",".join(str(jar) for jar in delta_jars())}),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        **(FAST_LOCAL if is_local else {}),
        **(conf or {}),
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    if is_submitted:
        return builder.getOrCreate()
    return (builder.remote(remote) if remote else builder.master(master)).getOrCreate()


if __name__ == "__main__":
    sys.stdout.write(f"Delta's jars: {delta_jars()[0].parent}\n")
