"""Identical images. Reads pairs. Writes duplicates: a row per member of a group of two or more. Nothing is dropped."""

from __future__ import annotations

from typing import Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Read, Slice, Stage, StageConfig
from etl.tables import DUPLICATES, PAIRS

Method = Literal["sha256", "phash"]


class Config(StageConfig):
    methods: tuple[Method, ...] = ("sha256", "phash")
    """sha256: same bytes. phash: same perceptual hash (distance 0 bits). A uid that came twice is ingest's business."""


def groups(pairs: DataFrame, method: Method) -> DataFrame:
    """Members of groups that share a value; NULLs are not merged."""
    shared = (
        pairs.where((F.col("status") == "ok") & F.col(method).isNotNull())
        .groupBy(method)
        .agg(F.min("uid").alias("group_uid"), F.count(F.lit(1)).alias("size"))
        .where("size > 1")
    )
    return (
        pairs.where("status = 'ok'")
        .join(shared, on=method, how="inner")
        .select(F.lit(method).alias("method"), "uid", "group_uid", F.lit(0.0).cast("float").alias("distance"))
    )


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    found = groups(pairs, config.methods[0])
    for method in config.methods[1:]:
        found = found.unionByName(groups(pairs, method))
    return found


def methods_slice(config: StageConfig, key: str) -> Slice:
    """This stage replaces the rows of its own methods, whatever other stages write to the table."""
    return {"method": ("sha256", "phash")}


STAGE = Stage(
    "dedup", reads={"pairs": Read(PAIRS)}, writes=(DUPLICATES,), config=Config, transform=transform, resume="table",
    version=1, slice_of=methods_slice,
)  # fmt: skip
