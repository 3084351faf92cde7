"""One round: train filters -> score -> select -> train induced models -> evaluate -> gate -> promote.

A filter is judged by the models that its dataset induces, never by its own accuracy, which is shown and not used. All
arms see the same number of samples; arms share seeds, which pairs them in the gate's test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd

from etl import filter_recipe, guard
from etl.config import ArmConfig
from etl.filters import Filters
from etl.job import StageRun
from etl.project import Project
from etl.receipts import receipt_of
from etl.stage import UserError, digest
from etl.stages import score, selection
from etl.store import data_version
from etl.tables import EMBEDDINGS, PROMOTIONS
from etl.training import Data, EvalSet, Trained, Trainer, labels_of
from etl.uid_lists import uid_list
from etl.vectors import vectors_folder
from models.records import FilterRecord

MODEL = "dfn_filter"
"""Name of the registered filter."""
CLIP = "clip"
"""Name of the registered model that the champion's dataset induced."""


@dataclass(frozen=True)
class ArmResult:
    """One arm over all seeds."""

    name: str
    receipts: Mapping[int, Mapping[str, Any]]
    """seed -> receipt of its selection"""
    models: Mapping[int, Trained]
    """seed -> its induced model"""
    precision: Mapping[int, float]
    """seed -> share of kept pairs whose caption is the true one; empty where no truth was planted"""
    metrics: Mapping[str, Mapping[int, float]]
    """metric -> seed -> value"""

    def summary(self) -> dict[str, dict[str, float | int]]:
        return {name: spread(list(values.values())) for name, values in self.metrics.items()}


@dataclass(frozen=True)
class Round:
    """What a round found."""

    arms: Mapping[str, ArmResult]
    filters: Mapping[int, filter_recipe.Filtered]
    verdict: str
    is_promoted: bool


