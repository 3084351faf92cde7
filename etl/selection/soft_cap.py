"""Soft-cap sampling: pairs drawn with repeats by softmax of their scores, each draw a penalty on the next. Reads the
frame it is given.

Shechter and Carmon 2025 (arXiv 2503.08805; `soft_cap_sampling` of formll/FLYT): until N samples are drawn, draw by
softmax(s) and take the penalty off the score s of what was drawn; they draw 100,000 at a time, each pair at most once,
here it is one at a time. Draws in turn do not scale; this does: let pair i be drawn the (k+1)th time after a wait that
is exponential with rate exp(s_i - penalty * k), of each pair by itself. Of such waits the next to end is pair i's with
probability softmax(s - penalty * k)_i, and they forget how long they ran; so the order in which all pairs' draws come
is that of draws in turn (Athreya and Karlin 1968, Ann. Math. Stat. 39), and N samples are the N earliest draws: a cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.selection.cut import Cut, find_cuts, lookup
from etl.stage import StageConfig, UserError, series_udf

Array = np.ndarray[Any, Any]
WIDEST = 1e30
"""Logits beyond are taken for this: ranks are single precision."""
FEW = 100_000
"""Pairs from which it is told how low ranks will be looked at."""


class SoftCap(StageConfig):
    samples: float = pydantic.Field(default=1.0, gt=0)
    """Drawn, as a multiple of the eligible pairs; 1.0 in the paper, where the pool is as large as the samples seen."""
    penalty: float = pydantic.Field(default=0.15, ge=0)
    """Off the logit for each draw: 0.15 in the paper. 0: a hard cap alone."""
    repeats: int = pydantic.Field(default=100, gt=0)
    """Of one pair at most: the hard cap."""
    logit_scale: float = pydantic.Field(default=1.0, gt=0)
    """Logit = this times the score. 1 is for scores that are logits, as FLYT's; cosines want what a CLIP has, 100."""


