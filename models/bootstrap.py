"""How sure a difference between trained models is: over their seeds and over the items that they were evaluated on.

numpy and scipy; touches nothing. `models.gate` decides by seeds alone; here evaluation items are a sample too.

Dimensions: S seeds, I items of a part, R resamples, F filters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
Parts = Mapping[str, Floats]
"""DATASET.METRIC -> what models of every seed got on every item, shape SI; the headline is the mean over these parts of
the mean over items. Parts of one dataset are of the same items."""

RESAMPLES = 2000
HALVINGS = 100
"""Of the seeds, for a ceiling."""
LEVEL = 0.05
WEAK = 0.5
"""A rank correlation below which one quality hardly predicts another: a quarter of the variance of ranks."""


@dataclass(frozen=True)
class Estimate:
    """A quantity with its interval of 1 - LEVEL and the p-value of a one-sided test that it is above zero."""

    value: float
    low: float
    high: float
    p_value: float
    num_seeds: int
    num_items: int


def headline(parts: Parts) -> Floats:
    """Of each seed, shape S."""
    found_S: Floats = np.sum([items_SI.mean(axis=1) for items_SI in _merged(parts).values()], axis=0)
    return found_S


def num_items(parts: Parts) -> int:
    """Evaluation items, each once however many parts it has."""
    return sum(dict(sorted(_merged(parts))).values())


def _merged(parts: Parts) -> dict[tuple[str, int], Floats]:
    """(dataset, items) -> its parts of the headline added up, item by item: what is drawn together."""
    found: dict[tuple[str, int], Floats] = {}
    for name, part_SI in parts.items():
        key = (name.partition(".")[0], part_SI.shape[1])
        found[key] = found.get(key, 0.0) + part_SI / len(parts)
    return found


def resampled(conditions: Mapping[str, Parts], *, num_resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Floats]:
    """The headline of each condition over resampled seeds and items, the same draws for all, shape R.

    The two-way bootstrap for crossed samples: seeds and, within each dataset, items are drawn with replacement,
    independently (McCullagh 2000, Bernoulli 6, 285-301; Owen 2007, Annals of Applied Statistics 1, 386-411, who shows
    that its variance is not too small).

    Raises:
        ValueError: conditions of other seeds or items than one another.
    """
    merged = {name: _merged(parts) for name, parts in conditions.items()}
    shapes = {tuple((key, items_SI.shape) for key, items_SI in parts.items()) for parts in merged.values()}
    if len(shapes) != 1:
        raise ValueError(f"wanted the same seeds and items of all conditions; found {sorted(shapes)}")
    (shape,) = shapes
    num_seeds = shape[0][1][0]
    seeds_RS, *drawn = _weights((num_seeds, *(num for _, (_, num) in shape)), num_resamples, seed)
    found = {name: np.zeros(num_resamples) for name in conditions}
    for name, parts in merged.items():
        for items_RI, items_SI in zip(drawn, parts.values(), strict=True):
            found[name] += np.einsum("rs,rs->r", seeds_RS, items_RI @ items_SI.T)
    return found


@lru_cache(maxsize=4)
def _weights(sizes: tuple[int, ...], num_resamples: int, seed: int) -> list[Floats]:
    """Of samples of each size, how often each member was drawn, over the size: shape (R, size)."""
    generator = np.random.default_rng(seed)
    return [generator.multinomial(size, np.full(size, 1 / size), size=num_resamples) / size for size in sizes]


def direct_variance(parts: Parts) -> float:
    """What the variance over infinitely many resamples of `resampled` is, in closed form.

    With D = mean + a_s + b_i + e_si in each dataset, the sum over datasets of b^2 / I^2 and e^2 / (S I)^2, and of a^2 /
    S^2 of the a of all together (Owen 2007, theorem 1).
    """
    seeds_S, variance = headline(parts), 0.0
    for (_, num), items_SI in _merged(parts).items():
        mean, own_S, own_I = items_SI.mean(), items_SI.mean(axis=1), items_SI.mean(axis=0)
        rest_SI = items_SI - own_S[:, None] - own_I + mean
        variance += ((own_I - mean) ** 2).sum() / num**2 + (rest_SI**2).sum() / (len(own_S) * num) ** 2
    return float(variance + ((seeds_S - seeds_S.mean()) ** 2).sum() / len(seeds_S) ** 2)


def estimate(value: float, resampled_R: Floats, *, num_seeds: int, num_items: int) -> Estimate:
    """A statistic with what it is over resamples of `resampled`.

    The interval is value ± t x standard error, t of Student's distribution with seeds - 1 degrees; the error is that of
    the resamples times sqrt(S / (S - 1)), since few seeds make a bootstrap too narrow by that (Hesterberg 2015, The
    American Statistician 69, 371-386, section 3). Without any spread p is 0 or 1.
    """
    if num_seeds < 2:
        return Estimate(value, -inf, inf, 1.0, num_seeds, num_items)
    error = float(resampled_R.std(ddof=1)) * sqrt(num_seeds / (num_seeds - 1))
    half = float(stats.t.ppf(1 - LEVEL / 2, num_seeds - 1)) * error
    p_value = float(stats.t.sf(value / error, num_seeds - 1)) if error > 0 else float(value <= 0)
    return Estimate(value, value - half, value + half, p_value, num_seeds, num_items)


def difference(better: Parts, worse: Parts, *, num_resamples: int = RESAMPLES) -> Estimate:
    """The headline of one condition less that of another, paired by seed and item; p: that it is above zero."""
    apart = {name: better[name] - worse[name] for name in better}
    drawn_R = resampled({"apart": apart}, num_resamples=num_resamples)["apart"]
    of_seeds_S = headline(apart)
    return estimate(float(of_seeds_S.mean()), drawn_R, num_seeds=len(of_seeds_S), num_items=num_items(apart))


def paired(values: Sequence[float]) -> Estimate:
    """Of differences by seed alone: Student's paired t-test, for what has no items, such as a precision."""
    values_S = np.asarray(values, np.float64).round(12)
    if len(values_S) < 2:
        return Estimate(float(values_S.mean()), -inf, inf, 1.0, len(values_S), 0)
    error = float(values_S.std(ddof=1)) / sqrt(len(values_S)) if np.ptp(values_S) > 0 else 0.0
    half, mean = float(stats.t.ppf(1 - LEVEL / 2, len(values_S) - 1)) * error, float(values_S.mean())
    p_value = float(stats.t.sf(mean / error, len(values_S) - 1)) if error > 0 else float(mean <= 0)
    return Estimate(mean, mean - half, mean + half, p_value, len(values_S), 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order (Holm 1979, Scandinavian Journal of Statistics 6, 65-70):
    each is at most `level` with probability `level` for all true nulls together, however they depend on one another."""
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho over filters, between the means over seeds of two qualities."""

    rho: float
    low: float
    high: float
    """95 % over resampled filters."""
    ceiling: float
    """The mean rho of the second quality with itself, on two halves of the seeds: what noise leaves to be found."""
    p_value: float
    """Of the null that rho is WEAK or more: the share of resamples in which it is."""
    num_filters: int


def rank_correlation(
    own_FS: Floats, induced_FS: Floats, *, num_resamples: int = RESAMPLES, seed: int = 0
) -> RankCorrelation:
    """Whether one quality of filters predicts another. Columns are seeds, at least 2."""
    generator, num_filters, num_seeds = np.random.default_rng(seed), *own_FS.shape
    own_F, induced_F = own_FS.mean(axis=1), induced_FS.mean(axis=1)
    rows_RF = generator.integers(num_filters, size=(num_resamples, num_filters))
    drawn = _spearman(own_F[rows_RF], induced_F[rows_RF])
    orders_HS = generator.permuted(np.tile(np.arange(num_seeds), (HALVINGS, 1)), axis=1)
    halves = np.split(orders_HS[:, : num_seeds // 2 * 2], 2, axis=1)
    ceiling = float(_spearman(*(induced_FS[:, half_HS].mean(axis=2).T for half_HS in halves)).mean())
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    p_value = float(1 + (drawn >= WEAK).sum()) / (1 + num_resamples)
    rho = float(_spearman(own_F[None], induced_F[None])[0])
    return RankCorrelation(rho, float(low), float(high), ceiling, p_value, num_filters)


def _spearman(first_RF: Floats, second_RF: Floats) -> Floats:
    """Of each row, shape R; 0 where a side is constant."""
    ranks = [stats.rankdata(side_RF, axis=1) for side_RF in (first_RF, second_RF)]
    first, second = (side_RF - side_RF.mean(axis=1, keepdims=True) for side_RF in ranks)
    sizes_R = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    found_R: Floats = (first * second).sum(axis=1) / np.where(sizes_R > 0, sizes_R, np.inf)
    return found_R
