"""Part `select`: the exact top 15 % of many scores. `make bench PART=select`; --large adds a billion rows.

Rows (CPU seconds of the whole process tree, ours / theirs; the session is started before):

    select_vs_duckdb_20m        the cut of `etl/selection/cut.py` and the rows above it written: against duckdb's exact
                                ORDER BY score DESC, uid LIMIT, written too
    select_vs_known_cut         against writing the rows above a cut that is known: what finding it adds
    select_vs_spark_orderby     how many times as long Spark's own orderBy.limit takes to find the same cut; nothing is
                                written by either
    select_written_vs_spark_orderby    the same with the rows above it written
    select_100m_vs_20m          five times the rows
    select_1b_vs_100m           ten times, with --large; both as zstd, half the disk
    driver_memory_100m_vs_20m   the most that lives at once in the driver's JVM and its Python, while it selects

All sides read the same parquet files (uid, score), and write what they keep where nothing else is said; both must keep
the same uids.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import duckdb
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.selection.cut import find_cut
from tests.bench import ours
from tests.bench.measure import OUT, Rates, Ratio, Side, compare, interleaved, peak, report, resident, say

FRACTION = 0.15
SECONDS = "CPU seconds"


def scores(spark: SparkSession, num_rows: int, codec: str = "snappy") -> Path:
    """Parquet of (uid, score): a normal distribution in float32, in which many scores are equal. Made once."""
    out = OUT / "data" / (f"scores-{num_rows}" if codec == "snappy" else f"scores-{num_rows}-{codec}")
    if not (out / "_SUCCESS").exists():
        say(f"making {num_rows:,} scores")
        ids = spark.range(0, num_rows, 1, max(2, num_rows // 5_000_000))
        # Twelve uniform numbers of one hash: their sum is normal enough, and the same on every machine.
        parts = [F.pmod(F.xxhash64("id", F.lit(n)), F.lit(1 << 20)) for n in range(12)]
        score = (sum(parts[1:], parts[0]) / float(1 << 20) - 6.0).cast("float")
        ids.select(F.md5(F.col("id").cast("string")).alias("uid"), score.alias("score")).write.mode(
            "overwrite"
        ).parquet(str(out), compression=codec)
    return out


def cut_of(rows: DataFrame, num_rows: int) -> tuple[float, str]:
    """(score, uid) of the last row kept."""
    return find_cut(rows.select("uid", F.col("score").cast("double").alias("rank")), int(FRACTION * num_rows))


def by_cut(spark: SparkSession, source: Path, num_rows: int, codec: str = "snappy") -> Side:
    def run() -> float:
        rows = spark.read.parquet(str(source))
        rank, uid = cut_of(rows, num_rows)
        is_kept = (F.col("score") > rank) | ((F.col("score") == rank) & (F.col("uid") <= uid))
        rows.where(is_kept).write.mode("overwrite").parquet(str(_out("cut")), compression=codec)
        return 1.0

    return run


def by_known_cut(spark: SparkSession, source: Path, kept: Path) -> Side:
    """The rows above the lowest score of `kept`, with nothing looked for: the least that any way has to do in Spark."""
    cut = spark.read.parquet(str(kept)).agg(F.min("score")).collect()[0][0]

    def run() -> float:
        rows = spark.read.parquet(str(source)).where(F.col("score") >= F.lit(cut).cast("float"))
        rows.write.mode("overwrite").parquet(str(_out("known")))
        return 1.0

    return run


def by_spark(spark: SparkSession, source: Path, num_rows: int) -> Side:
    def run() -> float:
        ordered = spark.read.parquet(str(source)).orderBy(F.col("score").desc(), "uid")
        ordered.limit(int(FRACTION * num_rows)).write.mode("overwrite").parquet(str(_out("spark")))
        return 1.0

    return run


def finding(spark: SparkSession, source: Path, num_rows: int) -> dict[str, Side]:
    """The cut alone, by us and by Spark. Raises AssertionError where they differ."""
    rows, found = spark.read.parquet(str(source)), set()

    def ours() -> float:
        found.add(cut_of(rows, num_rows))
        assert len(found) == 1, found
        return 1.0

    def theirs() -> float:
        kept = rows.orderBy(F.col("score").desc(), "uid").limit(int(FRACTION * num_rows))
        last = kept.agg(F.max(F.struct(-F.col("score").cast("double"), "uid"))).collect()[0][0]
        found.add((-last[0], last[1]))
        assert len(found) == 1, found
        return 1.0

    return {"cut": ours, "spark": theirs}


def by_duckdb(source: Path, num_rows: int) -> Side:
    def run() -> float:
        with duckdb.connect(config={"threads": 2}) as database:
            database.execute(
                f"COPY (SELECT uid, score FROM read_parquet('{source}/*.parquet') ORDER BY score DESC, uid "
                f"LIMIT {int(FRACTION * num_rows)}) TO '{_out('duckdb.parquet')}' (FORMAT parquet)"
            )
        return 1.0

    return run


def _out(name: str) -> Path:
    return OUT / "data" / f"kept-{name}"


def live_memory(spark: SparkSession, side: Side) -> float:
    """MB: the largest sum of what a collection leaves in the JVM's heap (two tasks' buffers are there too) and Python's
    resident memory. Garbage fills whatever heap there is, and says nothing."""
    lang = spark._jvm.java.lang

    def alive() -> float:
        lang.System.gc()
        heap = lang.management.ManagementFactory.getMemoryMXBean().getHeapMemoryUsage().getUsed()
        return float(heap / 1e6 + resident("self"))

    return peak(alive, side, 0.5)


def same_uids(spark: SparkSession, num_rows: int) -> str:
    """That both sides kept the same, in words. Raises AssertionError."""
    sums = [_sum(spark.read.parquet(str(_out(name)))) for name in ("cut", "duckdb.parquet")]
    assert sums[0] == sums[1], f"the sides kept other uids: {sums}"
    return f"both keep the same {sums[0][0]:,} of {num_rows:,}"


def _sum(kept: DataFrame) -> tuple[int, int]:
    row = kept.agg(F.count(F.lit(1)), F.sum(F.xxhash64("uid").cast("decimal(30,0)"))).first()
    return (int(row[0]), int(row[1])) if row else (0, 0)


def seconds(rates: Rates) -> Rates:
    return [1 / rate for rate in rates]


def rows(spark: SparkSession, first: int, larger: int, repetitions: int) -> list[Ratio]:
    source = scores(spark, first)
    sides = {"cut": by_cut(spark, source, first), "duckdb": by_duckdb(source, first)}
    rates, _ = interleaved(sides, repetitions=repetitions)
    found = {name: seconds(values) for name, values in rates.items()}
    note = same_uids(spark, first)
    made = [compare("select_vs_duckdb_20m", found["cut"], found["duckdb"], SECONDS, "<= 3", note)]
    known, _ = interleaved({"known": by_known_cut(spark, source, _out("cut"))}, repetitions=repetitions)
    made.append(compare("select_vs_known_cut", found["cut"], seconds(known["known"]), SECONDS))
    alone, _ = interleaved(finding(spark, source, first), repetitions=repetitions)
    both = [seconds(alone[side]) for side in ("spark", "cut")]
    made.append(compare("select_vs_spark_orderby", *both, SECONDS, ">= 10", "theirs / ours"))
    ordered, _ = interleaved({"spark": by_spark(spark, source, first)}, repetitions=1)
    theirs = seconds(ordered["spark"])
    row = ("select_written_vs_spark_orderby", theirs, found["cut"][:1], SECONDS, "-", "theirs / ours, one turn")
    made.append(compare(*row))
    memory = live_memory(spark, sides["cut"])
    side = by_cut(spark, scores(spark, larger), larger)
    rates, _ = interleaved({"cut": side}, repetitions=min(2, repetitions))
    five_times = seconds(rates["cut"])
    made.append(compare("select_100m_vs_20m", five_times, found["cut"][: len(five_times)], SECONDS, "<= 5.5"))
    most = live_memory(spark, side)
    return [*made, compare("driver_memory_100m_vs_20m", [most], [memory], "MB", "<= 1.3")]


def large_row(spark: SparkSession, small: int, large: int) -> Ratio:
    """One turn each, of which the small one is the second."""
    taken = []
    for size in (small, large):
        side = by_cut(spark, scores(spark, size, "zstd"), size, "zstd")
        rates, _ = interleaved({"cut": side}, repetitions=1, warm_up=size == small)
        taken.append(seconds(rates["cut"]))
    return compare("select_1b_vs_100m", taken[1], taken[0], SECONDS, "<= 12")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.select", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows: to see that all runs")
    parser.add_argument("--large", action="store_true", help="a billion rows too: 26 GB of disk, 40 minutes")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="for other parts; nothing here uses one"
    )
    given = parser.parse_args()
    spark = ours.spark_session("local[2]")
    part = 100 if given.quick else 1
    made = rows(spark, 20_000_000 // part, 100_000_000 // part, 2 if given.quick else 3)
    if given.large:
        made.append(large_row(spark, 10**8 // part, 10**9 // part))
    for name in ("cut", "known", "spark"):
        shutil.rmtree(_out(name), ignore_errors=True)
    report("select-quick" if given.quick else "select", made)


if __name__ == "__main__":
    main()
