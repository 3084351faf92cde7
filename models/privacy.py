"""Does a filter give away which pairs it was trained on? Membership inference by twins of it. numpy and scipy.

Twins are filters of the same recipe, each trained on a random half of the dataset: of every pair it is known under
which of them it was a member. An attacker who sees a pair's score guesses "member" where it is high; the area under the
curve of that guess is .5 where membership does not show. The stronger attack subtracts what the pair scores under
filters that never saw it, since some pairs are easy for every filter (Watson et al. 2022, arXiv 2111.08440).

Dimensions: N pairs, K twins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEVEL = 0.05
MIN_TWINS = 4
"""Below that no pair has been left out twice, and two couples at least tell a spread."""


@dataclass(frozen=True)
class Auc:
    """The area under an attack's curve: the chance that a member scores higher than another pair. With its 95 %
    interval over couples of twins."""

    value: float
    low: float
    high: float

    @property
    def shows(self) -> bool:
        """Whether membership shows: the interval lies above chance."""
        return self.low > 0.5

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Leak:
    """What attackers find out of N pairs."""

    by_score: Auc
    """Who sees the score alone."""
    calibrated: Auc
    """Who also knows what the pair scores under filters of the same recipe that never saw it."""
    num_pairs: int
    num_twins: int


def halves(num_pairs: int, num_twins: int, *, seed: int = 0) -> Flags:
    """Which pairs each twin is trained on: bool, shape KN. Twins 2k and 2k + 1 are a couple: one has what the other
    lacks, so that every pair is a member of half of them.

    Raises:
        ValueError: an odd number of twins, fewer than MIN_TWINS, or fewer than two pairs for each half.
    """
    if num_twins < MIN_TWINS or num_twins % 2:
        raise ValueError(f"wanted an even number of twins, {MIN_TWINS} or more; found {num_twins}")
    if num_pairs < 4:
        raise ValueError(f"wanted four pairs or more; found {num_pairs}")
    generator = np.random.default_rng(seed)
    firsts = [generator.permutation(num_pairs) < num_pairs // 2 for _ in range(num_twins // 2)]
    return np.stack([half_N for first_N in firsts for half_N in (first_N, ~first_N)])


def auc(scores_N: Floats, is_member_N: Flags) -> float:
    """The chance that a member's score is above another pair's, ties as half (Mann and Whitney's U).

    Raises:
        ValueError: no member, none but members, or a score that is not finite.
    """
    num_members = int(is_member_N.sum())
    num_others = len(scores_N) - num_members
    if not num_members or not num_others:
        raise ValueError(f"wanted scores of members and others; found {num_members} and {num_others}")
    if not np.isfinite(scores_N).all():
        raise ValueError(f"wanted finite scores; found {int((~np.isfinite(scores_N)).sum())} that are not")
    ranks_N = stats.rankdata(scores_N)
    return float((ranks_N[is_member_N].sum() / num_members - (num_members + 1) / 2) / num_others)


def leak(scores_KN: Floats, is_member_KN: Flags) -> Leak:
    """Both attacks on every twin. `is_member_KN` is that of `halves`; see there for what it raises."""
    num_twins, num_pairs = scores_KN.shape
    outside_KN = np.where(is_member_KN, 0.0, scores_KN)
    # The other twins that lacked the pair: a twin is no judge of itself.
    usual_KN = (outside_KN.sum(axis=0) - outside_KN) / ((~is_member_KN).sum(axis=0) - ~is_member_KN)
    return Leak(
        _over_couples(scores_KN, is_member_KN), _over_couples(scores_KN - usual_KN, is_member_KN), num_pairs, num_twins
    )


def _over_couples(scores_KN: Floats, is_member_KN: Flags) -> Auc:
    """Twins of a couple share out one dataset: the couple is what was drawn, and Student's t counts couples."""
    each_K = [auc(*row) for row in zip(scores_KN, is_member_KN, strict=True)]
    couples = np.reshape(each_K, (-1, 2)).mean(axis=1)
    half = stats.t.ppf(1 - LEVEL / 2, len(couples) - 1) * couples.std(ddof=1) / sqrt(len(couples))
    return Auc(float(couples.mean()), float(couples.mean() - half), float(couples.mean() + half))
