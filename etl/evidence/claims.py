"""What the cells of an experiment say of a claim of the paper, pool by pool. Pure: results in, verdicts out.

Every claim is a list of steps, each a difference that must be above zero (or not below). Their p-values are corrected
(Holm) for the number of steps of the claim on all pools together. What decides is written here, before any run.

Dimensions: S seeds, I items of a part, F filters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from etl.evidence.experiments import CONTROLS, RIVALS
from models.bootstrap import (
    WEAK,
    Estimate,
    Parts,
    RankCorrelation,
    difference,
    estimate,
    headline,
    holm,
    num_items,
    paired,
    rank_correlation,
    resampled,
)

VALID_LEVEL = 0.01
"""At which a rival must be more precise than chance on a pool that gives rivals something to catch."""
MIN_SPAN = 2.0
"""Of figure 3: the best filter's own accuracy over the worst one's."""


@dataclass(frozen=True)
class Runs:
    """The finished cells of an experiment on one pool."""

    parts: Mapping[str, Parts]
    """Arm -> what its models got, item by item."""
    dev: Mapping[str, list[float]]
    """Arm -> its seeds' metric on the development set."""
    precision: Mapping[str, list[float]]
    """Arm -> share of kept pairs without planted noise; empty where none was planted."""
    chance: float
    """Of the headline."""

    def mean(self, arm: str) -> float:
        return float(headline(self.parts[arm]).mean())