def mix(state: Array) -> Array:
    """uint64 to uint64: the finalizer of splitmix64 (Steele, Lea and Flood 2014, OOPSLA)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = state ^ (state >> np.uint64(31))
    return mixed


def draws(drawn_N: Array, scores_N: Array, floors_N: Array, cap: SoftCap) -> tuple[Array, Array]:
    """(rows_K, ranks_K): of all draws that are not below their pair's floor, first draws first, the pair and the rank.

    A rank is -log of when the draw comes, float32 (so that the last bits of a machine's logarithms change nothing);
    each of a pair is below the one before.

    Args:
        drawn_N: a number in [0, 1) of each pair, from which all its waits follow.
        scores_N: NaN has no draws.
    """
    seeds_N = mix((drawn_N * 2.0**52).astype(np.uint64))
    logits_N = np.clip(scores_N * cap.logit_scale, -WIDEST, WIDEST)
    rows_M = np.arange(len(logits_N))
    log_times_M, last_M = np.full(len(rows_M), -np.inf), np.full(len(rows_M), np.inf, np.float32)
    found = [(rows_M[:0], last_M[:0])]
    for k in range(cap.repeats):
        state_M = mix(seeds_N[rows_M] + np.uint64((k + 1) * 0x9E3779B97F4A7C15 % 2**64))
        waits_M = -np.log(((state_M >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
        log_times_M = np.logaddexp(log_times_M, np.log(waits_M) + cap.penalty * k)
        rounded_M = (logits_N[rows_M] - log_times_M).astype(np.float32)
        ranks_M = np.minimum(rounded_M, np.nextafter(last_M, np.float32(-np.inf)))
        is_in_M = ranks_M >= floors_N[rows_M]
        rows_M, log_times_M, last_M = rows_M[is_in_M], log_times_M[is_in_M], ranks_M[is_in_M]
        if not len(rows_M):
            break
        found.append((rows_M, last_M))
    return np.concatenate([rows for rows, _ in found]), np.concatenate([ranks for _, ranks in found])


def num_draws(drawn: Column, floor: Column, cap: SoftCap) -> Column:
    """How many draws of a row with `rank`, its score, are not below the floor; of NULLs 0."""

    def count(batches: Iterator[tuple[pd.Series, pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        for batch in batches:
            columns = [series.to_numpy(np.float64, na_value=np.nan) for series in batch]
            yield pd.Series(np.bincount(draws(*columns, cap=cap)[0], minlength=len(columns[0])))  # type: ignore[misc]

    # Python: a running sum that ends where it falls below the floor, which SQL's functions over arrays cannot.
    return series_udf(count, "int")(drawn, F.col("rank"), floor)


def _every_draw(ranked: DataFrame, drawn: Column, floors: Mapping[str, float], cap: SoftCap) -> DataFrame:
    """(group, rank, uid) of the draws that are not below their group's floor."""

    def listed(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            columns = (batch[name].to_numpy(np.float64) for name in ("drawn", "rank", "floor"))
            rows_K, ranks_K = draws(*columns, cap=cap)  # type: ignore[misc]
            yield batch[["group", "uid"]].iloc[rows_K].assign(rank=ranks_K.astype(np.float64))

    columns = [drawn.alias("drawn"), lookup(F.col("group"), floors).alias("floor")]
    # Python: as above, and most rows have no draw so early.
    every = ranked.select("group", "uid", "rank", *columns).mapInPandas(listed, "group string, uid string, rank double")
    return every.select("group", "rank", "uid")


def find_soft_cuts(ranked: DataFrame, drawn: Column, num_samples: Mapping[str, int], cap: SoftCap) -> dict[str, Cut]:
    """The last draw of each group.

    Args:
        ranked: group, rank (double: the score), uid.
        num_samples: group -> how many are drawn. Raises UserError where that is more than the pairs have.
    """
    wanted = {group: num for group, num in num_samples.items() if num}
    if not wanted:
        return {}
    ranked = ranked.where(F.col("group").isin(list(wanted)))
    sizes = {row["group"]: row["count"] for row in ranked.groupBy("group").count().collect()}
    if short := [group for group, num in wanted.items() if num > sizes[group] * cap.repeats]:
        most = sum(sizes[group] for group in short) * cap.repeats
        raise UserError(f"soft_cap: wanted {sum(wanted[g] for g in short):,} samples; found pairs for {most:,}; "
                        "fix: more repeats or fewer samples")  # fmt: skip
    few = ranked.where(drawn <= min(1.0, FEW / sum(sizes.values()))).select("group", "rank", drawn.alias("drawn"))
    sample: pd.DataFrame = few.toPandas()
    shares, lacking = {group: num / sizes[group] for group, num in wanted.items()}, set(wanted)
    floors: dict[str, float] = {}
    for more in (1.05, 1.5, 5.0, math.inf):  # Wide enough the first time, but for bad luck with the sample.
        floors |= {group: _floor(sample[sample["group"] == group], shares[group] * more, cap) for group in lacking}
        counted = ranked.select("group", num_draws(drawn, lookup(F.col("group"), floors), cap).alias("n"))
        rows = counted.groupBy("group").agg(F.sum("n").alias("n")).collect()
        if not (lacking := {row["group"] for row in rows if row["n"] < wanted[row["group"]]}):
            break
    return find_cuts(_every_draw(ranked, drawn, floors, cap), wanted)


def _floor(sample: pd.DataFrame, draws_per_pair: float, cap: SoftCap) -> float:
    """The rank above which the pairs of a sample have that many draws each, on average."""
    scores_N = sample["rank"].to_numpy(np.float64)
    if not draws_per_pair * len(scores_N) < cap.repeats * len(scores_N):
        return -math.inf
    _, ranks_K = draws(sample["drawn"].to_numpy(np.float64), scores_N, np.full(len(scores_N), -np.inf), cap)
    return float(-np.sort(-ranks_K)[math.floor(draws_per_pair * len(scores_N))])


def num_repeats(drawn: Column, cuts: Mapping[str, tuple[float, str]], cap: SoftCap) -> Column:
    """How often a row with `group`, `rank` and `uid` is drawn up to its group's last draw; 0 of a group without."""
    group, above = F.col("group"), {g: float(np.nextafter(np.float32(rank), np.inf)) for g, (rank, _) in cuts.items()}
    is_first = F.col("uid") <= lookup(group, {g: uid for g, (_, uid) in cuts.items()})  # of those of one rank
    floor = F.when(is_first, lookup(group, {g: rank for g, (rank, _) in cuts.items()})).otherwise(lookup(group, above))
    return num_draws(drawn, floor, cap)
