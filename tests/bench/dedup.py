"""Part `dedup`: near-duplicate captions and images, at scale. `make bench PART=dedup`; --quick: a twentieth or less.

Rows (of the whole process tree; the session is started before):

    minhash_kernel_vs_datasketch  band keys of 128 hashes over 5-byte shingles, captions / CPU s: against MinHash.bulk
    minhash_vs_datasketch         a million captions under Spark, from parquet to band keys and sketches sorted into
                                  parts, handed back to the JVM: against MinHash.bulk on texts in memory
    minhash_groups_vs_datasketch  from parquet to written groups, under Spark: against datasketch's MinHash.bulk,
                                  MinHashLSH at its own settings, and groups in one process
    phash_over_decode             CPU seconds of ingest under Spark, shards to written pairs, with the perceptual hash /
                                  without
    phash_over_scan               the same of scanning the shards in one process: reading, sha256, decoding
    dedup_10m_vs_1m               CPU seconds of the rungs sha256 and phash over synthetic hashes: 30 % of the rows in
    dedup_50m_vs_10m              groups, whose sizes fall as a power; half of them a bit away from the others
    dedup_update_vs_anew          CPU seconds of holding a hundredth of those rows against the others / of all anew;
                                  both must give the same rows
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import models.phash
from etl.dedup.groups import with_id
from etl.dedup.near import caption_entries
from etl.shards import scan
from etl.stage import content_hash, fold_hash
from etl.stages import dedup, ingest
from models import minhash
from tests.bench import data, ours
from tests.bench.measure import OUT, MissingError, Rates, Ratio, Side, against, compare, interleaved, report, say

MIN_JACCARD = 0.8
ROWS_PER_PARTITION = 2_000_000
PHOTO_TURNS = 8
"""What is told apart is a twentieth; the JVM's turns get faster for a minute."""
PEER_CAPTIONS = 100_000
"""Of which datasketch's rate is taken, with more it falls a little: its tables grow out of the caches."""


@dataclass(frozen=True)
class Size:
    captions: int
    photos: int
    hashes: tuple[int, ...]
    repetitions: int


WHOLE = Size(1_000_000, 6_000, (1_000_000, 10_000_000, 50_000_000), 3)
QUICK = Size(50_000, 200, (50_000, 500_000), 1)
SCALES = ("dedup_10m_vs_1m", "<= 12"), ("dedup_50m_vs_10m", "<= 6")


def captions(number: int) -> Path:
    """Parquet of (uid, status, text): composed captions, a fifth of them another one with a word changed. Made once."""
    path = OUT / "data" / f"captions-{number}.parquet"
    if not path.exists():
        say(f"making {number:,} captions")
        draw, texts = random.Random(1), data.composed_captions(number)
        for n in draw.sample(range(1, number), number // 5):
            words = texts[draw.randrange(n)].split()
            words[draw.randrange(len(words))] = str(draw.randrange(100))
            texts[n] = " ".join(words)
        uids = [f"{draw.getrandbits(128):032x}" for _ in texts]
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"uid": uids, "status": pa.array(["ok"] * number), "text": texts})
        pq.write_table(table, path, row_group_size=100_000)
    return path


def caption_rows(spark: SparkSession, size: Size) -> list[Ratio]:
    path = captions(size.captions)
    texts = pq.read_table(path, columns=["text"]).column("text").combine_chunks()
    bands, few = minhash.banding(MIN_JACCARD), texts.to_pylist()[: min(PEER_CAPTIONS, size.captions)]

    def kernel() -> float:
        minhash.band_keys(texts, bands)
        return float(len(texts))

    def peer_kernel() -> float:
        _peer().MinHash.bulk([shingles(text) for text in few[:5_000]], num_perm=minhash.NUM_HASHES)
        return float(len(few[:5_000]))

    def keys() -> float:
        rows = dedup.rows_of(spark.read.parquet(str(path)), "minhash").withColumnRenamed("uid", "rep")
        caption_entries(with_id(rows, is_new=True), MIN_JACCARD, 1).write.mode("overwrite").format("noop").save()
        return float(size.captions)

    def whole() -> float:
        found = dedup.transform(spark.read.parquet(str(path)), config=dedup.Config(methods=("minhash",)))
        found.write.mode("overwrite").parquet(str(_out("captions")))
        return float(size.captions)

    unit = "captions / CPU s"
    rates, missing = interleaved({"ours": kernel, "datasketch": peer_kernel}, repetitions=max(size.repetitions, 3))
    row = ("minhash_kernel_vs_datasketch", unit, ">= 100")
    made = [against(rates, missing, "ours", "datasketch", row, f"{bands.num_bands} bands of {bands.num_rows}")]
    rates, missing = interleaved({"ours": keys, "datasketch": peer_kernel}, repetitions=max(size.repetitions, 3))
    made.append(against(rates, missing, "ours", "datasketch", ("minhash_vs_datasketch", unit, ">= 20")))
    rates, missing = interleaved({"ours": whole, "datasketch": lambda: peer(few)}, repetitions=size.repetitions)
    found = spark.read.parquet(str(_out("captions"))).count()
    note = f"{found:,} of {size.captions:,} in groups; datasketch on {len(few):,}"
    row = ("minhash_groups_vs_datasketch", unit, "-")
    return [*made, against(rates, missing, "ours", "datasketch", row, note)]


