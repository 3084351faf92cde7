"""Vectors of every pair under one encoder version. Reads pairs and their shards. Writes embeddings. The GPU stage."""

from __future__ import annotations

from pathlib import Path

import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.gpu import make_dfn_embed
from etl.stage import Read, Stage, StageConfig, tasks
from etl.tables import EMBEDDINGS, PAIRS


class Config(StageConfig):
    max_pixels: int = pydantic.Field(default=89_478_485, gt=0)
    """Images with more pixels than this are not decoded (Pillow's own limit)."""
    chunk_rows: int = pydantic.Field(default=20_000, gt=0, exclude=True)
    """Rows per commit: about 10 minutes of a core. A killed run loses the chunk in flight."""
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks per chunk, each with its own copy of the model: GPUs, or cores. None: spark.sql.shuffle.partitions."""
    encoder: str = ""
    """Known to a run only: name of the encoder."""
    encoder_version: str = ""
    """Known to a run only: first 16 hex digits of the sha256 over weights and record."""
    encoder_folder: Path = pydantic.Field(default=Path(), exclude=True)
    """Known to a run only: where executors find record and weights."""
    shards_root: str = pydantic.Field(default="", exclude=True)
    """Known to a run only: what `shard` is relative to."""
    calls_file: Path | None = pydantic.Field(default=None, exclude=True)
    """A file that gets the number of rows of every batch that goes through the model; None: not counted."""


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    dfn_embed = make_dfn_embed(
        config.encoder_folder, config.shards_root, max_pixels=config.max_pixels, calls_file=config.calls_file
    )
    by_place = [F.col("shard"), F.col("offset_bytes")]
    has_pixels = F.col("status") == "ok"
    pointers = pairs.select(
        "uid", "offset_bytes", "size_bytes", "text", F.when(has_pixels, F.col("shard")).alias("shard"),
        F.col("status").alias("pair_status"), F.col("status_reason").alias("pair_reason"),
    )  # fmt: skip
    # Only pointers are shuffled; in order of place, so that each task reads its shards sequentially.
    placed = pointers.repartitionByRange(tasks(config.num_tasks, pointers), *by_place).sortWithinPartitions(*by_place)
    embedded = placed.withColumn("found", dfn_embed("shard", "offset_bytes", "size_bytes", "text"))
    is_ok = F.col("pair_status") == "ok"
    return embedded.select(
        F.lit(config.encoder).alias("encoder"),
        F.lit(config.encoder_version).alias("encoder_version"),
        "uid",
        "found.image_embedding",
        "found.text_embedding",
        "found.cosine",
        F.when(is_ok, F.col("found.status")).otherwise(F.col("pair_status")).alias("status"),
        F.when(is_ok, F.col("found.status_reason")).otherwise(F.col("pair_reason")).alias("status_reason"),
    )


STAGE = Stage(
    "embed", reads={"pairs": Read(PAIRS)}, writes=(EMBEDDINGS,), config=Config, transform=transform, resume="rows",
    version=1, kinds=("pool", "filter", "dev", "eval"),
)  # fmt: skip
