"""The gate before the alias `champion`: better beyond noise, by the models that filters induce. Touches nothing.

Sequential: it may look several times, at a corrected level, and end early on a clear win or a clear loss. What was won
at a smaller scale, a proxy, is confirmed by one run of each side at the target scale.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

MIN_SEEDS = 3  # fewer differences give no idea of the noise
Values = Mapping[str, Mapping[int, float]]
"""metric -> seed -> value of the model that was induced under this seed."""


@dataclass(frozen=True)
class Spread:
    """How much induced models of one arm differ by their seed alone, from earlier runs."""

    std: float
    """Of one model's value, in the metric's unit."""
    degrees: int
    """Degrees of freedom."""
    source: str
    """Which runs, in words."""


@dataclass(frozen=True)
class GateRule:
    """What a challenger must show."""

    metric: str
    level: float = 0.05
    """Of all looks together."""
    guards: Mapping[str, float] = field(default_factory=dict)
    """Metric -> the most that its mean may fall by, in its unit."""
    looks: tuple[int, ...] = (MIN_SEEDS,)
    """Numbers of seeds after which the gate looks, rising; after the last one it decides."""

    @property
    def level_at_a_look(self) -> float:
        """Bonferroni's: level / looks. Under the null the chance that any of K looks passes is then at most `level`,
        however the looks depend on one another and however few seeds they have (Dunn 1961, JASA 56, 52-64). Pocock's
        constants (1977, Biometrika 64, 191-199) are less strict, but hold for a known spread only."""
        return self.level / len(self.looks)


@dataclass(frozen=True)
class GateDecision:
    """What the gate found. The numbers are of the induced models, in the metric's unit."""

    outcome: Literal["win", "loss", "open"]
    """open: more seeds are wanted."""
    mean_difference: float
    p_value: float | None
    """One-sided, for a challenger that is better."""
    num_seeds: int
    level: float
    """At this look."""
    guards: Mapping[str, float]
    """Guarded metric -> mean difference."""
    reason: str

    @property
    def is_better(self) -> bool:
        return self.outcome == "win"


def gate(challenger: Values, champion: Values, rule: GateRule, *, is_last: bool = True,
         spread: Spread | None = None) -> GateDecision:  # fmt: skip
    """Whether the challenger's induced models are better than the champion's beyond noise, and no guard fell.

    One-sided paired t-test (Student 1908) over the seeds that both have. With fewer than MIN_SEEDS of them the spread
    is that of earlier runs: t = mean difference / (std sqrt(2 / seeds)), which leaves out what pairing would gain. A
    clear loss is the same test the other way. What is compared are the models that the filters induce; a filter's own
    accuracy is never an input (arXiv 2309.17425, figure 3).

    Args:
        is_last: no more seeds will come: what is not a win is a loss.
        spread: from `pooled`; not used where there are MIN_SEEDS seeds.

    Raises:
        ValueError: a metric that one side lacks, or values that are not finite.
    """
    difference_N = _differences(challenger, champion, rule.metric)
    guards = {name: _mean(_differences(challenger, champion, name)) for name in rule.guards}
    num_seeds, mean, level = len(difference_N), _mean(difference_N), rule.level_at_a_look
    tested = _p_values(difference_N, spread)
    if tested is None:
        wanted = f"wanted at least {MIN_SEEDS}, or earlier runs of this scale, to tell a difference from noise"
        reason = f"{num_seeds} seeds: {wanted}"
        return GateDecision("loss" if is_last else "open", mean, None, num_seeds, level, guards, reason)
    p_better, p_worse = tested
    fallen = [name for name, most in rule.guards.items() if guards[name] < -most]
    if p_better < level and not fallen:
        outcome, verdict = "win", "better beyond noise"
    elif p_worse < level:
        outcome, verdict = "loss", "worse beyond noise"
    else:
        outcome, verdict = "loss" if is_last else "open", f"not better at the level of {level:g}"
    if p_better < level and fallen:
        falls = ", ".join(f"{name} {guards[name]:+.4f} (at most -{rule.guards[name]:g})" for name in fallen)
        verdict = f"better beyond noise, but a guarded metric fell: {falls}"
    source = f", spread of {spread.source}" if spread and num_seeds < MIN_SEEDS else ""
    look = f", a look of {len(rule.looks)} at the level of {level:.3g} each" if len(rule.looks) > 1 else ""
    reason = f"mean difference {mean:+.4f} over {num_seeds} seeds, p = {p_better:.2g}{source}{look}: {verdict}"
    return GateDecision(outcome, mean, p_better, num_seeds, level, guards, reason)  # type: ignore[arg-type]


