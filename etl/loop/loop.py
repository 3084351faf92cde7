"""One round: [search ->] train filters -> score -> select -> train induced models -> evaluate -> gate -> promote.

A filter is judged by the models that its dataset induces, never by its own accuracy, which is shown and not used. The
round goes seed by seed, so that the gate can end it early. With `loop.search` it first finds the filter to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from etl.config import Kind
from etl.encode.vectors import vectors_folder
from etl.filters import guard
from etl.filters import recipe as filter_recipe
from etl.history import data_version
from etl.loop.arms import ArmResult, Arms, Part
from etl.loop.gating import MODEL, Gate, Verdict
from etl.loop.rounds import RoundRun
from etl.loop.search import Search, Searched, plan_of
from etl.loop.search_config import SearchConfig
from etl.loop.training import Data, EvalSet, Trained, Trainer, labels_of
from etl.project import Project
from etl.stage import UserError
from etl.stages import score
from etl.tables import EMBEDDINGS


@dataclass(frozen=True)
class Round:
    """What a round found."""

    arms: Mapping[str, ArmResult]
    filters: Mapping[int, filter_recipe.Filtered]
    verdict: str
    is_promoted: bool
    searched: Searched | None = None
    run_folder: Path | None = None
    """Whose name the round's run in MLflow has."""


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
        """Everything up to date, the search, then the decision. Killed and run again, it goes on where it was."""
        loop = self.project.config.loop
        datasets = self._filter_datasets()
        if loop.search:
            self.project.say(plan_of(loop, loop.search))
        self.project.run_all()
        eval_sets, data, learnt = self._eval_sets(), self.data_of(self.pool), [self.data_of(name) for name in datasets]
        for name in datasets:
            guard.check(self.project, name, self._vectors(name), self.project.registered(MODEL))
        inputs = {k: v for name in self.project.config.datasets for k, v in self._inputs(name).items()}
        run = RoundRun.begin(self.project, [data, *learnt], eval_sets, inputs)
        searched, judged = None, self
        if loop.search:
            searched = self._search(loop.search, data, run.folder)
            judged = Loop(self.project.with_loop(searched.loop))
        ended = judged._judge(eval_sets, data, run.folder)
        run.end(ended.arms, ended.verdict, ended.is_promoted, searched)
        return replace(ended, searched=searched, run_folder=run.folder)

    def _filter_datasets(self) -> tuple[str, ...]:
        """That any candidate's filter learns from."""
        loop = self.project.config.loop
        projects = [self.project.with_loop(loop.chosen(candidate)) for candidate in loop.candidates] or [self.project]
        return tuple(dict.fromkeys(name for project in projects for name in filter_recipe.datasets(project)))

    def _search(self, grid: SearchConfig, data: Data, parent: Path) -> Searched:
        """On development sets alone: its runs know no evaluation set."""
        trainer = Trainer(self.project, data.vectors, self._eval_sets("dev"), parent)
        return Search(self.project, grid, self.pool, trainer, data, self.data_of, self._truth).run()

    def _judge(self, eval_sets: tuple[EvalSet, ...], data: Data, parent: Path) -> Round:
        """Seed by seed, until the gate has seen enough."""
        config = self.project.config.loop
        trainer = Trainer(self.project, data.vectors, eval_sets, parent)
        recipe = filter_recipe.FilterRecipe(self.project, trainer, self.data_of)
        arms = Arms(self.project, self.pool, trainer, data, self._truth)
        filters: dict[int, filter_recipe.Filtered] = {}
        parts: dict[str, dict[int, Part]] = {name: {} for name in config.arms}

        def induce(arm: str, seed: int) -> Trained:
            return arms.induced(arm, config.induced, seed, parts[arm][seed].receipt)

        gate = Gate(self.project, eval_sets, data, induce)
        self.project.say(gate.cost())
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
                trainer.record()  # what confirmed it
                self.project.say(f"gate: {verdict.text}")
                if verdict.is_closed:
                    break
        return Round(results, filters, verdict.text, verdict.is_promoted)

    def _vectors(self, dataset: str) -> Path:
        record, _ = self.project.encoder
        encoder = {"encoder": record.name, "encoder_version": record.version}
        return vectors_folder(self.project.store, dataset, encoder, self.project.config.output_folder / "vectors")

    def data_of(self, dataset: str) -> Data:
        """Its stored vectors, to train on."""
        vectors = self._vectors(dataset)
        return Data(vectors, vectors.name, self._inputs(dataset))

    def _inputs(self, dataset: str) -> dict[str, int]:
        store = self.project.store
        return {f"{store.root}/{dataset}/embeddings": data_version(store.history(dataset, EMBEDDINGS), {})}

    def _eval_sets(self, *kinds: Kind) -> tuple[EvalSet, ...]:
        names = self.project.config.of_kind(*(kinds or ("eval", "dev")))
        return tuple(EvalSet(n, self._vectors(n), labels_of(self.project.sources[n].labels)) for n in names)

    def truth_by_uid(self) -> dict[str, bool]:
        """Whether a pair's caption is the true one; empty where no noise was planted. Read by no stage."""
        return self.project.truth(self.pool)

    @property
    def _truth(self) -> Any:
        from models.data import uid_to_u8

        return uid_to_u8([uid for uid, is_true in self.truth_by_uid().items() if is_true])