def shingles(text: str) -> list[bytes]:
    """As the kernel has them, but for blanks: composed captions have single ones."""
    whole = text.lower().encode()
    return [whole[n : n + 5] for n in range(max(len(whole) - 4, 1))]


def peer(texts: list[str]) -> float:
    """datasketch as its documentation has it: keys, one index, each caption asked for its like; groups."""
    datasketch = _peer()
    index = datasketch.MinHashLSH(threshold=MIN_JACCARD, num_perm=minhash.NUM_HASHES)
    hashes = datasketch.MinHash.bulk([shingles(text) for text in texts], num_perm=minhash.NUM_HASHES)
    parents = list(range(len(texts)))

    def root(n: int) -> int:
        while parents[n] != n:
            n = parents[n]
        return n

    for n, one in enumerate(hashes):
        for other in index.query(one):
            if one.jaccard(hashes[other]) >= MIN_JACCARD:
                low, high = sorted((root(n), root(other)))
                parents[high] = low
        index.insert(n, one)
    return float(len(texts))


def _peer():
    try:
        import datasketch
    except ImportError as error:
        raise MissingError(str(error)) from None
    return datasketch


def photo_rows(spark: SparkSession, size: Size) -> list[Ratio]:
    photos = data.build(size.photos)

    def scanned() -> float:
        return float(sum(1 for shard in sorted(photos.folder.glob("*.tar")) for _ in scan(str(shard))))

    def scanned_without() -> float:
        with no_hash():
            return scanned()

    def ingested() -> float:
        for number, rows in enumerate(ours.ingested(spark, photos)):
            rows.write.mode("overwrite").parquet(str(_out(f"ingested-{number}")))
        return float(size.photos)

    def ingested_without() -> float:
        own = ingest.scanner
        ingest.scanner = lambda config: unhashed(own(config))
        try:
            return ingested()
        finally:
            ingest.scanner = own

    made = []
    for name, sides, goal in (
        ("phash_over_decode", (ingested, ingested_without), "<= 1.05"),
        ("phash_over_scan", (scanned, scanned_without), "-"),
    ):
        rates, _ = interleaved(dict(zip(("with", "without"), sides, strict=True)), repetitions=PHOTO_TURNS)
        taken = [[1e3 / rate for rate in rates[side]] for side in ("with", "without")]
        made.append(compare(name, *taken, "CPU ms / image", goal, f"{size.photos:,} JPEGs of 512x384"))
    return made


@contextmanager
def no_hash() -> Iterator[None]:
    """In this process: all pictures get 0."""
    own, models.phash.phash = models.phash.phash, lambda image: 0
    try:
        yield
    finally:
        models.phash.phash = own


