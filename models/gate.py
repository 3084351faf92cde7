"""The gate before the alias `champion`: better beyond noise, by the models that filters induce. Touches nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

MIN_SEEDS = 3  # fewer differences give no idea of the noise


@dataclass(frozen=True)
class GateDecision:
    """What the gate found. The numbers are of the induced models, in the metric's unit."""

    is_better: bool
    mean_difference: float
    p_value: float | None
    num_seeds: int
    level: float
    reason: str


def gate(challenger: Sequence[float], baseline: Sequence[float], *, level: float = 0.05) -> GateDecision:
    """Whether the challenger's induced models are better than the baseline's beyond noise.

    One-sided paired t-test (Student 1908) over seeds: entry i of both sides shares seed i. What is compared are the
    models that the filters induce; a filter's own accuracy is never an input (arXiv 2309.17425, figure 3).

    Args:
        level: the p value below which the difference counts.

    Raises:
        ValueError: unpaired values, or values that are not finite.
    """
    if len(challenger) != len(baseline) or not np.isfinite([*challenger, *baseline]).all():
        raise ValueError(f"wanted a finite value of both for every seed; found {list(challenger)} and {list(baseline)}")
    # Rounded, so that what is equal but for the last bits of a float has no spread.
    difference_N = np.round(np.subtract(challenger, baseline, dtype=np.float64), 12)
    num_seeds = len(difference_N)
    mean = float(difference_N.mean()) if num_seeds else 0.0
    if num_seeds < MIN_SEEDS:
        reason = f"{num_seeds} seeds: wanted at least {MIN_SEEDS} to tell a difference from noise"
        return GateDecision(False, mean, None, num_seeds, level, reason)
    p_value = 0.0 if mean > 0 else 1.0  # without any spread, by which the t-test divides
    if np.ptp(difference_N) > 0:
        p_value = float(stats.ttest_1samp(difference_N, 0, alternative="greater").pvalue)
    is_better = p_value < level
    verdict = "better beyond noise" if is_better else f"not better at the level of {level:g}"
    reason = f"mean difference {mean:+.4f} over {num_seeds} seeds, p = {p_value:.2g}: {verdict}"
    return GateDecision(is_better, mean, p_value, num_seeds, level, reason)
