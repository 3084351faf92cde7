"""The cells of each experiment, listed before the first run: an arm of a pool under a seed, and the job that fills it.

Touches nothing. An arm is named as tables show it; what a filter itself reaches is a cell too, shown and never used to
choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

from etl.evidence.config import EvidenceConfig, Experiment
from etl.evidence.jobs import ArmJob, FilterJob, Job, Learned, Recipe, Scorer, Top

RIVALS = ("heuristics", "binary_image", "binary_image_text")
"""Filters that the DFN is held against; they and the DFN get the fraction that the development set prefers."""
CONTROLS = ("whole_pool", "random")
ENSEMBLE = 3
"""Filters of an ensemble, of other seeds each."""
SECOND_ROUND_FRACTION = 0.05
PLACES = ("outside", "inside", "inside_left_out")
"""Of figure 4: dirt from pairs that are not scored; from pairs that are; from those, and then not kept (control)."""


@dataclass(frozen=True)
class Cell:
    pool: str
    """'' for what no pool decides: a filter by itself."""
    arm: str
    seed: int
    job: Job


@dataclass(frozen=True)
class Lab:
    """What cells are made of: the config, the number of pairs of the pool, and what was chosen on the development set
    (pool -> arm -> fraction)."""

    config: EvidenceConfig
    num_pairs: int
    chosen: Mapping[str, Mapping[str, float]]

    def induced(self, budget: float = 1.0, share: float = 1.0) -> Recipe:
        """`budget` x as many samples as the pool has pairs; `share`: of the pool that is selected from."""
        made = self.config.induced
        steps = made.steps or ceil(self.num_pairs * share / made.batch_size)
        return Recipe(max(1, round(steps * budget)), made.dropout, made.batch_size, made.lr)

    @property
    def filter_recipe(self) -> Recipe:
        return Recipe(**self.config.filter.model_dump())

    def dfn(self, seed: int, **learned: object) -> FilterJob:
        return FilterJob(Learned(self.config.clean, **learned), self.filter_recipe, seed)  # type: ignore[arg-type]

    def by(self, pool: str, seed: int, filter_: FilterJob, fraction: float | None = None) -> ArmJob:
        """The model induced by what a filter ranks first."""
        kept = self.config.fraction if fraction is None else fraction
        return ArmJob(pool, seed, "top", kept, self.induced(), Scorer("dfn", (filter_,)))

    def scorer(self, name: str, seed: int) -> Scorer:
        """Of an arm of Table 1."""
        if name == "dfn":
            return Scorer("dfn", (self.dfn(seed),))
        return Scorer(name, good=self.config.clean if name.startswith("binary") else ())  # type: ignore[arg-type]

    def ranked(self) -> list[str]:
        return [*RIVALS, "dfn"]

    def choices(self, pool: str) -> Iterator[tuple[str, float, ArmJob]]:
        """(arm, fraction, job) of the runs by which Table 1's fractions are chosen, a job for each tuning seed."""
        for arm, fraction, seed in product(self.ranked(), self.config.choices, self.config.tuning_seeds):
            job = ArmJob(pool, seed, "top", fraction, self.induced(), self.scorer(arm, seed), on_dev=True)
            yield arm, fraction, job


def _table1(lab: Lab, pool: str, seed: int, budget: float = 1.0) -> Iterator[Cell]:
    recipe, fraction = lab.induced(budget), lab.config.fraction
    yield Cell(pool, "whole_pool", seed, ArmJob(pool, seed, "all", 1.0, recipe))
    yield Cell(pool, "random", seed, ArmJob(pool, seed, "random", fraction, recipe))
    for arm in lab.ranked():
        job = ArmJob(pool, seed, "top", lab.chosen[pool][arm], recipe, lab.scorer(arm, seed))
        yield Cell(pool, arm, seed, job)
    if lab.config.pools[pool].shares:
        kept = lab.chosen[pool]["dfn"]
        yield Cell(pool, "true_pairs", seed, ArmJob(pool, seed, "true", kept, recipe))


def _sweep(lab: Lab, pool: str, seed: int) -> Iterator[Cell]:
    for fraction in lab.config.sweep:
        all_ = ArmJob(pool, seed, "all", 1.0, lab.induced())  # Table 1's
        job = lab.by(pool, seed, lab.dfn(seed), fraction) if fraction < 1 else all_
        yield Cell(pool, f"{fraction:g}", seed, job)