def spread(values: list[float]) -> dict[str, float | int]:
    """Mean, sample standard deviation (0 for one value) and number of seeds."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "seeds": len(values)}


def _run_id(trained: Trained) -> str:
    """Of its run in MLflow, to which it was sent by now."""
    from models import spool

    found = spool.run_id_of(trained.folder) or trained.mlflow_run_id
    if found is None:
        raise UserError(f"wanted the run of {trained.folder} in MLflow; found none; fix: dfn sync, then run it again")
    return found


@dataclass(frozen=True)
class Loop:
    project: Project

    @cached_property
    def pool(self) -> str:
        return self._only("pool")

    def _only(self, kind: Any) -> str:
        names = self.project.config.of_kind(kind)
        if len(names) != 1:
            raise UserError(
                f"loop: wanted one dataset of kind {kind}; found {len(names)} ({', '.join(names) or 'none'})"
            )
        return names[0]

    def run(self) -> Round:
        """Everything up to date, then the decision. Killed and run again, it goes on where it was."""
        config = self.project.config.loop
        datasets = filter_recipe.datasets(self.project)
        self.project.run_all()
        trainer = Trainer(self.project, self._vectors(self.pool), self._eval_sets())
        recipe = filter_recipe.FilterRecipe(self.project, trainer, self._data)
        for name in datasets:
            guard.check(self.project, name, self._vectors(name), MODEL)
        filters = {seed: recipe.make(seed) for seed in config.seeds}
        trainer.record()
        for made in filters.values():
            self.project.run(score.STAGE, self.pool, self.project.with_filter(score.STAGE, made.final.folder))
        arms = {name: self._arm(name, arm, filters, trainer) for name, arm in config.arms.items()}
        verdict, is_promoted = self._decide_if_tracked(arms, filters)
        self.project.say(f"gate: {verdict}")
        return Round(arms, filters, verdict, is_promoted)

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

    def _arm(self, name: str, arm: ArmConfig, filters: Mapping[int, filter_recipe.Filtered],
             trainer: Trainer) -> ArmResult:  # fmt: skip
        receipts, precision, models = {}, {}, {}
        for seed, filter_ in filters.items():
            selected = self._select(name, arm, seed, filter_.folders())
            receipt = receipt_of(self.project.store, self.pool, str(selected.slice["selection_id"]))
            uids = self._uids(str(receipt["selection_id"]))
            data = Data(self._vectors(self.pool), str(receipt["hash"]), self._inputs(self.pool), uids, receipt)
            models[seed] = trainer.run("induced", name, self.project.config.loop.induced, seed, data)
            receipts[seed] = receipt
            if len(self._truth):
                precision[seed] = float(np.isin(np.load(uids, allow_pickle=False), self._truth).mean())
        trainer.record()
        names = list(next(iter(models.values())).metrics)
        metrics = {metric: {seed: model.metrics[metric] for seed, model in models.items()} for metric in names}
        headline = {seed: self.headline(model.metrics) for seed, model in models.items()}
        return ArmResult(name, receipts, models, precision, {self.project.config.loop.headline: headline, **metrics})

    def headline(self, metrics: Mapping[str, float]) -> float:
        parts = self.project.config.loop.headline_parts
        if not parts or (missing := [part for part in parts if part not in metrics]):
            raise UserError(
                f"loop.headline_parts: wanted metrics of evaluation sets; found {missing if parts else 'none'}; "
                f"fix: some of {', '.join(metrics)}"
            )
        return mean(metrics[part] for part in parts)

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

    def truth_by_uid(self) -> dict[str, bool]:
        """Whether a pair's caption is the true one; empty where no noise was planted. Read by no stage."""
        folder = self.project.corpus_folder(self.pool)
        if folder is None:
            return {}
        truth = pd.read_parquet(folder / "truth.parquet")
        return dict(zip(truth["uid"], truth["is_true"], strict=True))

    @cached_property
    def _truth(self) -> Any:
        from models.data import uid_to_u8

        return uid_to_u8([uid for uid, is_true in self.truth_by_uid().items() if is_true])

    def _decide_if_tracked(self, arms: Mapping[str, ArmResult],
                           filters: Mapping[int, filter_recipe.Filtered]) -> tuple[str, bool]:  # fmt: skip
        """Sends the runs that wait for MLflow, then decides. Where it does not answer, the next round decides."""
        from models import spool
        from models.tracking import TrackingDownError, answering

        try:
            with answering(self.project.tracking_uri):
                spool.sync(self.project.config.output_folder / "models", self.project.tracking_uri)
                return self._decide(arms, filters)
        except TrackingDownError as error:
            return f"not decided: {error}", False

    def _decide(self, arms: Mapping[str, ArmResult],
                filters: Mapping[int, filter_recipe.Filtered]) -> tuple[str, bool]:  # fmt: skip
        """The gate, on the induced models' headline, against the champion, or against the strongest control arm."""
        from models import registry
        from models.gate import gate

        loop = self.project.config.loop
        challengers = [name for name, arm in loop.arms.items() if arm.keep == "filter" and arm.of == selection.DFN]
        if not challengers:
            return "no arm uses the trained filter: nothing to promote", False
        values = arms[challengers[0]].metrics[loop.headline]
        first = filters[loop.seeds[0]].final
        judged = {"metric": [loop.headline, *loop.headline_parts], "values": {str(k): v for k, v in values.items()}}
        number, is_champion = registry.ensure_registered(
            MODEL, _run_id(first), first.folder, self.project.encoder[1], tags={"judged": json.dumps(judged)}
        )
        version = FilterRecord.read(first.folder).version
        if is_champion:
            self._register_clip(arms[challengers[0]])
            return f"{MODEL} version {number} is the champion{self._why(version)}", True
        compared, baseline = self._baseline(arms, registry.champion_tags(MODEL), judged)
        seeds = [seed for seed in values if seed in baseline]
        decision = gate([values[s] for s in seeds], [baseline[s] for s in seeds], level=loop.gate_level)
        verb = "promoted" if decision.is_better else "refused"
        # The decision first: a kill before the alias moves is made good by the next run, which decides the same.
        self._record_decision(version, compared, verb, decision.reason)
        if decision.is_better:
            registry.set_alias(MODEL, registry.CHAMPION, number)
            self._register_clip(arms[challengers[0]])
        return (
            f"{MODEL} version {number} {verb} against {compared}: {loop.headline} {decision.reason}",
            decision.is_better,
        )

    def _register_clip(self, arm: ArmResult) -> None:
        """The model that the champion's dataset induced, under the first seed, with the receipt of that dataset."""
        from models import registry

        seed = self.project.config.loop.seeds[0]
        model = arm.models[seed]
        if registry.registered(CLIP, model.folder) is None:
            receipt = arm.receipts[seed]
            number = registry.register_clip(_run_id(model), model.folder, self.project.encoder[1], receipt=receipt)
            self.project.say(f"{CLIP} version {number}: induced by selection {receipt['selection_id']}")

    def _baseline(self, arms: Mapping[str, ArmResult], champion: Mapping[str, str] | None,
                  judged: Mapping[str, Any]) -> tuple[str, Mapping[int, float]]:  # fmt: skip
        loop = self.project.config.loop
        if champion is not None:
            before = json.loads(champion["judged"])
            if before["metric"] != judged["metric"]:
                raise UserError(f"gate: wanted the champion's metric {before['metric']}; found {judged['metric']}")
            return champion["filter_version"], {int(seed): value for seed, value in before["values"].items()}
        controls = {n: arms[n].metrics[loop.headline] for n, arm in loop.arms.items() if arm.keep != "filter"}
        if not controls:
            raise UserError("gate: wanted a champion, or a control arm (whole_pool, random); found neither")
        strongest = max(controls, key=lambda name: mean(controls[name].values()))
        return f"arm {strongest}", controls[strongest]

    def _why(self, challenger: str) -> str:
        """What the gate found when it promoted this filter."""
        decisions = self.project.store.read("", PROMOTIONS).where(f"challenger = '{challenger}'")
        last = decisions.orderBy("decided_at", ascending=False).limit(1).collect()
        return "".join(f": {row['verdict']} against {row['champion_compared']}: {row['reason']}" for row in last)

    def _record_decision(self, challenger: str, compared: str, verdict: str, reason: str) -> None:
        store = self.project.store
        if not store.exists("", PROMOTIONS):
            store.create("", PROMOTIONS)
        id_ = digest(MODEL, challenger, compared, reason)[:16]
        row = (id_, MODEL, challenger, compared, verdict, reason, None, datetime.now(UTC))
        store.append_once(store.rows("", PROMOTIONS, [row]), "", PROMOTIONS, content=id_, note={"slice": {}})