@dataclass(frozen=True)
class Step:
    """One comparison. `must`: above zero for the claim, or, if it is `not_below`, not below it beyond noise."""

    pool: str
    name: str
    estimate: Estimate
    must: Literal["above", "not_below"] = "above"
    p_corrected: float = 1.0

    @property
    def p_value(self) -> float:
        return self.estimate.p_value if self.must == "above" else 1 - self.estimate.p_value


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how it is decided here."""

    text: str
    steps: Callable[[str, Runs], list[Step]]
    level: float = 0.05
    needs: Literal["all", "any", "both_places"] = "all"
    """Of the steps that must be above zero."""

    def verdict(self, steps: Sequence[Step]) -> tuple[bool, Step]:
        """Whether it holds, and the step that decides."""
        above = [step for step in steps if step.must == "above"]
        passes = {step.name: step.p_corrected < self.level for step in above}
        by_p = sorted(above, key=lambda step: (step.p_corrected, -step.estimate.value))
        if self.needs == "any":
            return any(passes.values()), by_p[0]
        if self.needs == "both_places":  # figure 4: at one share of dirt, from outside the pool and in the control
            shares = dict.fromkeys(step.name.partition(":")[2] for step in above)
            pairs = [[step for step in above if step.name.partition(":")[2] == share] for share in shares]
            worst = [max(pair, key=lambda step: step.p_corrected) for pair in pairs]
            best = min(worst, key=lambda step: step.p_corrected)
            return passes[best.name], best
        is_below = any(step.p_corrected < self.level for step in steps if step.must == "not_below")
        return all(passes.values()) and not is_below, by_p[-1]


def _apart(pool: str, runs: Runs, better: str, worse: str, must: Any = "above") -> Step:
    return Step(pool, f"{better} - {worse}", difference(runs.parts[better], runs.parts[worse]), must)


def table1_steps(pool: str, runs: Runs) -> list[Step]:
    above = [_apart(pool, runs, "dfn", arm) for arm in (*CONTROLS, *RIVALS)]
    return above + [_apart(pool, runs, rival, "whole_pool", "not_below") for rival in RIVALS]


def sweep_steps(pool: str, runs: Runs) -> list[Step]:
    """The inner fraction that the development set prefers, against both ends."""
    fractions = sorted(runs.parts, key=float)
    best = max(fractions[1:-1], key=lambda arm: float(np.mean(runs.dev[arm])))
    return [_apart(pool, runs, best, end) for end in (fractions[0], fractions[-1])]


def scarce_steps(pool: str, runs: Runs) -> list[Step]:
    return [_apart(pool, runs, arm, f"own:{arm}") for arm in runs.parts if not arm.startswith("own:")]


def table2_steps(pool: str, runs: Runs) -> list[Step]:
    return [_apart(pool, runs, "tuned", arm) for arm in ("before", "joint")]


def beyond_steps(pool: str, runs: Runs) -> list[Step]:
    return [_apart(pool, runs, arm, "dfn") for arm in runs.parts if arm != "dfn"]


def figure4_steps(pool: str, runs: Runs) -> list[Step]:
    """Of the above-chance share that is left with dirt: the filter's own less the induced model's."""
    named = [arm for arm in runs.parts if arm.startswith(("outside:", "inside_left_out:"))]
    steps = []
    for arm in named:
        used = {name: runs.parts[name] for name in (arm, f"own:{arm}", "0", "own:0")}
        points = {name: np.array([headline(parts).mean()]) for name, parts in used.items()}
        drawn = resampled(used)
        value, drawn_R = (_kept_apart(of, arm, runs.chance) for of in (points, drawn))
        counts = {"num_seeds": len(headline(used[arm])), "num_items": num_items(used[arm])}
        steps.append(Step(pool, arm, estimate(float(value[0]), drawn_R, **counts)))
    return steps


def kept(with_dirt: NDArray[np.float64], without: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
    """The share of what is above chance that is left with dirt."""
    return (with_dirt - chance) / (without - chance)


def _kept_apart(of: Mapping[str, NDArray[np.float64]], arm: str, chance: float) -> NDArray[np.float64]:
    return kept(of[f"own:{arm}"], of["own:0"], chance) - kept(of[arm], of["0"], chance)


CLAIMS: dict[str, Claim] = {
    "table1": Claim("no filter <= every other filter < CLIP filter, at 1x samples", table1_steps),
    "table1_4x": Claim("no filter <= every other filter < CLIP filter, at 4x samples", table1_steps),
    "table2": Claim("a filter fine-tuned on cleaner pairs beats the one before, and joint training on the same pairs",
                    table2_steps),
    "sweep": Claim("the best fraction is neither tiny nor all", sweep_steps, level=0.01),
    "figure4": Claim("dirt in the filter dataset ruins what is induced before the filter's own accuracy",
                     figure4_steps, needs="both_places"),
    "scarce": Claim("the induced model beats its filter when clean data is scarce", scarce_steps, needs="any"),
    "beyond": Claim("something beats plain DFN", beyond_steps, level=0.01, needs="any"),
}  # fmt: skip
FIGURE3 = f"a filter's own accuracy does not predict induced quality: rho, with its interval, below {WEAK}"


def decide(claim: Claim, pools: Mapping[str, Runs]) -> tuple[dict[str, dict[str, Any]], dict[str, list[Step]]]:
    """(pool -> verdict, pool -> steps with their corrected p)."""
    steps = [step for pool, runs in pools.items() for step in claim.steps(pool, runs)]
    corrected = holm([step.p_value for step in steps])
    steps = [Step(s.pool, s.name, s.estimate, s.must, p) for s, p in zip(steps, corrected, strict=True)]
    of_pool = {pool: [step for step in steps if step.pool == pool] for pool in pools}
    return {pool: _verdict(*claim.verdict(found)) for pool, found in of_pool.items()}, of_pool


def _verdict(holds: bool, step: Step) -> dict[str, Any]:
    e = step.estimate
    return {"holds": holds, "estimate": e.value, "interval": [e.low, e.high], "p": step.p_corrected,
            "n_seeds": e.num_seeds, "n_items": e.num_items, "step": step.name}  # fmt: skip


def figure3(runs: Runs) -> tuple[dict[str, Any], RankCorrelation]:
    """Over the listed filters; void where their own accuracy does not span MIN_SPAN."""
    arms = [arm for arm in runs.parts if not arm.startswith("own:")]
    own_FS, induced_FS = (np.array([headline(runs.parts[f"{side}{arm}"]) for arm in arms]) for side in ("own:", ""))
    found = rank_correlation(own_FS, induced_FS)
    own_F = own_FS.mean(axis=1)
    holds: bool | str = bool(found.high < WEAK) if own_F.max() >= MIN_SPAN * own_F.min() else "void"
    parts = runs.parts[arms[0]]
    verdict = {"holds": holds, "estimate": found.rho, "interval": [found.low, found.high], "p": found.p_value,
               "n_seeds": len(headline(parts)), "n_items": num_items(parts),
               "n_filters": found.num_filters, "ceiling": found.ceiling}  # fmt: skip
    return verdict, found


def validity(runs: Runs) -> dict[str, Any]:
    """Whether a rival is more precise than a random subset on this pool, and how much each is: pools on which none is
    are void, since rivals have nothing to catch there."""
    gains = {arm: paired(np.subtract(runs.precision[arm], runs.precision["random"]).tolist()) for arm in RIVALS}
    corrected = dict(zip(gains, holm([gain.p_value for gain in gains.values()]), strict=True))
    rivals = {arm: {"estimate": g.value, "interval": [g.low, g.high], "p": corrected[arm]} for arm, g in gains.items()}
    return {"is_valid": min(corrected.values()) < VALID_LEVEL, "rivals": rivals}
