"""Evaluation images in the pool, by their bytes and by their look. Reads pairs of this dataset, of the evaluation
datasets and of the registered evaluation sets. Writes contaminated: per set and method the distance to the closest.

Pointwise: what is said of a pair follows from it and the evaluation images alone. The pool is not shuffled.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.stage import Read, Slice, Stage, StageConfig, for_join
from etl.tables import CONTAMINATED, PAIRS

FEW_BANDS = 5_000_000
"""Bands of evaluation images that are sent to every task: of a million images at the default."""

Method = Literal["sha256", "phash"]


class Config(StageConfig):
    methods: tuple[Method, ...] = pydantic.Field(default=("sha256", "phash"), min_length=1)
    """sha256: same bytes. phash: near by perceptual hash."""
    max_distance_bits: int = pydantic.Field(default=4, ge=0, le=15)
    """Hamming distance of perceptual hashes up to which images count as the same, in bits. Of 800 pictures of the
    demo's pool, held against 450 of its evaluation pictures, 3 are within 4 bits, 2 of them copies to the eye; 7 bits
    flag a fourth, no copy. Symmetric pictures, such as stars, have hashes that a JPEG of quality 90 changes by 14 bits
    and more: vectors find these. 4 bits find 93 to 95 % of JPEGs; 42 % where 2 % is cropped, nothing that is flipped.
    See `tests/bench/leaks.py`."""


def same_bytes(pairs: DataFrame, references: DataFrame) -> DataFrame:
    """(eval_set, uid, distance) of pairs whose bytes an evaluation image has too."""
    known = references.where("sha256 IS NOT NULL").select("eval_set", "sha256").distinct()
    return pairs.join(F.broadcast(known), on="sha256", how="inner").select(
        "eval_set", "uid", F.lit(0).alias("distance")
    )


def bands(phash: Column, max_distance_bits: int) -> Column:
    """An array of the hash's bits in d + 1 bands: of two hashes at most d bits apart, one band at least is the same."""
    from models import hamming  # a second: numba

    masks = [mask - (mask >> 63 << 64) for mask in hamming.bands(max_distance_bits)]  # a BIGINT has a sign
    return F.array(*[phash.bitwiseAND(F.lit(mask).cast("bigint")) for mask in masks])


def same_look(pairs: DataFrame, references: DataFrame, max_distance_bits: int) -> DataFrame:
    """(eval_set, uid, distance) of pairs with an evaluation image at most so many bits away; the closest one's.

    A row per band, that meets the evaluation images with the same band; each that meets is verified.
    """
    band = F.posexplode(bands(F.col("phash"), max_distance_bits)).alias("number", "band")
    known = references.where("phash IS NOT NULL").select("eval_set", "phash").distinct()
    known = for_join(known.select("eval_set", F.col("phash").alias("known"), band), FEW_BANDS)
    met = pairs.where("phash IS NOT NULL").select("uid", "phash", band).join(known, on=["number", "band"], how="inner")
    bits = F.bit_count(F.col("phash").bitwiseXOR(F.col("known")))
    near = met.select("eval_set", "uid", bits.alias("distance")).where(F.col("distance") <= max_distance_bits)
    return near.groupBy("eval_set", "uid").agg(F.min("distance").alias("distance"))


def transform(pairs: DataFrame, references: DataFrame, *, config: Config) -> DataFrame:
    known = references.withColumnRenamed("dataset", "eval_set")
    found = {
        "sha256": lambda: same_bytes(pairs, known),
        "phash": lambda: same_look(pairs, known, config.max_distance_bits),
    }
    no_edit = F.lit(None).cast("string").alias("edit")
    rows = [
        found[method]().select(
            "eval_set", F.lit(method).alias("method"), "uid", F.col("distance").cast("float"), no_edit
        )
        for method in config.methods
    ]
    return rows[0] if len(rows) == 1 else rows[0].unionByName(rows[1])


def methods_slice(config: StageConfig, key: str) -> Slice:
    """This stage replaces the rows of its own methods; those on vectors are `decontaminate_semantic`'s."""
    return {"method": ("sha256", "phash")}


STAGE = Stage(
    "decontaminate",
    reads={"pairs": Read(PAIRS), "references": Read(PAIRS, kinds=("eval", "dev"))},
    writes=(CONTAMINATED,),
    config=Config,
    transform=transform,
    resume="table",
    version=2,
    kinds=("pool", "filter"),
    slice_of=methods_slice,
)
