"""Duplicates that need no model. Reads pairs. Writes duplicates: a row per member of a group of two or more, by method.

    url_text    the same canonical URL and normalised caption (`etl/urls.py`)
    sha256      the same bytes
    phash       perceptual hashes that differ in few bits
    minhash     captions that share most of their shingles (`models/minhash.py`)

A group is what any chain of duplicates joins, its group_uid the smallest uid, and distance that to the pair so named, 0
of equals. Nothing is dropped. NULLs match nothing. Partitions and order change nothing.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal

import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.groups import equal_groups, near_groups
from etl.near import caption_edges, jaccard, phash_edges
from etl.stage import Read, Slice, Stage, StageConfig
from etl.tables import DUPLICATES, PAIRS
from etl.urls import url_text

Method = Literal["url_text", "sha256", "phash", "minhash"]
METHODS: tuple[Method, ...] = ("url_text", "sha256", "phash", "minhash")


class Config(StageConfig):
    methods: tuple[Method, ...] = pydantic.Field(default=("sha256", "phash"), min_length=1)
    """Each is a rung by itself. A uid that came twice is ingest's business."""
    max_distance_bits: int = pydantic.Field(default=4, ge=0, le=12)
    """Of two perceptual hashes, of 64 bits. 0: the same hash. Costs grow with it: max_distance_bits + 1 bands."""
    min_jaccard: float = pydantic.Field(default=0.8, gt=0, le=1)
    """Of two captions: shared shingles over all shingles of both. 98.5 % of pairs at the threshold are found, 99.9 % of
    those at .85 where it is .8 (see `models/minhash.py`)."""


def groups(pairs: DataFrame, method: Method, config: Config) -> DataFrame:
    """(uid, group_uid, distance) by one method."""
    if method == "url_text":
        # Computed once: its patterns cost more than all else, and rows are read three times.
        return equal_groups(_rows(pairs, url_text("url", "text"), has_pixels=False).localCheckpoint())
    if method == "minhash":
        captions = _rows(pairs.where("text RLIKE '\\\\S'"), F.col("text"), has_pixels=False)
        return near_groups(
            captions, lambda values: caption_edges(values, config.min_jaccard), lambda a, b: 1 - jaccard(a, b)
        )
    hashes = _rows(pairs, F.col(method), has_pixels=True)
    if method == "sha256" or not config.max_distance_bits:
        return equal_groups(hashes)
    return near_groups(
        hashes, lambda values: phash_edges(values, config.max_distance_bits),
        lambda a, b: F.bit_count(F.col(a).bitwiseXOR(F.col(b))),
    )  # fmt: skip


def _rows(pairs: DataFrame, value: Column, *, has_pixels: bool) -> DataFrame:
    """(uid, value) of the pairs that have one."""
    statuses = ("ok",) if has_pixels else ("ok", "metadata_only")
    return pairs.where(F.col("status").isin(*statuses)).select("uid", value.alias("value")).where("value IS NOT NULL")


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    found = [
        groups(pairs, method, config).select(F.lit(method).alias("method"), "uid", "group_uid", "distance")
        for method in config.methods
    ]
    return reduce(DataFrame.unionByName, found)


def methods_slice(config: StageConfig, key: str) -> Slice:
    """This stage replaces the rows of its own methods, whatever other stages write to the table."""
    return {"method": METHODS}


STAGE = Stage(
    "dedup", reads={"pairs": Read(PAIRS)}, writes=(DUPLICATES,), config=Config, transform=transform, resume="table",
    version=2, slice_of=methods_slice,
)  # fmt: skip
