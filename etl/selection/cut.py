"""The exact cut of a ranking, at any size: two or three scans, no global sort, and only histograms are collected.

A histogram of ranks finds the bin in which the cut lies; it is refined until the bin holds few rows, and these are
sorted: the one scan that reads uids. Ties are broken by uid, so partitions and order cannot change the result. Reads
the frame it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

BINS = 1 << 14
"""Over all groups."""
REACH = 8.0
"""The first histogram's bins are of one width, from -8 to 8, so that no scan has to look for the range: scores of
cosines, draws and ranks lie there. What lies beyond is in the outermost bins, and refined where the cut is there."""
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
    counted = _counted(ranked.where(F.col("group").isin(list(wanted))), _first_bin(len(wanted)))
    spans = {group: _holding(bins, min(wanted[group], int(bins["n"].sum()))) for group, bins in counted.items()}
    while wide := {g: s for g, s in spans.items() if s.num_rows > FEW and s.low < s.high}:
        counted = _counted(_within(ranked, wide), _bin(wide))
        if {group: bins["n"].sum() for group, bins in counted.items()} != {g: s.num_rows for g, s in wide.items()}:
            raise AssertionError("other rows than counted before: the input changed under a pinned version")
        spans |= {group: _holding(bins, wide[group].still) for group, bins in counted.items()}
    few = {group: span for group, span in spans.items() if span.num_rows <= FEW}
    return _sorted(ranked, few) | _among_ties(ranked, {g: s for g, s in spans.items() if g not in few})


def lookup(group: Column, values: Mapping[str, Any]) -> Column:
    """The value of the row's group; NULL where it has none."""
    return F.element_at(F.create_map(*[F.lit(x) for item in values.items() for x in item]), group)


def _within(ranked: DataFrame, spans: Mapping[str, _Span]) -> DataFrame:
    group = F.col("group")
    low, high = (lookup(group, {g: getattr(s, side) for g, s in spans.items()}) for side in ("low", "high"))
    return ranked.where(group.isin(list(spans)) & F.col("rank").between(low, high))


def _bins_of_each(num_groups: int) -> int:
    """A power of two, of at least 64: a rank times it is exact, so that the first bins hold what their ends say."""
    return 1 << max(BINS // num_groups, 64).bit_length() - 1


def _first_bin(num_groups: int) -> Column:
    half = _bins_of_each(num_groups) // 2
    place = F.col("rank") * F.lit(half / REACH)
    return F.floor(F.greatest(F.least(place, F.lit(half - 1.0)), F.lit(-float(half))))


def _bin(spans: Mapping[str, _Span]) -> Column:
    bins, group = _bins_of_each(len(spans)), F.col("group")
    low = lookup(group, {g: s.low for g, s in spans.items()})
    width = lookup(group, {g: s.high - s.low for g, s in spans.items()})
    return F.least(F.floor((F.col("rank") - low) / width * bins), F.lit(bins - 1))


def _counted(rows: DataFrame, bin_: Column) -> dict[str, pd.DataFrame]:
    """Group -> (bin, n, low, high) of the bins that have rows."""
    counts = F.count(F.lit(1)).alias("n"), F.min("rank").alias("low"), F.max("rank").alias("high")
    found = rows.groupBy("group", bin_.alias("bin")).agg(*counts).toArrow().to_pandas()
    return dict(iter(found.groupby("group")))


def _holding(bins: pd.DataFrame, still: int) -> _Span:
    """The bin that holds the `still`-th row from above."""
    bins = bins.sort_values("bin", ascending=False)
    so_far = bins["n"].cumsum().to_numpy()
    at = int(np.searchsorted(so_far, still))
    low, high, num_rows = (bins[name].iat[at] for name in ("low", "high", "n"))
    return _Span(float(low), float(high), int(num_rows), int(still - so_far[at] + num_rows))


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
    number = -F.conv(F.substring("uid", 1, 12), 16, 10).cast("double") / F.lit(float(1 << 48))
    cuts = find_cuts(_within(ranked, spans).withColumn("rank", number), {g: s.still for g, s in spans.items()})
    return {group: Cut(spans[group].low, cut.uid) for group, cut in cuts.items()}
