"""Evaluation images in the pool. Reads pairs of this and of the evaluation datasets. Writes contaminated."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Read, Stage, StageConfig
from etl.tables import CONTAMINATED, PAIRS


class Config(StageConfig):
    methods: tuple[str, ...] = ("sha256", "phash")
    """sha256: same bytes. phash: same perceptual hash (distance 0 bits)."""


def seen(pairs: DataFrame, references: DataFrame, method: str) -> DataFrame:
    """Pairs whose value of `method` an evaluation image has too; NULLs match nothing."""
    known = references.where(F.col(method).isNotNull()).select(F.col("dataset").alias("eval_set"), method).distinct()
    return pairs.join(F.broadcast(known), on=method, how="inner").select(
        "eval_set", F.lit(method).alias("method"), "uid", F.lit(0.0).cast("float").alias("distance")
    )


def transform(pairs: DataFrame, references: DataFrame, *, config: Config) -> DataFrame:
    found = seen(pairs, references, config.methods[0])
    for method in config.methods[1:]:
        found = found.unionByName(seen(pairs, references, method))
    return found


STAGE = Stage(
    "decontaminate",
    reads={"pairs": Read(PAIRS), "references": Read(PAIRS, kinds=("eval", "dev"))},
    writes=(CONTAMINATED,),
    config=Config,
    transform=transform,
    resume="table",
    version=1,
    kinds=("pool", "filter"),
)