def confirm(
    won: GateDecision, challenger: Values, champion: Values, rule: GateRule, spread: Spread | None
) -> GateDecision:
    """A win at the proxy's scale, held against runs at the target's: a loss where these do not agree with it.

    They agree where the challenger is better at the level of all looks, by the test of `gate` with the spread of
    earlier runs at the target scale. Where there are none, nothing tells the noise of one run: then its sign decides,
    and the reason says so. Guards hold at the target scale too.

    Args:
        won: at the proxy's scale; its numbers are kept.
        challenger, champion: at the target's, under the same seeds.

    Raises:
        ValueError: as `gate`, or no seed that both have.
    """
    found = gate(challenger, champion, replace(rule, looks=(1,)), spread=spread)
    if not found.num_seeds:
        raise ValueError("wanted a run of both at the target scale under one seed; found none")
    fallen = [name for name, most in rule.guards.items() if found.guards[name] < -most]
    how = f"p = {found.p_value:.2g}, spread of {spread.source}" if spread else "no earlier runs to tell its noise"
    is_better = found.is_better if spread else found.mean_difference > 0 and not fallen
    verdict = "confirmed" if is_better else "not confirmed" + (f", {', '.join(fallen)} fell" if fallen else "")
    reason = (f"{won.reason}, at the proxy scale; at the target scale {found.mean_difference:+.4f} over "
              f"{found.num_seeds} run each, {how}: {verdict}")  # fmt: skip
    return replace(won, outcome="win" if is_better else "loss", reason=reason)


def pooled(groups: Iterable[Sequence[float]], source: str) -> Spread | None:
    """The spread within groups of runs that differ by their seed alone: sum of squares about each group's mean over
    sum (n - 1). None below two degrees of freedom, which say next to nothing.

    Args:
        groups: values of one metric.
        source: what they are; the number of runs and of groups is added.
    """
    usable = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in usable)
    if degrees < MIN_SEEDS - 1:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in usable)
    num_runs = sum(len(group) for group in usable)
    std = sqrt(squares / degrees)
    return Spread(std, degrees, f"{num_runs} {source} in {len(usable)} groups, std {std:.4f}")


def _differences(challenger: Values, champion: Values, metric: str) -> NDArray[np.float64]:
    """Of the seeds that both have. Rounded, so that what is equal but for the last bits of a float has no spread."""
    if lacking := [side for side, values in (("challenger", challenger), ("champion", champion))
                   if metric not in values]:  # fmt: skip
        raise ValueError(f"wanted {metric} of both; found none of the {lacking[0]}")
    seeds = sorted(challenger[metric].keys() & champion[metric].keys())
    sides = [[float(values[metric][seed]) for seed in seeds] for values in (challenger, champion)]
    if not np.isfinite(sides).all():
        raise ValueError(f"wanted a finite {metric} of both for every seed; found {sides[0]} and {sides[1]}")
    difference_N: NDArray[np.float64] = np.subtract(sides[0], sides[1], dtype=np.float64)
    return difference_N.round(12)


def _mean(values_N: NDArray[np.float64]) -> float:
    return float(values_N.mean()) if len(values_N) else 0.0


def _p_values(difference_N: NDArray[np.float64], spread: Spread | None) -> tuple[float, float] | None:
    """(that the challenger is better, that it is worse), one-sided; None where nothing tells the noise."""
    num_seeds, mean = len(difference_N), _mean(difference_N)
    if num_seeds >= MIN_SEEDS:
        std, degrees = float(difference_N.std(ddof=1)) if np.ptp(difference_N) > 0 else 0.0, num_seeds - 1
    elif spread and num_seeds:
        std, degrees = spread.std * sqrt(2), spread.degrees
    else:
        return None
    if not std:  # without any spread, by which the t-test divides
        return float(mean <= 0), float(mean >= 0)
    t: Any = mean / (std / sqrt(num_seeds))
    return float(stats.t.sf(t, degrees)), float(stats.t.cdf(t, degrees))
