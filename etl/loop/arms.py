"""The arms of a round: what each keeps of the pool under a seed, and the model that this induces.

All arms see the same number of samples; arms share seeds, which pairs them in the gate's test. Touches tables through
the project's stages, OUTPUT/selections, and trains through `etl.loop.training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from etl.filters.filters import Filters
from etl.job import StageRun
from etl.loop.loop_config import ArmConfig, LoopConfig
from etl.loop.training import Data, Trained, Trainer
from etl.loop.training_config import TrainingConfig
from etl.project import Project
from etl.selection.receipts import receipt_of
from etl.selection.uid_lists import uid_list
from etl.stage import UserError
from etl.stages import selection


@dataclass(frozen=True)
class Part:
    """One arm under one seed."""

    receipt: Mapping[str, Any]
    """Of its selection."""
    model: Trained
    """Induced by it."""
    precision: float | None
    """Share of kept pairs whose caption is the true one; None where no truth was planted."""


@dataclass(frozen=True)
class ArmResult:
    """One arm over the seeds so far."""

    name: str
    receipts: Mapping[int, Mapping[str, Any]]
    """seed -> receipt of its selection"""
    models: Mapping[int, Trained]
    """seed -> its induced model"""
    precision: Mapping[int, float]
    """seed -> share of kept pairs whose caption is the true one; empty where no truth was planted"""
    metrics: Mapping[str, Mapping[int, float]]
    """metric -> seed -> value"""

    @staticmethod
    def of(name: str, parts: Mapping[int, Part], loop: LoopConfig) -> ArmResult:
        """With the headline before the metrics that evaluation found."""
        models = {seed: part.model for seed, part in parts.items()}
        names = list(next(iter(models.values())).metrics)
        metrics = {metric: {seed: model.metrics[metric] for seed, model in models.items()} for metric in names}
        first = {loop.headline: {seed: headline(loop, model.metrics) for seed, model in models.items()}}
        precision = {seed: part.precision for seed, part in parts.items() if part.precision is not None}
        return ArmResult(name, {s: p.receipt for s, p in parts.items()}, models, precision, first | metrics)

    def summary(self) -> dict[str, dict[str, float | int]]:
        return {name: spread(list(values.values())) for name, values in self.metrics.items()}


def spread(values: list[float]) -> dict[str, float | int]:
    """Mean, sample standard deviation (0 for one value) and number of seeds."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "seeds": len(values)}


def headline(loop: LoopConfig, metrics: Mapping[str, float]) -> float:
    """The mean of `loop.headline_parts`. Raises UserError where they are not all there."""
    parts = loop.headline_parts
    if not parts or (missing := [part for part in parts if part not in metrics]):
        raise UserError(
            f"loop.headline_parts: wanted metrics of evaluation sets; found {missing if parts else 'none'}; "
            f"fix: some of {', '.join(metrics)}"
        )
    return mean(metrics[part] for part in parts)


@dataclass(frozen=True)
class Arms:
    project: Project
    pool: str
    trainer: Trainer
    data: Data
    """The pool's stored vectors."""
    truth: Any
    """uids of pairs whose caption is the true one, `u8,u8`; empty where no noise was planted."""

    def part(self, name: str, arm: ArmConfig, seed: int, filter_folders: Mapping[str, Path]) -> Part:
        """Selected and trained now, or up to date."""
        selected = self._select(name, arm, seed, filter_folders)
        receipt = receipt_of(self.project.store, self.pool, str(selected.slice["selection_id"]))
        uids = self._uids(str(receipt["selection_id"]))
        kept = np.load(uids, allow_pickle=False)
        model = self.induced(name, self.project.config.loop.of_seeds, seed, receipt)
        return Part(receipt, model, float(np.isin(kept, self.truth).mean()) if len(self.truth) else None)

    def induced(self, name: str, config: TrainingConfig, seed: int, receipt: Mapping[str, Any]) -> Trained:
        """The model that a selection induces, at any scale."""
        uids = self._uids(str(receipt["selection_id"]))
        data = Data(self.data.vectors, str(receipt["hash"]), self.data.inputs, uids, receipt)
        return self.trainer.run("induced", name, config, seed, data)

    def _select(self, name: str, arm: ArmConfig, seed: int, filter_folders: Mapping[str, Path]) -> StageRun:
        keep = {
            "whole_pool": lambda: selection.Keep(all=True),
            "random": lambda: selection.Keep(random_fraction=arm.fraction),
            "filter": lambda: selection.Keep(top_fraction=arm.fraction, of=arm.of),
        }[arm.keep]()
        base: selection.Config = self.project.config.stages.selection  # type: ignore[attr-defined]
        seeded = seed if arm.keep == "random" else 0
        settings = base.model_copy(update={"name": name, "keep": keep, "seed": seeded})
        filters = Filters(self.project, self.pool, filter_folders)
        return self.project.run(selection.STAGE, self.pool, filters.scoring(settings))

    def _uids(self, selection_id: str) -> Path:
        path = self.project.config.output_folder / "selections" / f"{selection_id}.npy"
        if not path.exists():
            uid_list(self.project.store, self.pool, selection_id, path)
        return path
