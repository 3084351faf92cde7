"""Successive halving: a budget of runs spent on the candidates that look best so far. Pure arithmetic; touches nothing.

Jamieson & Talwalkar 2016 (arXiv 1502.07943, section 3), the inner loop of Hyperband (Li et al. 2018, JMLR 18(185),
algorithm 1). Their unit is an iteration of one training run; here it is a whole run under a further seed, because what
hides the better candidate is the spread over seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean


@dataclass(frozen=True)
class Rung:
    """One step: every candidate that is left gets the same further seeds, then the best go on."""

    num_candidates: int
    num_kept: int
    first: int
    """Place of its first new seed among all; so many seeds each candidate had before."""
    last: int
    """Place after its last new seed; so many seeds each candidate has at its end."""

    @property
    def num_runs(self) -> int:
        """New ones."""
        return self.num_candidates * (self.last - self.first)


@dataclass(frozen=True)
class Ranked:
    """What a rung found."""

    values: Mapping[str, Sequence[float]]
    """Candidate -> its value under each seed so far; best mean first."""
    kept: tuple[str, ...]


def sizes(num_candidates: int, eta: int) -> tuple[int, ...]:
    """Candidates at each rung, and the one that is left: n, ceil(n / eta), ... 1."""
    found = [num_candidates]
    while found[-1] > 1:
        found.append(-(-found[-1] // eta))
    return tuple(found)


def least_runs(num_candidates: int, eta: int) -> int:
    """The smallest budget: rungs share it equally, and the first one runs every candidate once."""
    return num_candidates * (len(sizes(num_candidates, eta)) - 1)


def plan(num_candidates: int, num_runs: int, num_seeds: int, eta: int = 2) -> tuple[Rung, ...]:
    """The rungs, of at most `num_runs` runs together and `num_seeds` seeds a candidate.

    Each rung gets an equal part of what is left of the budget, in whole seeds: what one cannot use is the next one's.

    Raises:
        ValueError: fewer runs than `least_runs`, or fewer seeds than rungs.
    """
    *left, last_one = sizes(num_candidates, eta)
    if num_runs < (least := least_runs(num_candidates, eta)):
        raise ValueError(f"wanted at least {least} runs for {num_candidates} candidates in {len(left)} rungs; "
                         f"found {num_runs}")  # fmt: skip
    if num_seeds < len(left):
        raise ValueError(f"wanted at least {len(left)} seeds, one a rung; found {num_seeds}")
    rungs, used = list[Rung](), 0
    for number, size in enumerate(left):
        num_after = len(left) - number - 1
        new = min(num_runs // ((num_after + 1) * size), num_seeds - used - num_after)
        rungs.append(Rung(size, (*left, last_one)[number + 1], used, used + new))
        num_runs, used = num_runs - rungs[-1].num_runs, used + new
    return tuple(rungs)


def halve(
    names: Sequence[str],
    rungs: Sequence[Rung],
    measure: Callable[[str, int], float],
    on_rung: Callable[[int, Ranked], None] = lambda *_: None,
) -> tuple[str, list[Ranked]]:
    """(the candidate that is left, what each rung found).

    Args:
        names: candidates; of equal means the one that is named first goes on.
        measure: (candidate, place of the seed) -> its value, higher is better. Asked once for each.
        on_rung: called with the number of each rung, from 0, and what it found.
    """
    values: dict[str, list[float]] = {name: [] for name in names}
    left, found = list(names), list[Ranked]()
    for number, rung in enumerate(rungs):
        for place in range(rung.first, rung.last):
            for name in left:
                values[name].append(measure(name, place))
        best_first = sorted(left, key=lambda name: -mean(values[name]))
        left = [name for name in left if name in best_first[: rung.num_kept]]
        found.append(Ranked({name: tuple(values[name]) for name in best_first}, tuple(left)))
        on_rung(number, found[-1])
    return left[0], found
