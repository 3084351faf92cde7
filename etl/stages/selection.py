"""What a rule keeps. Reads pairs, scores, contaminated, duplicates. Writes selections, and a receipt that proves them.

The top fraction is exact at any size: a histogram is refined around the cut in two or three scans, nothing is sorted
and nothing but histograms is collected. Ties are broken by uid, so partitions and order cannot change the result.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.stage import Facts, Read, Slice, Stage, StageConfig, content_hash
from etl.tables import CONTAMINATED, DUPLICATES, PAIRS, RECEIPTS, SCORES, SELECTIONS

BINS = 4096
PREFIX = 4
"""Hex digits of the uid looked at in one pass over ties: 65,536 bins."""


class Keep(StageConfig):
    """Exactly one of the three."""

    top_fraction: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Of the eligible pairs with a score, the share with the highest scores; 0.15 in the DFN paper."""
    random_fraction: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Of the eligible pairs, a share drawn by a hash of seed and uid: the control arm."""
    all: Literal[True] | None = None
    """Every eligible pair."""

    @pydantic.model_validator(mode="after")
    def one_of(self) -> Keep:
        if sum(value is not None for value in (self.top_fraction, self.random_fraction, self.all)) != 1:
            raise ValueError("wanted exactly one of top_fraction, random_fraction, all")
        return self

    @property
    def fraction(self) -> float:
        return self.top_fraction or self.random_fraction or 1.0


class Unique(StageConfig):
    """One pair of each group of duplicates: the one with the smallest uid."""

    by: tuple[Literal["sha256", "phash"], ...]


class Config(StageConfig):
    name: str = "dfn"
    """What people call this selection."""
    keep: Keep = Keep(top_fraction=0.15)
    among: tuple[Literal["ok", "metadata_only"], ...] = ("ok",)
    """Statuses of the pairs that can be kept. With metadata_only: also pairs whose pixels have yet to be fetched."""
    exclude: tuple[Literal["contaminated"], ...] = ("contaminated",)
    unique: Unique | None = None
    seed: int = 0
    filter: str = ""
    """Known to a run only, like the version: whose scores rank the pairs; empty where the rule needs none."""
    filter_version: str = ""


def judged(
    pairs: DataFrame, scores: DataFrame, contaminated: DataFrame, duplicates: DataFrame, config: Config
) -> DataFrame:
    """(uid, rank, verdict): each pair with what speaks against it first, or `eligible`, and what it is ranked by."""
    bad = contaminated.select("uid").distinct().withColumn("is_contaminated", F.lit(True))
    others = duplicates.where(F.col("method").isin(list(config.unique.by if config.unique else ())))
    others = others.where("uid != group_uid").select("uid").distinct().withColumn("is_duplicate", F.lit(True))
    ranked = scores.where("status = 'ok'").select("uid", F.col("score").cast("double").alias("rank"))
    joined = pairs.select("uid", "status").join(bad, on="uid", how="left").join(others, on="uid", how="left")
    if config.keep.top_fraction is not None:
        joined = joined.join(ranked, on="uid", how="left")
    else:
        joined = joined.withColumn("rank", draw(config.seed) if config.keep.random_fraction else F.lit(0.0))
    verdict = (
        F.when(~F.col("status").isin(*config.among), F.col("status"))
        .when(F.col("is_contaminated") & F.lit("contaminated" in config.exclude), "contaminated")
        .when(F.col("is_duplicate"), "duplicate")
        .when(F.col("rank").isNull() | F.isnan("rank"), "no_score")
        .otherwise("eligible")
    )
    return joined.select("uid", "rank", verdict.alias("verdict"))


def draw(seed: int) -> Column:
    """A number in [0, 1) that follows from seed and uid alone: no `rand()`, so partitions cannot change it."""
    digits = F.substring(F.md5(F.concat(F.lit(f"{seed}:"), F.col("uid"))), 1, 13)
    return F.conv(digits, 16, 10).cast("double") / F.lit(float(16**13))


def prepare(
    pairs: DataFrame, scores: DataFrame, contaminated: DataFrame, duplicates: DataFrame, *, config: Config
) -> Facts:
    """The cut: {threshold, threshold_uid, num_eligible, num_rows_by_status}."""
    every = judged(pairs, scores, contaminated, duplicates, config).localCheckpoint()  # joined once, scanned often
    counts = {row["verdict"]: int(row["count"]) for row in every.groupBy("verdict").count().collect()}
    num_eligible = counts.pop("eligible", 0)
    # Rounded first: 0.29 * 100 is 28.999999999999996 in binary, and 29 is meant.
    num_kept = math.floor(round(config.keep.fraction * num_eligible, 6))
    threshold, uid = find_cut(every.where("verdict = 'eligible'"), num_kept) if num_kept else (None, None)
    return {
        "threshold": threshold,
        "threshold_uid": uid,
        "num_eligible": num_eligible,
        "num_rows_by_status": {"kept": num_kept, "below_cut": num_eligible - num_kept, **counts},
    }


def find_cut(ranked: DataFrame, num_kept: int) -> tuple[float, str]:
    """(rank, uid) of the last row kept, of the `num_kept` >= 1 first by rank descending, then uid ascending."""
    low, high = ranked.agg(F.min("rank"), F.max("rank")).first() or (0.0, 0.0)
    within, still = ranked, num_kept
    while low < high:
        place = F.floor((F.col("rank") - F.lit(low)) / F.lit(high - low) * BINS)
        bins = within.groupBy(F.least(place, F.lit(BINS - 1)).alias("bin"))
        found = bins.agg(F.count(F.lit(1)).alias("n"), F.min("rank").alias("low"), F.max("rank").alias("high"))
        row, still = _walk(sorted(found.collect(), key=lambda r: -r["bin"]), still)
        low, high = row["low"], row["high"]
        within = ranked.where(F.col("rank").between(low, high))
    return low, _uid_cut(within, still)


def _uid_cut(ties: DataFrame, still: int) -> str:
    """The uid of the `still`-th row by uid ascending."""
    prefix = ""
    while len(prefix) < 32:
        prefixes = ties.where(F.col("uid").startswith(prefix)).groupBy(
            F.substring("uid", 1, len(prefix) + PREFIX).alias("p")
        )
        found = prefixes.agg(F.count(F.lit(1)).alias("n"), F.max("uid").alias("last"))
        row, still = _walk(sorted(found.collect(), key=lambda r: str(r["p"])), still)
        prefix = row["p"]
        if row["n"] == still:
            return str(row["last"])
    return prefix


def _walk(rows: list[Any], still: int) -> tuple[Any, int]:
    """The row in which the running count reaches `still`, and how many are wanted of it."""
    for row in rows:
        if row["n"] >= still:
            return row, still
        still -= row["n"]
    raise AssertionError("fewer rows than counted before: the input changed under a pinned version")


def transform(pairs: DataFrame, scores: DataFrame, contaminated: DataFrame, duplicates: DataFrame, *, config: Config,
              facts: Facts) -> tuple[DataFrame, DataFrame]:  # fmt: skip
    threshold, uid = facts["threshold"], facts["threshold_uid"]
    every = judged(pairs, scores, contaminated, duplicates, config).where("verdict = 'eligible'")
    is_kept = (F.col("rank") > threshold) | ((F.col("rank") == threshold) & (F.col("uid") <= uid))
    selection_id = F.lit(facts["key"][:16]).alias("selection_id")
    rank = F.col("rank") if not config.keep.all else F.lit(None).cast("double")
    kept = every.where(is_kept if uid else F.lit(False)).select(
        selection_id, "uid", rank.alias("score"), F.lit(1).alias("num_repeats")
    )
    selections = kept.localCheckpoint()  # Written and hashed below: joined once.
    sums = selections.agg(F.count(F.lit(1)).alias("num_rows"), *content_hash("uid", "num_repeats"))
    inputs = F.create_map(*[F.lit(x) for label, version in facts["inputs"].items() for x in (label, version)])
    receipts = sums.select(
        selection_id,
        inputs.cast("map<string,bigint>").alias("inputs"),
        F.lit(config.model_dump_json()).alias("rule"),
        F.lit(config.seed).cast("bigint").alias("seed"),
        F.lit(_json({k: v for k, v in facts.items() if k not in ("inputs", "key")})).alias("facts"),
        "num_rows",
        _hash_of_sums().alias("hash"),
    )
    return selections, receipts


def _json(value: Any) -> str:
    import json

    return json.dumps(value, sort_keys=True)


def _hash_of_sums() -> Column:
    """`fold_hash` of the two sums, in SQL."""
    modulus = f"{1 << 64}BD"
    high, low = "coalesce(hash_high, 0BD)", "coalesce(hash_low, 0BD)"
    hexed = "lpad(lower(conv(cast({} as string), 10, 16)), 16, '0')"
    return F.expr(
        f"concat({hexed.format(f'({high} + ({low} div {modulus})) % {modulus}')}, {hexed.format(f'{low} % {modulus}')})"
    )


def slice_of(config: StageConfig, key: str) -> Slice:
    """Named by inputs, rule and code: what a later pool makes of the same rule stands beside it."""
    return {"selection_id": key[:16]}


STAGE = Stage(
    "selection",
    reads={
        "pairs": Read(PAIRS),
        "scores": Read(SCORES),
        "contaminated": Read(CONTAMINATED),
        "duplicates": Read(DUPLICATES),
    },
    writes=(SELECTIONS, RECEIPTS),
    config=Config,
    transform=transform,
    prepare=prepare,
    resume="table",
    version=1,
    slice_of=slice_of,
)
