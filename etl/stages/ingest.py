"""Files to pairs. Reads tar shards and metadata parquet. Writes pairs, and inputs: the ledger of files.

One pass per shard in a Python worker: tar index, sniffed format, decode check, size, sha256, perceptual hash. Of two
rows with one uid that of the earlier chunk stays, then that of the smaller (shard, offset); `inputs` counts the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import Any

import pandas as pd
import pyarrow as pa
import pydantic
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from etl.arrow import batch_of, count_from, schema_of
from etl.shards import ShardSummary, list_shards, scan
from etl.stage import Read, Stage, StageConfig, for_join, tasks
from etl.stages.metadata import scan_captions, scan_metadata
from etl.storage import with_storage
from etl.tables import INPUTS, PAIRS

ROW = """uid string, url string, text string, source string, shard string, offset_bytes bigint, size_bytes bigint,
sha256 string, phash bigint, image_format string, width_px int, height_px int, status string, status_reason string"""
COLUMNS = [part.split()[0] for part in ROW.split(",")]
SCANNED = f"uri string, number bigint, is_file boolean, {ROW}"
SCHEMA = schema_of(SCANNED)
BATCH_ROWS = 10_000
NOT_PAIRS = ("duplicate_uid", "missing_partner")
"""Samples that `inputs` counts and that make no row in `pairs`."""


class Config(StageConfig):
    max_pixels: int = pydantic.Field(default=89_478_485, gt=0)
    """Images with more pixels than this get `too_many_pixels` (Pillow's own limit)."""
    max_member_bytes: int = pydantic.Field(default=64 << 20, gt=0)
    """Members larger than this are not read."""
    columns: dict[str, str] = pydantic.Field(default={})
    """Column of a metadata parquet -> uid, url, text, sha256, width_px or height_px, where its name is not known."""
    chunk_rows: int = pydantic.Field(default=50, gt=0, exclude=True)
    """Files per commit."""
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks per chunk; None: spark.sql.shuffle.partitions."""
    source: str = ""
    """Known to a run only: name of the collection, where a sample does not say."""
    shards_root: str = pydantic.Field(default="", exclude=True)
    """Known to a run only: what `shard` is relative to."""
    metadata: str | None = pydantic.Field(default=None, exclude=True)
    """Known to a run only: parquet files that give captions to shards, joined by uid."""
    storage: dict[str, dict[str, Any]] = pydantic.Field(default={}, exclude=True)
    """Known to a run only: see `etl/storage.py`."""


def listing(dataset: Any) -> pd.DataFrame:
    """The files of a dataset. Shards come before metadata: a pair with pixels is never taken for one without."""
    rows: list[tuple[Any, ...]] = []
    for order, pattern in enumerate((dataset.shards, dataset.metadata)):
        files = list_shards(pattern) if pattern else []
        rows += [(file.uri, file.size_bytes, file.etag, f"{order} {file.uri}") for file in files]
    return pd.DataFrame(rows, columns=["uri", "size_bytes", "etag", "chunk_group"])


def scanner(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Files to rows of SCANNED: one per sample, and one per file with status and reason of the file."""

    def scan_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for uri in (uri for batch in batches for uri in batch.column("uri").to_pylist()):
            number = 0
            for item in _scan(uri, config):
                if isinstance(item, ShardSummary):
                    known = {"status": item.status, "status_reason": item.status_reason, "is_file": True}
                    yield batch_of(SCHEMA, 1, uri=uri, **known)
                    continue
                known = {"is_file": False, **{name: item.column(name) for name in item.schema.names}}
                yield batch_of(SCHEMA, len(item), uri=uri, number=count_from(number, len(item)), **known)
                number += len(item)

    return with_storage(scan_files, config.storage)


def _scan(uri: str, config: Config) -> Iterator[pa.RecordBatch | ShardSummary]:
    """Batches of some of the columns of `pairs`, in the file's order, and last the line on the file."""
    if uri.endswith(".parquet"):
        yield from scan_metadata(uri, columns=config.columns, source_default=config.source)
        return
    samples = scan(
        uri, max_pixels=config.max_pixels, max_member_bytes=config.max_member_bytes, source_default=config.source
    )
    for is_file, items in groupby(samples, key=lambda item: isinstance(item, ShardSummary)):
        while rows := list(islice(items, BATCH_ROWS)):
            yield from rows if is_file else (pa.RecordBatch.from_pylist(rows, schema_of(ROW)),)


def transform(files: DataFrame, known: DataFrame, *, config: Config) -> tuple[DataFrame, DataFrame]:
    spread = files.repartition(tasks(config.num_tasks, files))
    # Python: the JVM has no decoder that we trust, and pixels must not enter it.
    scanned = spread.mapInArrow(scanner(config), SCANNED).localCheckpoint()
    samples = scanned.where("NOT is_file").drop("is_file")
    if config.metadata and config.shards_root:
        samples = with_captions(samples, config).localCheckpoint()
    samples = samples.withColumn("shard", F.expr(f"substring(shard, {len(config.shards_root) + 2})"))
    samples = marked(samples, known)
    pairs = samples.where(~F.col("status").isin(*NOT_PAIRS) & ~F.col("is_written")).select(*COLUMNS)
    counts = (
        samples.groupBy("uri", "status")
        .agg(F.count(F.lit(1)).alias("n"))
        .groupBy("uri")
        .agg(
            F.map_from_entries(F.collect_list(F.struct("status", "n"))).alias("num_by_status"),
            F.sum("n").alias("num_members"),
        )
    )
    ledger = scanned.where("is_file").select("uri", "status", "status_reason").join(counts, on="uri", how="left")
    inputs = files.join(ledger, on="uri", how="inner").select(
        "uri", "size_bytes", "etag", "status", "status_reason",
        F.coalesce("num_members", F.lit(0)).alias("num_members"),
        F.coalesce("num_by_status", F.expr("map()").cast("map<string,bigint>")).alias("num_by_status"),
        F.current_timestamp().alias("ingested_at"),
    )  # fmt: skip
    return pairs, inputs


def marked(samples: DataFrame, known: DataFrame) -> DataFrame:
    """`samples` (uri, number, uid, shard, offset_bytes, status and more) with status duplicate_uid on all but the first
    row of a uid, here and among the pairs known before.

    `is_written`: the pair is known because a killed run wrote this very row, and not yet its file in the ledger. It
    counts as what it is, and is not written again. (A row without a place is only known as a duplicate.) Captions and
    URLs are not shuffled: only keys are, and what is found of them is joined.
    """
    before = known.select(
        "uid", F.col("shard").alias("known_shard"), F.col("offset_bytes").alias("known_offset"),
        F.lit(True).alias("is_known"),
    )  # fmt: skip
    is_sample = F.col("status") != "missing_partner"
    order = Window.partitionBy("uid", "is_sample").orderBy(
        F.col("shard").asc_nulls_last(), "offset_bytes", "uri", "number"
    )
    keys = samples.select("uri", "number", "uid", "shard", "offset_bytes", is_sample.alias("is_sample"))
    ranked = keys.withColumn("place", F.row_number().over(order)).join(before, on="uid", how="left")
    is_itself = (F.col("known_shard") == F.col("shard")) & (F.col("known_offset") == F.col("offset_bytes"))
    is_written = F.coalesce(is_itself, F.lit(False))
    is_later = (F.col("place") > 1) | (F.col("is_known").isNotNull() & ~is_written)
    marks = ranked.select(
        "uri", "number", (F.col("is_sample") & is_later).alias("is_later"), is_written.alias("is_written")
    )
    # Before the pairs are written: what reads `known` after that would find each row to be its own duplicate.
    marks = for_join(marks.where("is_later OR is_written"))
    found = samples.join(marks, on=["uri", "number"], how="left")
    status = F.when(F.col("is_later"), "duplicate_uid").otherwise(F.col("status"))
    return found.select(
        *[c for c in samples.columns if c != "status"], status.alias("status"),
        F.coalesce("is_written", F.lit(False)).alias("is_written"),
    )  # fmt: skip


def with_captions(samples: DataFrame, config: Config) -> DataFrame:
    """Captions and URLs that the shards lack, from the metadata, by uid. A caption that is not UTF-8 stays NULL."""
    joined = samples.join(captions(samples.sparkSession, config), on="uid", how="left")
    has_caption = (F.col("status") == "missing_text") & F.col("given_text").isNotNull()
    is_invalid = F.col("status") == "invalid_text"
    return joined.select(
        "uri", "number", *[c for c in COLUMNS if c not in ("text", "url", "status", "status_reason")],
        F.when(~is_invalid, F.coalesce("text", "given_text")).alias("text"),
        F.coalesce("url", "given_url").alias("url"),
        F.when(has_caption, "ok").otherwise(F.col("status")).alias("status"),
        F.when(has_caption, None).otherwise(F.col("status_reason")).alias("status_reason"),
    )  # fmt: skip


def captions(spark: SparkSession, config: Config) -> DataFrame:
    """(uid, given_text, given_url) of the metadata that can be read: of two rows with one uid the first."""
    files = spark.createDataFrame([(file.uri,) for file in list_shards(config.metadata or "")], "uri string")
    row = "uid string, given_text string, given_url string, uri string, number bigint"
    schema = schema_of(row)

    def scan_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for uri in (uri for batch in batches for uri in batch.column("uri").to_pylist()):
            number = 0
            for found in scan_captions(uri, columns=config.columns):
                known = {name: found.column(name) for name in found.schema.names}
                yield batch_of(schema, len(found), uri=uri, number=count_from(number, len(found)), **known)
                number += len(found)

    # Python: Spark's own reader fails on the first bad file of many.
    scanned = files.repartition(tasks(config.num_tasks, files)).mapInArrow(
        with_storage(scan_files, config.storage), row
    )
    given = F.min_by(F.struct("given_text", "given_url"), F.struct("uri", "number")).alias("given")
    return scanned.groupBy(F.lower("uid").alias("uid")).agg(given).select("uid", "given.*")


STAGE = Stage(
    "ingest", reads={"known": Read(PAIRS)}, writes=(PAIRS, INPUTS), config=Config, transform=transform, resume="rows",
    version=2, kinds=("pool", "filter", "dev", "eval"), listing=listing,
)  # fmt: skip