def _scarce(lab: Lab, pool: str, seed: int) -> Iterator[Cell]:
    for limit in lab.config.scarce:
        made = lab.dfn(seed, limit=limit)
        yield Cell("", f"own:{limit}", seed, made)
        yield Cell(pool, str(limit), seed, lab.by(pool, seed, made))


def _table2(lab: Lab, pool: str, seed: int) -> Iterator[Cell]:
    first, second = lab.config.clean[:2]
    before = FilterJob(Learned((first,)), lab.filter_recipe, seed)
    tuned = replace(before, tuned=(second,))
    longer = replace(lab.filter_recipe, steps=lab.filter_recipe.steps + tuned.tuned_steps)
    joint = FilterJob(Learned((first, second)), longer, seed)
    for name, made in {"before": before, "tuned": tuned, "joint": joint}.items():
        yield Cell("", f"own:{name}", seed, made)
        yield Cell(pool, name, seed, lab.by(pool, seed, made))


def _figure4(lab: Lab, pool: str, seed: int) -> Iterator[Cell]:
    recipe = lab.induced(share=1 - lab.config.reserve)

    def cells(name: str, made: FilterJob, left: FilterJob | None = None) -> Iterator[Cell]:
        # The dirt is the pool's own, so what the filter reaches depends on the pool too.
        yield Cell(pool, f"own:{name}", seed, made)
        job = ArmJob(pool, seed, "top", lab.config.fraction, recipe, Scorer("dfn", (made,)), True, left)
        yield Cell(pool, name, seed, job)

    yield from cells("0", lab.dfn(seed))
    for dirt in lab.config.dirt:
        for place in PLACES:
            made = lab.dfn(seed, dirt=dirt, dirt_pool=pool, is_dirt_scored=place != "outside")
            yield from cells(f"{place}:{dirt:g}", made, made if place == "inside_left_out" else None)


def _beyond(lab: Lab, pool: str, seed: int) -> Iterator[Cell]:
    base, fraction, good = lab.dfn(seed), lab.config.fraction, lab.config.clean
    several = tuple(lab.dfn(seed + 1000 * number) for number in range(ENSEMBLE))
    methods = {
        "dfn": Scorer("dfn", (base,)),
        "s_clip_loss": Scorer("s_clip_loss", (base,)),
        "norm_sim": Scorer("norm_sim", (base,), good),
        "fused": Scorer("fused", (base,)),
        "ensemble": Scorer("ensemble", several),
        "second_round": Scorer("dfn", (lab.dfn(seed, top=Top(pool, base, SECOND_ROUND_FRACTION)),)),
    }
    for name, scorer in methods.items():
        yield Cell(pool, name, seed, ArmJob(pool, seed, "top", fraction, lab.induced(), scorer))


def _figure3(lab: Lab, pool: str, seed: int) -> Iterator[Cell]:
    if lab.config.figure3_pools and pool not in lab.config.figure3_pools:
        return
    made = lab.config.figure3
    for number, (limit, steps, dropout) in enumerate(product(made.limits, made.steps, made.dropout)):
        recipe = replace(lab.filter_recipe, steps=steps, dropout=dropout)
        filter_ = FilterJob(Learned(lab.config.clean, limit=limit), recipe, seed)
        yield Cell("", f"own:{number}", seed, filter_)
        yield Cell(pool, str(number), seed, lab.by(pool, seed, filter_))


_CELLS: dict[Experiment, Callable[[Lab, str, int], Iterator[Cell]]] = {
    "table1": _table1, "sweep": _sweep, "scarce": _scarce, "table2": _table2, "figure4": _figure4, "beyond": _beyond,
    "figure3": _figure3, "table1_4x": lambda lab, pool, seed: _table1(lab, pool, seed, 4.0),
}  # fmt: skip


def cells(lab: Lab, experiment: Experiment, pool: str) -> list[Cell]:
    """Of one experiment on one pool, seed by seed."""
    return [cell for seed in lab.config.seeds for cell in _CELLS[experiment](lab, pool, seed)]
