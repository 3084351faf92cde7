"""What a challenger is measured by: the runs that judged the champion, or a control arm's; and the noise of runs.

What a version was judged by is in its tag `judged`: seed -> run, at which recipe, on which evaluation sets and which
pool; `target` holds the same of the runs that confirmed it at the target scale. Reads MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from etl.loop.arms import ArmResult, headline
from etl.loop.loop_config import LoopConfig
from etl.loop.training import Data, EvalSet, Trained
from etl.loop.training_config import TrainingConfig
from etl.project import Project
from etl.stage import UserError
from models.gate import Spread, Values, pooled


@dataclass(frozen=True)
class Yardstick:
    project: Project
    eval_sets: tuple[EvalSet, ...]
    data: Data
    """The pool's."""

    @property
    def _loop(self) -> LoopConfig:
        return self.project.config.loop

    def control(self, arms: Mapping[str, ArmResult]) -> str:
        """The strongest arm that no filter chose. Raises UserError where there is none."""
        loop = self._loop
        controls = {name: arms[name].metrics for name, arm in loop.arms.items() if arm.keep != "filter"}
        if not controls:
            raise UserError("gate: wanted a champion, or a control arm (whole_pool, random); found neither")
        return max(controls, key=lambda name: mean(controls[name][loop.headline].values()))

    def champion(self, model: str, number: str, tags: Mapping[str, str]) -> Values:
        """metric -> seed -> value of the runs that the champion was judged by.

        Raises:
            UserError: they are not named, or were of another recipe or on other evaluation sets.
        """
        loop, judged = self._loop, json.loads(tags.get("judged", "{}"))
        fix = f"fix: the tag judged of {model} version {number}, or another alias @champion"
        if "runs" not in judged:
            raise UserError(f"gate: wanted the runs that judged the champion; found none named; {fix}")
        now = self.evidence({})
        if judged["recipe"] != now["recipe"]:
            scale = "loop.gate.proxy" if loop.gate.proxy else "loop.induced"
            raise UserError(f"gate: wanted {scale} as the champion's, {judged['recipe']}; found {now['recipe']}; {fix}")
        needed = {part.partition(".")[0] for part in (*loop.headline_parts, *loop.gate.guards)}
        if any(judged["eval_sets"].get(name) != now["eval_sets"].get(name) for name in needed):
            raise UserError(f"gate: wanted the evaluation sets that the champion was judged on; found others; {fix}")
        if judged["pool"] != now["pool"]:
            self.project.say(f"gate: the champion of {model} was judged on an earlier state of the pool")
        return self._values(judged["runs"])

    def is_judged_by(self, tags: Mapping[str, str], models: Mapping[int, Trained]) -> bool:
        """Whether these runs, at a proxy's scale, are those that the champion was judged by."""
        runs = json.loads(tags.get("judged", "{}")).get("runs", {}) if self._loop.gate.proxy else {}
        return bool(runs) and any(runs.get(seed) == run for seed, run in run_ids(models).items())

    def champion_at_target(self, model: str, number: str, tags: Mapping[str, str],
                           seeds: Iterable[int]) -> tuple[int, str, Values]:  # fmt: skip
        """(seed, run, values) of the champion's run at the target scale, under one of these seeds.

        Raises:
            UserError: there is none.
        """
        target = json.loads(tags.get("judged", "{}")).get("target", {})
        is_alike = target.get("recipe") == self._loop.induced.model_dump()
        shared = [seed for seed in seeds if is_alike and str(seed) in target["runs"]]
        if not shared:
            raise UserError(f"gate: wanted a run of {model} version {number} at loop.induced, under a seed of "
                            "this round, that confirms; found none named; fix: loop.gate.proxy=null")  # fmt: skip
        run = target["runs"][str(shared[0])]
        return shared[0], run, self._values({str(shared[0]): run})

    def _values(self, runs: Mapping[str, str]) -> Values:
        from models import registry

        found = registry.metrics_of({int(seed): run for seed, run in runs.items()})
        return values_of(self._loop, found)

    def evidence(self, models: Mapping[int, Trained], confirmed: Mapping[int, Trained] | None = None) -> dict[str, Any]:
        """For the tag `judged`."""
        loop = self._loop
        target = {"recipe": loop.induced.model_dump(), "runs": run_ids(confirmed or {})}
        return {"runs": run_ids(models), "recipe": loop.of_seeds.model_dump(),
                "eval_sets": {each.name: each.vectors.name for each in self.eval_sets},
                "pool": dict(self.data.inputs), **({"target": target} if confirmed else {})}  # fmt: skip

    def spread(self, arms: Mapping[str, ArmResult], recipe: TrainingConfig) -> Spread | None:
        """Of induced runs under a recipe in MLflow, by arm; without those that are judged now."""
        from models.tracking import finished_runs

        loop, name = self._loop, self.project.config.name
        judged = {str(receipt["hash"]) for arm in arms.values() for receipt in arm.receipts.values()}
        wanted = {field: str(value) for field, value in recipe.model_dump().items()}
        groups: dict[str, list[float]] = {}
        for params, metrics in finished_runs(self.project.tracking_uri, name, kind="induced"):
            is_alike = wanted.items() <= params.items() and all(part in metrics for part in loop.headline_parts)
            if is_alike and params.get("content") not in judged:
                groups.setdefault(params.get("arm", ""), []).append(headline(loop, metrics))
        return pooled(groups.values(), f"earlier induced runs of {name} with {recipe.samples:,} samples seen")


def values_of(loop: LoopConfig, runs: Mapping[int, Mapping[str, float]]) -> Values:
    """seed -> metrics, as metric -> seed -> value, with the headline first and the metrics that all have."""
    first = {loop.headline: {seed: headline(loop, metrics) for seed, metrics in runs.items()}}
    names = set.intersection(*(set(metrics) for metrics in runs.values()))
    return first | {name: {seed: metrics[name] for seed, metrics in runs.items()} for name in names}


def run_id(trained: Trained) -> str:
    """Of its run in MLflow, to which it was sent by now."""
    from models import spool

    found = spool.run_id_of(trained.folder) or trained.mlflow_run_id
    if found is None:
        raise UserError(f"wanted the run of {trained.folder} in MLflow; found none; fix: dfn sync, then run it again")
    return found


def run_ids(models: Mapping[int, Trained]) -> dict[str, str]:
    """seed -> run, of an MLflow tag."""
    return {str(seed): run_id(model) for seed, model in models.items()}
