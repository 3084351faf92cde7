"""Duplicates that need no model. Reads pairs. Writes duplicates: a row per member of a group of two or more, by method.

    url_text    the same canonical URL and normalised caption (`etl/dedup/urls.py`)
    sha256      the same bytes
    phash       perceptual hashes that differ in few bits
    minhash     captions that share most of their shingles (`models/minhash.py`)

A group is what any chain of duplicates joins, its group_uid the smallest uid, and distance that to the pair so named, 0
of equals. Nothing is dropped. NULLs match nothing. Partitions and order change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Literal

import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.dedup.groups import Distance, Edges, equal_groups, near_groups
from etl.dedup.grow import grown_groups
from etl.dedup.near import caption_edges, jaccard, phash_edges
from etl.dedup.urls import url_text
from etl.stage import Read, Slice, Stage, StageConfig
from etl.tables import DUPLICATES, PAIRS

Method = Literal["url_text", "sha256", "phash", "minhash"]
METHODS: tuple[Method, ...] = ("url_text", "sha256", "phash", "minhash")


class Config(StageConfig):
    methods: tuple[Method, ...] = pydantic.Field(default=("sha256", "phash"), min_length=1)
    """Each is a rung by itself. A uid that came twice is ingest's business."""
    max_distance_bits: int = pydantic.Field(default=4, ge=0, le=12)
    """Of two perceptual hashes, of 64 bits. 0: the same hash. Costs grow with it: max_distance_bits + 1 bands."""
    min_jaccard: float = pydantic.Field(default=0.8, gt=0, le=1)
    """Of two captions: shared shingles over all shingles of both. 98.1 % of pairs at the threshold are found, 99.8 % of
    those at .85 where it is .8 (see `models/minhash.py`)."""


def nearness(method: Method, config: Config) -> tuple[Edges, Distance] | tuple[None, None]:
    """Which values are near by a method, and how far two are apart; None where only equal ones are duplicates."""
    if method == "minhash":
        return lambda values: caption_edges(values, config.min_jaccard), lambda a, b: 1 - jaccard(a, b)
    if method == "phash" and config.max_distance_bits:
        bits: Distance = lambda a, b: F.bit_count(F.col(a).bitwiseXOR(F.col(b)))  # noqa: E731
        return lambda values: phash_edges(values, config.max_distance_bits), bits
    return None, None


def rows_of(pairs: DataFrame, method: Method) -> DataFrame:
    """(uid, value) of the pairs that have one."""
    has_pixels = method in ("sha256", "phash")
    usable = pairs.where(F.col("status").isin(*(("ok",) if has_pixels else ("ok", "metadata_only"))))
    value = F.col("text" if method == "minhash" else method) if method != "url_text" else url_text("url", "text")
    if method == "minhash":
        usable = usable.where("text RLIKE '\\\\S'")
    return usable.select("uid", value.alias("value")).where("value IS NOT NULL")


def groups(pairs: DataFrame, method: Method, config: Config) -> DataFrame:
    """(uid, group_uid, distance) by one method."""
    rows, (edges, distance) = rows_of(pairs, method), nearness(method, config)
    if edges and distance:
        return near_groups(rows, edges, distance)
    # Computed once: the patterns of a URL cost more than all else, and rows are read three times.
    return equal_groups(rows.localCheckpoint() if method == "url_text" else rows)


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    return _by_method(config, lambda method: groups(pairs, method, config))


def update(
    earlier: Mapping[str, DataFrame], added: Mapping[str, DataFrame], written: DataFrame, *, config: Config
) -> DataFrame:  # fmt: skip
    """What came against the whole pool, which is not compared with itself again: the same rows as from scratch.

    But for captions in buckets of more than ALL_PAIRS (`models/buckets.py`), of which from scratch not all pairs are
    compared: those that were compared when the bucket was smaller stay grouped.
    """

    def of(method: Method) -> DataFrame:
        then, since = (rows_of(frames["pairs"], method) for frames in (earlier, added))
        own = written.where(F.col("method") == method).select("uid", "group_uid", "distance")
        return grown_groups(then, since, own, *nearness(method, config))

    return _by_method(config, of)


def _by_method(config: Config, groups_by: Callable[[Method], DataFrame]) -> DataFrame:
    found = [
        groups_by(method).select(F.lit(method).alias("method"), "uid", "group_uid", "distance")
        for method in config.methods
    ]
    return reduce(DataFrame.unionByName, found)


def methods_slice(config: StageConfig, key: str) -> Slice:
    """This stage replaces the rows of its own methods, whatever other stages write to the table."""
    return {"method": METHODS}


STAGE = Stage(
    "dedup", reads={"pairs": Read(PAIRS)}, writes=(DUPLICATES,), config=Config, transform=transform, update=update,
    resume="table", version=4, slice_of=methods_slice,
)  # fmt: skip
