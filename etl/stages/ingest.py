"""Files to pairs. Reads tar shards, images elsewhere, metadata lists, tables. Writes pairs, and inputs: the ledger.

One pass per file in a Python worker: tar index, sniffed format, decode check, size, sha256, perceptual hash. Of two
rows with one uid that of the earlier chunk stays, then that of the smaller (shard, offset); `inputs` counts the other.
But a pair that is known by its metadata alone gives way to its sample, when that comes: it is as if both had come at
once, and `is_late` says so. Who reads which kind of file is in `inputs.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pydantic
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from etl.arrow import batch_of, count_from, schema_of
from etl.intake.blocklists import read_blocklists
from etl.intake.lists import Columns
from etl.intake.packing import sweep
from etl.intake.stay_out import StayOut, is_forgotten
from etl.intake.table_lists import GROUP, is_table, list_table, table_rows
from etl.shards import list_shards
from etl.stage import Read, Stage, StageConfig, for_join, tasks
from etl.stages.inputs import COLUMNS, READERS, SCANNED, list_inputs, rows_scanner, scanner
from etl.stages.metadata import scan_captions
from etl.statuses import WAITS
from etl.storage import with_storage
from etl.tables import INPUTS, PAIRS

NOT_PAIRS = ("duplicate_uid", "missing_partner", "forgotten")
"""Samples that `inputs` counts and that make no row in `pairs`."""


class Config(StageConfig):
    max_pixels: int = pydantic.Field(default=89_478_485, gt=0)
    """Images with more pixels than this get `too_many_pixels` (Pillow's own limit)."""
    max_member_bytes: int = pydantic.Field(default=64 << 20, gt=0)
    """Members larger than this are not read."""
    blocklists: tuple[Path, ...] = ()
    """Text files of URLs, domains, sha256 and perceptual hashes; see `intake/blocklists.py`. Another list is another
    run; what a list has gained since, a rule's `exclude.blocklists` keeps out of selections."""
    columns: Columns = pydantic.Field(default={})
    """Known to a run only: column of a list -> what it is, where its name does not say."""
    chunk_rows: int = pydantic.Field(default=50, gt=0, exclude=True)
    """Files per commit."""
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks per chunk; None: spark.sql.shuffle.partitions."""
    source: str = ""
    """Known to a run only: name of the collection, where a sample does not say."""
    shards_root: str = pydantic.Field(default="", exclude=True)
    """Known to a run only: what `shard` is relative to."""
    metadata: str | None = pydantic.Field(default=None, exclude=True)
    """Known to a run only: lists that give captions to shards, joined by uid."""
    images: str = pydantic.Field(default="", exclude=True)
    """Known to a run only: what the dataset's images are, where they lie in no tar; shards_root is where they go."""
    stay_out: StayOut = pydantic.Field(default=StayOut(), exclude=True)
    """Known to a run only: what was forgotten."""
    storage: dict[str, dict[str, Any]] = pydantic.Field(default={}, exclude=True)
    """Known to a run only: see `etl/storage.py`."""


def listing(dataset: Any) -> pd.DataFrame:
    """The files of a dataset. Images come before metadata: a pair with pixels is never taken for one without."""
    rows: list[tuple[Any, ...]] = []
    for order, kind in enumerate(READERS):
        if kind == "shards" and dataset.images:  # tars that ingest makes itself
            continue
        pattern = getattr(dataset, kind)
        if is_table(pattern):
            rows += [(*file, kind, GROUP) for file in list_table(pattern)]
        elif pattern:
            rows += [(*file, kind, f"{order} {file[0]}") for file in list_inputs(kind, pattern)]
    return pd.DataFrame(rows, columns=["uri", "size_bytes", "etag", "reader", "chunk_group"])


def scanned(files: DataFrame, config: Config) -> DataFrame:
    """Rows of SCANNED: one per sample, and one per file with status and reason of the file."""
    read_blocklists(config.blocklists)
    if is_table(config.images):
        rows = table_rows(files, config.images, config.columns, ("uid", "url", "text", "image"), needs=[("image",)])
        # Python: images are packed into tars and looked at; this table is the one place where they enter the JVM.
        made = rows.mapInArrow(rows_scanner(config), SCANNED)
        whole = files.select("uri", F.lit(True).alias("is_file"), F.lit("ok").alias("status"))
        return made.unionByName(whole, allowMissingColumns=True)
    spread = files.select("uri", "reader").repartition(tasks(config.num_tasks, files))
    # Python: the JVM has no decoder that we trust, and pixels must not enter it.
    return spread.mapInArrow(scanner(config), SCANNED)


def transform(files: DataFrame, known: DataFrame, *, config: Config) -> tuple[DataFrame, DataFrame]:
    found = scanned(files, config).localCheckpoint()
    samples = found.where("NOT is_file").drop("is_file")
    if config.metadata and config.shards_root:
        samples = with_captions(samples, captions(samples.sparkSession, config)).localCheckpoint()
    samples = samples.withColumn("shard", F.expr(f"substring(shard, {len(config.shards_root) + 2})"))
    keys = is_forgotten(config.stay_out, uid="uid", url="url", sha256="sha256", phash="phash")
    samples = samples.withColumn("status", F.when(keys, "forgotten").otherwise(F.col("status")))
    samples = marked(samples if not config.stay_out else samples.localCheckpoint(), known)
    pairs = samples.where(~F.col("status").isin(*NOT_PAIRS) & ~F.col("is_written")).select(*COLUMNS, "is_late")
    counts = (
        samples.groupBy("uri", "status")
        .agg(F.count(F.lit(1)).alias("n"))
        .groupBy("uri")
        .agg(
            F.map_from_entries(F.collect_list(F.struct("status", "n"))).alias("num_by_status"),
            F.sum("n").alias("num_members"),
        )
    )
    ledger = found.where("is_file").select("uri", "status", "status_reason").join(counts, on="uri", how="left")
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
    counts as what it is, and is not written again. (A row without a place is only known as a duplicate.)
    `is_late`: true where the pair is known by its metadata alone, which has the caption if the sample has none; else
    NULL. Captions and URLs are not shuffled: only keys are, and what is found of them is joined.
    """
    waits = F.col("status") == WAITS if "status" in known.columns else F.lit(False)  # what is not ingested has none
    before = known.select(
        "uid", F.col("shard").alias("known_shard"), F.col("offset_bytes").alias("known_offset"), waits.alias("waits")
    )
    is_sample = ~F.col("status").isin("missing_partner", "forgotten")
    order = Window.partitionBy("uid", "is_sample").orderBy(
        F.col("shard").asc_nulls_last(), "offset_bytes", "uri", "number"
    )
    keys = samples.select("uri", "number", "uid", "shard", "offset_bytes", "status", is_sample.alias("is_sample"))
    ranked = keys.withColumn("place", F.row_number().over(order)).join(before, on="uid", how="left")
    is_itself = (F.col("known_shard") == F.col("shard")) & (F.col("known_offset") == F.col("offset_bytes"))
    is_written = F.coalesce(is_itself, F.lit(False))
    has_come = F.col("waits") & (F.col("status") != WAITS)
    is_late = F.col("is_sample") & (F.col("place") == 1) & F.coalesce(has_come, F.lit(False))
    is_later = F.col("is_sample") & ((F.col("place") > 1) | F.col("waits").isNotNull()) & ~is_written & ~is_late
    marks = ranked.select(
        "uri", "number", is_later.alias("is_later"), is_written.alias("is_written"), is_late.alias("is_late")
    )
    # Before the pairs are written: what reads `known` after that would find each row to be its own duplicate.
    marks = marks.where("is_later OR is_written OR is_late").localCheckpoint()
    if has_late := not marks.where("is_late").isEmpty():
        of_late = marks.where("is_late").join(keys, on=["uri", "number"], how="inner").select("uid")
        given = known.join(of_late, on="uid", how="left_semi")
        given = for_join(given.select("uid", F.col("text").alias("given_text"), F.col("url").alias("given_url")))
        samples = with_captions(samples, given).localCheckpoint()
    found = samples.join(for_join(marks), on=["uri", "number"], how="left")
    status = F.when(F.col("is_later"), "duplicate_uid").otherwise(F.col("status"))
    return found.select(
        *[c for c in samples.columns if c != "status"], status.alias("status"),
        F.coalesce("is_written", F.lit(False)).alias("is_written"),
        F.when(F.col("is_late") & F.lit(has_late), True).alias("is_late"),  # where none is, Spark looks for none
    )  # fmt: skip


def apart(pairs: DataFrame) -> tuple[DataFrame, DataFrame]:
    """(pairs that take the place of one without pixels, the others)."""
    return pairs.where("is_late"), pairs.where("is_late IS NULL")


def num_late(pairs: DataFrame) -> int:
    """Of pairs, those that `inputs` counts as metadata_only too: in the line of their metadata, beside their sample's.

    0 of a table without the column.
    """
    return pairs.where("is_late").count() if "is_late" in pairs.columns else 0


def with_captions(samples: DataFrame, given: DataFrame) -> DataFrame:
    """`samples` with the captions and URLs that they lack, of (uid, given_text, given_url). A caption that is not UTF-8
    stays NULL."""
    joined = samples.join(given, on="uid", how="left")
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


def tidy(config: Config, written: DataFrame) -> None:
    """Removes tars that a kill left unfinished."""
    if config.images:
        sweep(config.shards_root)


STAGE = Stage(
    "ingest", reads={"known": Read(PAIRS)}, writes=(PAIRS, INPUTS), config=Config, transform=transform, resume="rows",
    version=4, kinds=("pool", "filter", "dev", "eval"), listing=listing, replaces=apart, committed=tidy,
)  # fmt: skip
