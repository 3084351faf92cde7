"""Scores of several filters joined to one. Reads their scores. Writes scores: one row per pair.

By rank: the share of scored pairs below, equals counted half (so any monotone rescaling of a part changes nothing). By
min_max: the place between the lowest and the highest score. Either depends on the whole pool: when it grows, all rows
are written anew.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from etl.stage import Read, Slice, Stage, StageConfig
from etl.tables import SCORES

BINS = 4096
"""Of a part's scores, by range: each is sorted by one task. Scores that crowd in few bins make few, long tasks."""


class Part(StageConfig):
    filter: str
    filter_version: str
    weight: float


class Config(StageConfig):
    by: Literal["rank", "min_max"] = "rank"
    parts: tuple[Part, ...] = pydantic.Field(default=())
    """Known to a run only."""
    filter: str = ""
    """Known to a run only: name of the fused filter."""
    filter_version: str = ""
    """Known to a run only: names rule, weights and the parts' versions."""

    def score_slice(self) -> Slice:
        return {
            "filter": tuple(p.filter for p in self.parts),
            "filter_version": tuple(p.filter_version for p in self.parts),
        }


def transform(scores: DataFrame, *, config: Config) -> DataFrame:
    weights, parts = F.lit(None).cast("double"), F.lit(None).cast("int")
    for number, part in enumerate(config.parts):
        is_part = (F.col("filter") == part.filter) & (F.col("filter_version") == part.filter_version)
        weights, parts = F.when(is_part, part.weight).otherwise(weights), F.when(is_part, number).otherwise(parts)
    rows = scores.select(parts.alias("part"), weights.alias("weight"), "uid", "score", "status")
    rows = rows.where("part IS NOT NULL")
    scored = rows.where("status = 'ok' AND abs(score) < double('infinity')")
    placed = ranks(scored) if config.by == "rank" else ranges(scored)
    total = sum(part.weight for part in config.parts)
    # Rounded to float only at the end; the parts are added in their order, since sums of doubles heed theirs.
    ordered = F.transform(F.array_sort(F.collect_list(F.struct("part", "term"))), lambda item: item["term"])
    fused = placed.withColumn("term", F.col("place") * F.col("weight")).groupBy("uid").agg(ordered.alias("terms"))
    summed = F.aggregate("terms", F.lit(0.0), lambda so_far, term: so_far + term) / F.lit(total)
    is_whole = F.size("terms") == len(config.parts)
    every = rows.select("uid").distinct().join(fused, on="uid", how="left")
    return every.select(
        F.lit(config.filter).alias("filter"),
        F.lit(config.filter_version).alias("filter_version"),
        "uid",
        F.when(is_whole, summed).cast("float").alias("score"),
        F.when(is_whole, "ok").otherwise("no_vectors").alias("status"),
    )


def _extent(scored: DataFrame) -> DataFrame:
    return F.broadcast(scored.groupBy("part").agg(F.min("score").alias("low"), F.max("score").alias("high")))


def _range_place() -> Column:
    width = F.col("high").cast("double") - F.col("low")
    return F.when(width > 0, (F.col("score").cast("double") - F.col("low")) / width).otherwise(0.5)


def ranges(scored: DataFrame) -> DataFrame:
    """`scored` with `place`: 0 for the lowest score of the part, 1 for the highest."""
    return scored.join(_extent(scored), on="part", how="inner").withColumn("place", _range_place())


def ranks(scored: DataFrame) -> DataFrame:
    """`scored` with `place`: (pairs below + half of the equals, itself among them) / pairs, of its part."""
    binned = ranges(scored).withColumn("bin", F.floor(F.col("place") * (BINS - 1)))
    sizes = binned.groupBy("part", "bin").agg(F.count(F.lit(1)).alias("n"))
    before = Window.partitionBy("part").orderBy("bin").rowsBetween(Window.unboundedPreceding, -1)
    below = sizes.select(
        "part", "bin", F.coalesce(F.sum("n").over(before), F.lit(0)).alias("below"),
        F.sum("n").over(Window.partitionBy("part")).alias("num_scored"),
    )  # fmt: skip
    inside = Window.partitionBy("part", "bin").orderBy("score")
    equals = F.count(F.lit(1)).over(Window.partitionBy("part", "bin", "score"))
    place = (F.col("below") + F.rank().over(inside) - 1 + equals / 2) / F.col("num_scored")
    return binned.join(F.broadcast(below), on=["part", "bin"], how="inner").withColumn("place", place)


STAGE = Stage(
    "fusion", reads={"scores": Read(SCORES, slice_of=Config.score_slice)}, writes=(SCORES,), config=Config,
    transform=transform, resume="table", version=1,
)  # fmt: skip
