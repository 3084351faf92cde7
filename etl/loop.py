"""One round: train filters -> score -> select -> train induced models -> evaluate -> gate -> promote.

A filter is judged by the models that its dataset induces, never by its own accuracy, which is shown and not used. The
round goes seed by seed, so that the gate can end it early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from etl import filter_recipe, guard
from etl.arms import ArmResult, Arms, Part
from etl.gating import MODEL, Gate, Verdict
from etl.project import Project
from etl.stage import UserError
from etl.stages import score
from etl.store import data_version
from etl.tables import EMBEDDINGS
from etl.training import Data, EvalSet, Trainer, labels_of
from etl.vectors import vectors_folder


@dataclass(frozen=True)
class Round:
    """What a round found."""

    arms: Mapping[str, ArmResult]
    filters: Mapping[int, filter_recipe.Filtered]
    verdict: str
    is_promoted: bool


@dataclass(frozen=True)
class Loop:
    project: Project

    @cached_property
    def pool(self) -> str:
        names = self.project.config.of_kind("pool")
        if len(names) != 1:
            raise UserError(f"loop: wanted one dataset of kind pool; found {len(names)} ({', '.join(names) or 'none'})")
        return names[0]

    def run(self) -> Round:
        """Everything up to date, then the decision. Killed and run again, it goes on where it was."""
        config = self.project.config.loop
        datasets = filter_recipe.datasets(self.project)
        self.project.run_all()
        eval_sets, data = self._eval_sets(), self._data(self.pool)
        trainer = Trainer(self.project, data.vectors, eval_sets)
        recipe = filter_recipe.FilterRecipe(self.project, trainer, self._data)
        for name in datasets:
            guard.check(self.project, name, self._vectors(name), MODEL)
        gate, arms = Gate(self.project, eval_sets, data), Arms(self.project, self.pool, trainer, data, self._truth)
        self.project.say(gate.cost())
        filters: dict[int, filter_recipe.Filtered] = {}
        parts: dict[str, dict[int, Part]] = {name: {} for name in config.arms}
        results: dict[str, ArmResult] = {}
        verdict = Verdict("")
        for seed in config.seeds:
            filters[seed] = made = recipe.make(seed)
            self.project.run(score.STAGE, self.pool, self.project.with_filter(score.STAGE, made.final.folder))
            for name, arm in config.arms.items():
                parts[name][seed] = arms.part(name, arm, seed, made.folders())
            if len(filters) in gate.rule.looks:
                trainer.record()
                results = {name: ArmResult.of(name, found, config) for name, found in parts.items()}
                verdict = gate.look(results, filters)
                self.project.say(f"gate: {verdict.text}")
                if verdict.is_closed:
                    break
        return Round(results, filters, verdict.text, verdict.is_promoted)

    def _vectors(self, dataset: str) -> Path:
        record, _ = self.project.encoder
        encoder = {"encoder": record.name, "encoder_version": record.version}
        return vectors_folder(self.project.store, dataset, encoder, self.project.config.output_folder / "vectors")

    def _data(self, dataset: str) -> Data:
        vectors = self._vectors(dataset)
        return Data(vectors, vectors.name, self._inputs(dataset))

    def _inputs(self, dataset: str) -> dict[str, int]:
        store = self.project.store
        return {f"{store.root}/{dataset}/embeddings": data_version(store.history(dataset, EMBEDDINGS), {})}

    def _eval_sets(self) -> tuple[EvalSet, ...]:
        names = self.project.config.of_kind("eval", "dev")
        return tuple(EvalSet(n, self._vectors(n), labels_of(self.project.sources[n].labels)) for n in names)

    def truth_by_uid(self) -> dict[str, bool]:
        """Whether a pair's caption is the true one; empty where no noise was planted. Read by no stage."""
        folder = self.project.corpus_folder(self.pool)
        if folder is None:
            return {}
        truth = pd.read_parquet(folder / "truth.parquet")
        return dict(zip(truth["uid"], truth["is_true"], strict=True))

    @property
    def _truth(self) -> Any:
        from models.data import uid_to_u8

        return uid_to_u8([uid for uid, is_true in self.truth_by_uid().items() if is_true])
