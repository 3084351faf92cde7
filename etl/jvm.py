"""What the JVM of a local session loads: Delta's jars, fetched once, and an archive of the classes, written once.

Touches the cache (jars) and the Python environment's share/ (the archive). `python -m etl.jvm` makes both.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import filelock
import pyspark

from etl.cache import cache_folder, made
from etl.stage import UserError, digest

JARS_4_0 = {
    "io.delta_delta-spark_2.13-4.0.0.jar": "538511702aae0ef6973a6a70af3d4543c9009f8edbed786a00737e2d3cd7f04e",
    "io.delta_delta-storage-4.0.0.jar": "9bdb9fb450f1e119eba53feb427f331b0d09072d26485b8273883ad72c9a2e1d",
}
JARS_4_2 = {
    "io.delta_delta-kernel-api-4.4.0.jar": "ee9b5a14ac3b7efdff4d61a58478fe8eb0e5a3fbca43889dca7290795fe79a11",
    "io.delta_delta-kernel-defaults-4.4.0.jar": "225c975199e4718b38ee5b7e6da7f19e9585024262b2cec2656b32151a856b0b",
    "io.delta_delta-kernel-unitycatalog-4.4.0.jar": "cea22dfb4ac562b3cd27bf652697750e8336009d73fb06631363aaaad5345ffa",
    "io.delta_delta-spark_4.2_2.13-4.4.0.jar": "27d4fd8b1f879535c573ed1c718177d6a27f24d3e626ba02e216369725721ead",
    "io.delta_delta-storage-4.4.0.jar": "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc",
    "io.unitycatalog_unitycatalog-client-0.6.0.jar": "48257499a86b801a3e2372cec55ac226ca1c1c7eabe5c118e7302f29a1fdbc19",
    "io.unitycatalog_unitycatalog-hadoop-0.6.0.jar": "c47b63c961c87102b9e1d63809a0915ba4c86b7652f57c8d39ca3a05b441a150",
}
DELTAS = {
    "4.0": ("io.delta:delta-spark_2.13:4.0.0", JARS_4_0),
    "4.2": ("io.delta:delta-spark_4.2_2.13:4.4.0", JARS_4_2),
}
"""Spark of local sessions -> Delta's package, and what that brings, less SPARK_HAS: name -> sha256, since Ivy itself
trusts what the repository says of a file. On a cluster, on Databricks and under spark-submit Delta is theirs."""
SPARK_HAS = (
    "org.apache.hadoop:hadoop-client-api", "org.apache.hadoop:hadoop-client-runtime",
    "org.apache.parquet:parquet-hadoop", "org.apache.parquet:parquet-column", "org.apache.parquet:parquet-common",
    "org.apache.logging.log4j:log4j-api", "org.apache.logging.log4j:log4j-core",
    "org.apache.logging.log4j:log4j-slf4j2-impl", "org.slf4j:slf4j-api",
    "com.fasterxml.jackson.core:jackson-core", "com.fasterxml.jackson.core:jackson-databind",
    "com.fasterxml.jackson.core:jackson-annotations", "com.fasterxml.jackson.datatype:jackson-datatype-jdk8",
    "org.antlr:antlr4-runtime", "org.scala-lang:scala-library", "com.google.code.findbugs:jsr305",
    "org.roaringbitmap:RoaringBitmap", "org.roaringbitmap:shims",
)  # fmt: skip
"""What Delta names and Spark ships: leaving it out makes 13 MB of 87, and keeps one version on the class path."""
QUIET = "-Xlog:cds=off -Xlog:cds+dynamic=off -Xlog:class+path=off"
"""An archive that does not fit (another heap, another class path) is left alone, without a word."""
EXIT_SECONDS = 120
"""For a JVM to write its archive."""


def delta() -> tuple[str, dict[str, str]]:
    """Delta's package for this Spark, and its jars: name -> sha256. Raises UserError for a Spark that is not tried."""
    version = pyspark.__version__
    if found := DELTAS.get(".".join(version.split(".")[:2])):
        return found
    raise UserError(
        f"wanted pyspark {' or '.join(DELTAS)}, whose Delta is known here; found {version}; "
        f"fix: pip install 'pyspark=={max(DELTAS)}.*', or spark-submit with the --jars of your own Delta"
    )


def delta_jars(cache: Path | None = None) -> list[Path]:
    """Delta's jars, fetched once by Spark's own Ivy: resolving them at each start would take 15 to 30 s.

    Raises UserError for a Spark that is not tried.
    """
    folder = (cache or cache_folder()) / "jars" / delta()[0].replace(":", "-")
    if not folder.is_dir():
        with filelock.FileLock(f"{made(folder.parent)}/jars.lock"):
            if not folder.is_dir():
                _fetch_jars(folder)
    return sorted(folder.glob("*.jar"))


