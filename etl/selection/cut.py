"""The exact cut of a ranking, at any size: two or three scans, no global sort, and only histograms are collected.

A histogram over the range of ranks finds the bin in which the cut lies; it is refined until the bin holds few rows, and
these are sorted. Ties are broken by uid, so partitions and order cannot change the result. Reads the frame it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

BINS = 1 << 16
"""Over all groups."""
FEW = 100_000
"""Rows of a group that one task sorts."""


@dataclass(frozen=True)
class Cut:
    """The last row kept."""

    rank: float
    uid: str


@dataclass(frozen=True)
class _Span:
    """Where the cut of a group lies: ranks from low to high, `num_rows` rows, the `still`-th of which is the last."""

    low: float
    high: float
    num_rows: int
    still: int


def find_cut(ranked: DataFrame, num_kept: int) -> tuple[float, str]:
    """(rank, uid) of the last row kept, of the `num_kept` >= 1 first by rank descending, then uid ascending."""
    cut = find_cuts(ranked.withColumn("group", F.lit("")), {"": num_kept})[""]
    return cut.rank, cut.uid


def find_cuts(ranked: DataFrame, num_kept: Mapping[str, int]) -> dict[str, Cut]:
    """The cut of each group.

    Args:
        ranked: group, rank (double, finite), uid.
        num_kept: group -> how many are kept; more than it has are all that it has. None of 0: no cut.
    """
    wanted = {group: num for group, num in num_kept.items() if num}
    if not wanted:
        return {}
    totals = ranked.where(F.col("group").isin(list(wanted))).groupBy("group")
    found = totals.agg(F.min("rank").alias("low"), F.max("rank").alias("high"), F.count(F.lit(1)).alias("n")).collect()
    spans = {r["group"]: _Span(r["low"], r["high"], r["n"], min(wanted[r["group"]], r["n"])) for r in found}
    while wide := {g: s for g, s in spans.items() if s.num_rows > FEW and s.low < s.high}:
        spans |= _refined(ranked, wide)
    few = {group: span for group, span in spans.items() if span.num_rows <= FEW}
    return _sorted(ranked, few) | _among_ties(ranked, {g: s for g, s in spans.items() if g not in few})


def lookup(group: Column, values: Mapping[str, Any]) -> Column:
    """The value of the row's group; NULL where it has none."""
    return F.element_at(F.create_map(*[F.lit(x) for item in values.items() for x in item]), group)


def _within(ranked: DataFrame, spans: Mapping[str, _Span]) -> DataFrame:
    group = F.col("group")
    low, high = (lookup(group, {g: getattr(s, side) for g, s in spans.items()}) for side in ("low", "high"))
    return ranked.where(group.isin(list(spans)) & F.col("rank").between(low, high))


def _refined(ranked: DataFrame, spans: Mapping[str, _Span]) -> dict[str, _Span]:
    """The bin of each span in which its cut lies."""
    bins = max(BINS // len(spans), 64)
    low = lookup(F.col("group"), {g: s.low for g, s in spans.items()})
    width = lookup(F.col("group"), {g: s.high - s.low for g, s in spans.items()})
    place = F.least(F.floor((F.col("rank") - low) / width * bins), F.lit(bins - 1))
    counted = _within(ranked, spans).groupBy("group", place.alias("bin"))
    rows = counted.agg(F.count(F.lit(1)).alias("n"), F.min("rank").alias("low"), F.max("rank").alias("high")).collect()
    refined = {}
    for group, span in spans.items():
        still = span.still
        for row in sorted((r for r in rows if r["group"] == group), key=lambda r: -r["bin"]):
            if row["n"] >= still:
                refined[group] = _Span(row["low"], row["high"], row["n"], still)
                break
            still -= row["n"]
        else:
            raise AssertionError("fewer rows than counted before: the input changed under a pinned version")
    return refined


def _sorted(ranked: DataFrame, spans: Mapping[str, _Span]) -> dict[str, Cut]:
    """The cut of each group among few rows."""
    if not spans:
        return {}
    order = Window.partitionBy("group").orderBy(F.col("rank").desc(), "uid")
    numbered = _within(ranked, spans).withColumn("number", F.row_number().over(order))
    last = numbered.where(F.col("number") == lookup(F.col("group"), {g: s.still for g, s in spans.items()}))
    return {row["group"]: Cut(row["rank"], row["uid"]) for row in last.collect()}


def _among_ties(ranked: DataFrame, spans: Mapping[str, _Span]) -> dict[str, Cut]:
    """The cut of each group whose many rows have one rank: ranked by the first 48 bits of the uid instead."""
    if not spans:
        return {}
    number = -F.conv(F.substring("uid", 1, 12), 16, 10).cast("double")
    cuts = find_cuts(_within(ranked, spans).withColumn("rank", number), {g: s.still for g, s in spans.items()})
    return {group: Cut(spans[group].low, cut.uid) for group, cut in cuts.items()}
