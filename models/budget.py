"""Which share of a pool pays at a budget: the law of Goyal et al. 2024 (arXiv 2404.07177), fitted to induced models.

The error after n samples of a set of N pairs is a n_1^-b prod_j (n_j / n_(j-1))^(-b 2^(-(j-1) / tau)) + d, where n_j is
the number of samples at the end of the j-th pass over the set, and n at the end of an unfinished one: what a pair
teaches halves every tau passes. As there, a and d belong to the metric and b to each share. One tau serves all shares
(theirs has one each), so that fewer runs are enough. Touches nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares  # type: ignore[import-untyped]

SPARE_POINTS = 2
"""Points more than parameters: fewer fit anything."""
TAUS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
FLOORS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.98)
"""Of the lowest error: where fits for d begin. Grid first, as the authors do, since the surface has local minima."""


@dataclass(frozen=True)
class Point:
    """The mean error of the models that one share induced at one budget."""

    share: float
    """Of the eligible pairs, in (0, 1]."""
    num_pairs: int
    samples_seen: int
    error: float
    """1 - metric, in (0, 1]."""


@dataclass(frozen=True)
class Law:
    """The fitted law."""

    a: float
    d: float
    tau: float
    b: dict[float, float]
    """share -> utility"""
    largest_residual: float
    """In the metric's unit, over the points that it was fitted to."""

    def error(self, share: float, num_pairs: int, samples_seen: int) -> float:
        """Of a model that sees `samples_seen` samples of the share."""
        return self.a * math.exp(-self.b[share] * useful_passes(num_pairs, samples_seen, self.tau)) + self.d


def useful_passes(num_pairs: int, samples_seen: int, tau: float) -> float:
    """ln n_1 + sum_j 2^(-(j-1) / tau) ln(n_j / n_(j-1)): the exponent's other factor than -b."""
    if samples_seen <= num_pairs:
        return math.log(samples_seen)
    # After so many passes, a further one adds nothing that a float would feel.
    num_whole = min(samples_seen // num_pairs, math.ceil(60 * tau))
    passes = np.arange(2, num_whole + 1)
    found = math.log(num_pairs) + float(np.sum(0.5 ** ((passes - 1) / tau) * np.log(passes / (passes - 1))))
    return found + math.pow(0.5, num_whole / tau) * math.log(samples_seen / (num_whole * num_pairs))


def usable(points: Sequence[Point]) -> list[Point]:
    """Those of shares that were tried at two budgets or more: of the others b cannot be told from a."""
    budgets: dict[float, set[int]] = {}
    for point in points:
        budgets.setdefault(point.share, set()).add(point.samples_seen)
    return [point for point in points if len(budgets[point.share]) > 1]


def lacking(points: Sequence[Point]) -> str | None:
    """Why these are too few for a fit; None where they are enough."""
    there = usable(points)
    shares = {point.share for point in there}
    if len(shares) < 2:
        return f"wanted two shares, each at two budgets or more; found {len(shares)}"
    if len(there) < (wanted := 3 + len(shares) + SPARE_POINTS):
        return f"wanted {wanted} pairs of a share and a budget, for {len(shares)} shares; found {len(there)}"
    if not any(point.samples_seen > point.num_pairs for point in there):
        return "wanted a run that sees its pairs more than once; found none"
    return None


def fit(points: Sequence[Point]) -> Law:
    """Least squares, begun from each point of a grid. Deterministic.

    Raises:
        ValueError: too few points, see `lacking`.
    """
    if reason := lacking(points):
        raise ValueError(reason)
    there = usable(points)
    shares = sorted({point.share for point in there})
    share_N = np.array([shares.index(point.share) for point in there])
    error_N = np.array([point.error for point in there])

    def passes(tau: float) -> NDArray[np.float64]:
        return np.array([useful_passes(point.num_pairs, point.samples_seen, tau) for point in there])

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        log_a, d, log_tau = x[:3]
        found_N: NDArray[np.float64] = np.exp(log_a - x[3:][share_N] * passes(math.exp(log_tau))) + d - error_N
        return found_N

    low = [-50.0, 0.0, math.log(TAUS[0] / 4), *[0.0] * len(shares)]
    high = [50.0, float(error_N.min()), math.log(TAUS[-1] * 4), *[50.0] * len(shares)]
    fits = []
    for tau in TAUS:
        for floor in FLOORS:
            d = floor * float(error_N.min())
            log_a, slopes = _given(passes(tau), share_N, np.log(np.maximum(error_N - d, 1e-9)), len(shares))
            start = np.clip([log_a, d, math.log(tau), *slopes], low, high)
            fits.append(least_squares(residuals, start, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-12))
    best = min(fits, key=lambda found: float(found.cost))
    log_a, d, log_tau, *b = (float(value) for value in best.x)
    worst = float(np.abs(best.fun).max())
    return Law(math.exp(log_a), d, math.exp(log_tau), dict(zip(shares, b, strict=True)), worst)


def _given(passes_N: NDArray[np.float64], share_N: NDArray[np.int64], log_N: NDArray[np.float64],
           num_shares: int) -> tuple[float, list[float]]:  # fmt: skip
    """With d and tau given the law is linear: ln(y - d) = ln a - b_share * passes."""
    columns = np.zeros((len(log_N), 1 + num_shares))
    columns[:, 0] = 1
    columns[np.arange(len(log_N)), 1 + share_N] = -passes_N
    solved = np.linalg.lstsq(columns, log_N, rcond=None)[0]
    return float(solved[0]), [float(value) for value in solved[1:]]


def forecast_miss(points: Sequence[Point]) -> float | None:
    """The largest error of a forecast for the largest budget from all smaller ones; None where those are too few."""
    there = usable(points)
    largest = max(point.samples_seen for point in there)
    before = [point for point in there if point.samples_seen < largest]
    if lacking(before):
        return None
    law = fit(before)
    asked = [p for p in there if p.samples_seen == largest and p.share in law.b]
    return max(abs(law.error(p.share, p.num_pairs, p.samples_seen) - p.error) for p in asked) if asked else None