def _fetch_jars(folder: Path) -> None:
    ivy = made(folder.parent / f"ivy-{os.getpid()}")
    code = "from pyspark.sql import SparkSession; SparkSession.builder.getOrCreate().stop()"
    conf = {
        "spark.jars.packages": delta()[0],
        "spark.jars.excludes": ",".join(SPARK_HAS),
        "spark.jars.ivy": str(ivy),
        "spark.ui.enabled": "false",
    }
    arguments = " ".join(f"--conf {name}={value}" for name, value in conf.items())
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": f"--master local[1] {arguments} pyspark-shell"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    found = list(ivy.glob("jars/*.jar"))
    if done.returncode or not found:
        raise UserError(f"wanted the jars of {delta()[0]} from Maven; found: {done.stderr[-800:]}; fix: check network")
    check_jars(found)
    staging = made(folder.with_suffix(f".{os.getpid()}"))
    for jar in found:
        shutil.move(jar, staging / jar.name)
    staging.rename(folder)
    shutil.rmtree(ivy)


def check_jars(paths: Iterable[Path]) -> None:
    """Raises UserError unless these are the jars of `delta`, byte for byte."""
    package, wanted = delta()
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    if wrong := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        told = ", ".join(f"{name} of sha256 {found[name]}" if name in found else f"no {name}" for name in wrong)
        raise UserError(f"wanted the jars of {package} as etl/jvm.py has them; found {told}; fix: ask who serves them")


def class_archive() -> Path:
    """Where the classes of Spark and Delta that a session loads are kept, parsed and verified, for this environment and
    this Java: some 18,000, whose loading is half of what a short run takes. It need not be there."""
    java = Path(os.environ.get("JAVA_HOME") or Path(shutil.which("java") or "java").resolve().parent.parent)
    release, jars = java / "release", Path(pyspark.__file__).parent / "jars"
    told = release.read_text() if release.exists() else str(java)
    key = digest(told, str(jars), jars.stat().st_mtime_ns, [str(jar) for jar in delta_jars()])
    return Path(sys.prefix) / "share" / "dfn-etl" / f"classes-{key[:12]}.jsa"


def archive_options() -> str:
    """For the JVM of a session: with the archive where there is one."""
    archive = class_archive()
    return f'"-XX:SharedArchiveFile={archive}" {QUIET}' if archive.exists() else ""  # quoted: a folder may have spaces


def make_class_archive() -> bool:
    """Made by a run like others (java -XX:ArchiveClassesAtExit, JDK 13 and newer). False: this Java cannot."""
    archive = class_archive()
    with filelock.FileLock(f"{made(archive.parent)}/classes.lock"):
        if archive.exists():
            return True
        staging = archive.with_suffix(f".{os.getpid()}")
        code = f"from etl import jvm; jvm.rehearse({str(staging)!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode or not staging.exists():
            return False
        for old in archive.parent.glob("classes-*.jsa"):
            old.unlink()
        staging.rename(archive)
    return True


def rehearse(staging: str) -> None:
    """What every run does (a table made, written, read, joined, a Python function), for its classes; waits for the JVM
    to end, which is when it writes `staging`."""
    import psutil  # type: ignore[import-untyped]
    from pyspark.sql import functions as F

    from etl.session import LOCAL_JAVA, session
    from etl.stage import series_udf
    from etl.store import Store
    from etl.tables import PAIRS, SCORES

    java = f'{LOCAL_JAVA} {QUIET} "-XX:ArchiveClassesAtExit={staging}"'
    spark = session("classes", conf={"spark.driver.extraJavaOptions": java})
    jvms = [process for process in psutil.Process().children(recursive=True) if process.name() == "java"]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(spark, folder)
        for table in (PAIRS, SCORES):
            store.create("pool", table)
            store.append_once(store.rows("pool", table, []), "pool", table, content="one", note={"slice": {}})
        pairs, scores = (store.read("pool", table) for table in (PAIRS, SCORES))
        same = series_udf(lambda batches: batches, "string")  # Python: for the classes that speak with it
        joined = pairs.join(scores.select("uid", "score"), on="uid", how="left").withColumn("same", same("text"))
        joined.groupBy("source").agg(F.count("same"), F.max("score")).orderBy("source").collect()
        store.replace(pairs, "pool", PAIRS, where={}, note={"slice": {}})
    spark.stop()
    for process in jvms:
        process.terminate()  # it writes the archive on its way out
    psutil.wait_procs(jvms, timeout=EXIT_SECONDS)


if __name__ == "__main__":
    started = time.monotonic()
    sys.stdout.write(f"Delta's jars: {delta_jars()[0].parent}\n")
    made_it = make_class_archive()
    kept = f"kept in {class_archive()}" if made_it else "not kept: this Java writes no archive of them"
    sys.stdout.write(f"Spark's classes: {kept} ({time.monotonic() - started:.0f} s)\n")
