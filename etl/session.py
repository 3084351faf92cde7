"""The Spark session, and its settings for runs on one machine. Touches the cache, for Delta's jars."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyspark.sql import SparkSession

from etl.jvm import archive_options, delta_jars

LOG_CONFIG = Path(__file__).with_name("log4j2.properties").absolute().as_uri()
JIT = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
"""Quick to compile. Its code fills the 48 MB that this JIT reserves within a minute, and then nothing is compiled."""
LOCAL_JAVA = f"{JIT} -XX:+UseSerialGC -Dlog4j2.configurationFile={LOG_CONFIG}"
FAST_LOCAL = {
    # Small tables on one machine: one task for the Delta log, two for a shuffle, no UI, cheap JIT.
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.shuffle.partitions": "2",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
    "spark.ui.enabled": "false",
    "spark.driver.extraJavaOptions": LOCAL_JAVA,
    # Else each broadcast table, sort and hash map begins with a page of 16 MB, however few its rows: forty broadcast
    # tables that were still referred to held 640 MB of a heap of 2 GB. A row that is larger gets a page of its own.
    "spark.buffer.pageSize": "1m",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "2g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


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
    jars = [] if is_submitted else delta_jars()
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        **({"spark.jars": ",".join(map(str, jars))} if jars and not is_local else {}),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        **({**FAST_LOCAL, **_class_path(jars)} if is_local else {}),
        **(conf or {}),
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    if is_submitted:
        return builder.getOrCreate()
    return (builder.remote(remote) if remote else builder.master(master)).getOrCreate()


def _class_path(jars: Sequence[Path]) -> dict[str, str]:
    """On it: the archive knows no class that Spark would load from `spark.jars`, which it copies too."""
    return {"spark.driver.extraClassPath": ":".join(map(str, jars)),
            "spark.driver.extraJavaOptions": f"{LOCAL_JAVA} {archive_options()}"}  # fmt: skip
