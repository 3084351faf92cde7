"""Which filter recipe and which share of the pool a round judges: successive halving over the grid in `loop.search`.

A candidate is judged as a filter is in the round: by the models that its dataset induces, here on development sets
alone and under seeds of the search's own. So the gate then judges the winner on seeds and evaluation sets that nothing
was chosen on. A filter's own accuracy is shown and never used. Touches what the arms of a round touch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from etl.filters.recipe import DataOf, Filtered, FilterRecipe
from etl.loop.arms import Arms, spread
from etl.loop.loop_config import ArmConfig, LoopConfig
from etl.loop.search_config import Candidate, SearchConfig
from etl.loop.training import Data, Trainer
from etl.project import Project
from etl.stage import UserError
from models.halving import Ranked, halve


@dataclass(frozen=True)
class Searched:
    """What a search found."""

    grid: SearchConfig
    samples_seen: int
    """By its induced runs."""
    winner: str
    """Name of the candidate that is left."""
    loop: LoopConfig
    """The round's, with its filter recipe and fraction."""
    rungs: tuple[Ranked, ...]
    own: Mapping[str, float]
    """Candidate -> its filters' own value, mean over the seeds that it had: shown, not used."""

    def summary(self) -> dict[str, Any]:
        """As plain values: what it cost, and what each rung found, best first."""
        return {
            "metric": list(self.grid.headline_parts), "winner": self.winner, "budget": self.grid.budget,
            "samples_seen": self.samples_seen,
            "rungs": [
                [{"candidate": name, **spread(list(values)), "goes_on": name in rung.kept,
                  "filters_own_not_used": self.own[name]} for name, values in rung.values.items()]
                for rung in self.rungs
            ],
        }  # fmt: skip


def plan_of(loop: LoopConfig, grid: SearchConfig) -> str:
    """What a search runs at most, told before it starts."""
    candidates, rungs = loop.candidates, grid.rungs(loop.candidates, loop.of_seeds.samples)
    num_runs = sum(rung.num_runs for rung in rungs)
    steps = ", ".join(f"{rung.num_candidates} x {rung.last - rung.first} seeds" for rung in rungs)
    # Candidates that differ in their fraction alone share a filter; at worst those that are left have one each.
    num_recipes = len({str(candidate.recipe) for candidate in candidates})
    num_filters = sum(min(num_recipes, rung.num_candidates) * (rung.last - rung.first) for rung in rungs)
    return (
        f"search: {len(candidates)} candidates of {num_recipes} filter recipes; rungs: {steps}; {num_runs} induced "
        f"runs, {num_runs * loop.of_seeds.samples:,} of {grid.budget:,} samples seen, and at most {num_filters} "
        f"filters; judged by {', '.join(grid.headline_parts)}; runs that are there are not run again"
    )


@dataclass(frozen=True)
class Search:
    project: Project
    grid: SearchConfig
    pool: str
    trainer: Trainer
    """Whose evaluation sets are the development sets alone."""
    data: Data
    """The pool's stored vectors."""
    data_of: DataOf
    truth: Any
    _made: dict[tuple[str, int], Filtered] = field(default_factory=dict)

    def run(self) -> Searched:
        """The candidate that is left. Killed and run again, it goes on where it was."""
        loop, seeds = self.project.config.loop, self.grid.seeds
        rungs = self.grid.rungs(loop.candidates, loop.of_seeds.samples)
        names = [candidate.name for candidate in loop.candidates]
        winner, found = halve(names, rungs, lambda name, place: self._measure(name, seeds[place]), self._tell)
        self.project.say(f"search: {winner} is left, and is the round's challenger")
        samples = sum(rung.num_runs for rung in rungs) * loop.of_seeds.samples
        return Searched(self.grid, samples, winner, loop.chosen(self._candidate(winner)), tuple(found), self._own())

    def _candidate(self, name: str) -> Candidate:
        return next(candidate for candidate in self.project.config.loop.candidates if candidate.name == name)

    def _measure(self, name: str, seed: int) -> float:
        """Mean of the search's metrics, of the model that a candidate's dataset induces under a seed."""
        candidate = self._candidate(name)
        project = self.project.with_loop(self.project.config.loop.chosen(candidate))
        made = FilterRecipe(project, self.trainer, self.data_of).make(seed)
        self._made[name, seed] = made
        arm = ArmConfig(keep="filter", fraction=candidate.fraction)
        arms = Arms(project, self.pool, self.trainer, self.data, self.truth)
        return self._value(arms.part(f"search {name}", arm, seed, made.folders()).model.metrics)

    def _value(self, metrics: Mapping[str, float]) -> float:
        parts = self.grid.headline_parts
        if missing := [part for part in parts if part not in metrics]:
            raise UserError(f"loop.search.headline_parts: wanted metrics of development sets; found {missing}; "
                            f"fix: some of {', '.join(metrics)}")  # fmt: skip
        return mean(metrics[part] for part in parts)

    def _own(self) -> dict[str, float]:
        names = dict.fromkeys(name for name, _ in self._made)
        return {
            name: mean(self._value(made.final.metrics) for (of, _), made in self._made.items() if of == name)
            for name in names
        }

    def _tell(self, number: int, rung: Ranked) -> None:
        self.trainer.record()
        best, values = next(iter(rung.values.items()))
        self.project.say(
            f"search: rung {number + 1}: {best} leads with {mean(values):.4f} over {len(values)} seeds; "
            f"{', '.join(rung.kept)} of {len(rung.values)} left"
        )