def unhashed(scan_files: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]) -> Any:
    """What ingest runs on executors, without perceptual hashes there."""

    def scan_without(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with no_hash():
            yield from scan_files(batches)

    return scan_without


def hashes(spark: SparkSession, number: int) -> Path:
    """Parquet of (uid, status, sha256, phash). Made once."""
    out = OUT / "data" / f"hashes-{number}"
    if not (out / "_SUCCESS").exists():
        say(f"making {number:,} hashes")

        def drawn(salt: int) -> F.Column:
            return F.pmod(F.xxhash64("id", F.lit(salt)), F.lit(1 << 20)) / float(1 << 20)

        # Group g has a share of the rows that falls as g^(-2/3): the first of 10^6 groups 1 %, the last two rows.
        group = F.when(drawn(1) < 0.3, F.floor(F.pow(drawn(2), 3) * (number / 10))).otherwise(-F.col("id") - 1)
        bit = F.when(drawn(3) < 0.5, F.lit(0).cast("bigint")).otherwise(
            F.expr("shiftleft(1L, cast(pmod(xxhash64(id, 4), 64) as int))")
        )
        phash = F.xxhash64(group.cast("bigint")).bitwiseXOR(bit)
        rows = spark.range(0, number, 1, max(2, number // 2_000_000)).select(
            F.md5(F.col("id").cast("string")).alias("uid"), F.lit("ok").alias("status"),
            F.sha2(phash.cast("string"), 256).alias("sha256"), phash.alias("phash"),
        )  # fmt: skip
        rows.write.mode("overwrite").parquet(str(out))
    return out


def scale_rows(spark: SparkSession, size: Size) -> list[Ratio]:
    taken: list[tuple[int, Rates, str]] = []
    for number in size.hashes:
        # As a cluster has more of them than a local session's two: one holds so many rows at once.
        spark.conf.set("spark.sql.shuffle.partitions", max(2, number // ROWS_PER_PARTITION))
        side = _dedup(spark.read.parquet(str(hashes(spark, number))))
        turns = 1 if taken else size.repetitions
        rates, _ = interleaved({f"{number:,} hashes": side}, repetitions=turns, warm_up=not taken)
        seconds = [1 / rate for rate in next(iter(rates.values()))]
        written = spark.read.parquet(str(_out("hashes"))).groupBy("method").count().collect()
        taken.append((number, seconds, ", ".join(f"{row['count']:,} by {row['method']}" for row in sorted(written))))
    return [
        compare(name, now[1][:1], before[1][:1], "CPU seconds", goal, f"{now[0]:,} rows, {now[2]}")
        for (name, goal), before, now in zip(SCALES, taken, taken[1:], strict=False)
    ]


def update_rows(spark: SparkSession, size: Size) -> list[Ratio]:
    number = size.hashes[1]  # of fewer, what is read once for each step is most of it
    spark.conf.set("spark.sql.shuffle.partitions", max(2, number // ROWS_PER_PARTITION))
    rows = spark.read.parquet(str(hashes(spark, number)))
    is_new = F.pmod(F.xxhash64("uid", F.lit(9)), F.lit(100)) == 0
    parts = [{"pairs": rows.where(is_new == came)} for came in (False, True)]
    dedup.transform(**parts[0], config=dedup.Config()).write.mode("overwrite").parquet(str(_out("written")))
    found: dict[str, tuple[int, str]] = {}

    def update() -> float:
        written = spark.read.parquet(str(_out("written")))
        return write("update", dedup.update(*parts, written, config=dedup.Config()))

    def write(name: str, frame: DataFrame) -> float:
        frame.write.mode("overwrite").parquet(str(_out(name)))
        sums = spark.read.parquet(str(_out(name))).agg(F.count("uid"), *content_hash(*frame.columns)).collect()[0]
        found[name] = sums[0], fold_hash(*sums[1:])
        return 1.0

    sides = {"update": update, "anew": lambda: write("anew", dedup.transform(rows, config=dedup.Config()))}
    rates, _ = interleaved(sides, repetitions=1, warm_up=False)
    if found["update"] != found["anew"]:
        raise AssertionError(f"wanted the same rows; found {found}")
    taken = [[1 / rate for rate in rates[name]] for name in sides]
    note = f"{number:,} rows, a hundredth of them new; {found['anew'][0]:,} rows in groups, the same of both"
    return [compare("dedup_update_vs_anew", *taken, "CPU seconds", "-", note)]


def _dedup(rows: DataFrame) -> Side:
    def run() -> float:
        dedup.transform(rows, config=dedup.Config()).write.mode("overwrite").parquet(str(_out("hashes")))
        return 1.0

    return run


def _out(name: str) -> Path:
    return OUT / "data" / f"dedup-{name}"


PARTS: dict[str, Callable[[SparkSession, Size], list[Ratio]]] = {
    "captions": caption_rows,
    "photos": photo_rows,
    "scale": scale_rows,
    "update": update_rows,
}
"""Each gives rows; --only NAME runs one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.dedup", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows or less: to see that all runs")
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="these rows alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for other parts")
    given = parser.parse_args()
    spark = ours.spark_session("local[2]")
    size = QUICK if given.quick else WHOLE
    rows = [row for name, part in PARTS.items() if not given.only or name in given.only for row in part(spark, size)]
    for name in ("captions", "hashes", "written", "update", "anew"):
        shutil.rmtree(_out(name), ignore_errors=True)
    report("dedup-quick" if given.quick or given.only else "dedup", rows)


if __name__ == "__main__":
    main()
