"""Whose scores cover the pool: `@serving`. A backfill encodes and scores what is missing, then moves that alias.

Promotion and backfill are two acts: `@champion` won the gate, and moving it encodes nothing. Scheduled runs score what
is new under `@serving`. Reads `runs` for what the work will take; touches tables through the project's stages, MLflow's
registry and OUTPUT/filters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.filters.filters import filter_folder
from etl.loop.gating import MODEL
from etl.project import Project
from etl.runs import RECENT_RUNS, recent_runs
from etl.stage import Slice, Table, UserError
from etl.stages import embed, score
from etl.tables import EMBEDDINGS, PAIRS, SCORES
from models.records import FilterRecord, WeightsError


@dataclass(frozen=True)
class Plan:
    """What it takes until a filter's scores cover the pool."""

    filter: str
    filter_version: str
    rows_to_encode: int
    rows_to_score: int
    hours: float | None
    """Wall clock on executors like those of the last runs; None: no run of a stage that has work tells."""
    max_hours: float | None
    """Above it one asks first; None: the last runs tell none."""

    @property
    def is_idle(self) -> bool:
        return not (self.rows_to_encode or self.rows_to_score)

    @property
    def wants_consent(self) -> bool:
        return not self.is_idle and (self.hours is None or self.max_hours is None or self.hours > self.max_hours)

    def __str__(self) -> str:
        hours = "unknown hours" if self.hours is None else f"about {self.hours:.3g} hours"
        return f"{self.rows_to_encode:,} pairs to encode and {self.rows_to_score:,} to score, {hours}"

    def facts(self) -> dict[str, Any]:
        hours = {"hours": self.hours, "max_gpu_hours": self.max_hours}
        told = {name: "unknown" if value is None else float(f"{value:.3g}") for name, value in hours.items()}
        return {"filter": self.filter, "filter_version": self.filter_version, "rows_to_encode": self.rows_to_encode,
                "rows_to_score": self.rows_to_score, **told}  # fmt: skip


@dataclass(frozen=True)
class Backfill:
    project: Project
    pool: str

    @property
    def _model(self) -> str:
        return self.project.registered(MODEL)

    @property
    def champion_uri(self) -> str:
        """Of the filter that a backfill is for where none is named."""
        return f"models:/{self._model}@champion"

    def plan(self, uri: str) -> tuple[Plan, Path]:
        """For a registered filter of the project's encoder, and its folder. Computes nothing but counts."""
        folder = filter_folder(self.project, uri)
        record, (encoder, _) = FilterRecord.read(folder), self.project.encoder
        self.project.with_filter(score.STAGE, folder)  # refuses a filter of another encoder
        to_encode = self._missing(EMBEDDINGS, {"encoder": encoder.name, "encoder_version": encoder.version})
        to_score = self._missing(SCORES, {"filter": record.name, "filter_version": record.version})
        work = {embed.STAGE.name: to_encode, score.STAGE.name: to_score}
        known = [run for run in recent_runs(self.project.store, list(work)) if run["dataset"] == self.pool]
        runs = {stage: [run for run in known if run["name"] == stage][:RECENT_RUNS] for stage in work}
        hours: float | None = 0.0
        for stage, rows in work.items():
            pace = _pace(runs[stage])
            hours = None if hours is None or (rows and pace is None) else hours + rows * (pace or 0.0)
        last = [found[0]["seconds"] / 3600 for found in runs.values() if found]
        limit = self.project.config.backfill.max_gpu_hours
        most = limit if limit is not None else (2 * sum(last) if last else None)
        return Plan(uri, record.version, to_encode, to_score, hours, most), folder

    def run(self, uri: str) -> str:
        """Encodes and scores what is missing, then points `@serving` at the filter: the version's number."""
        from models import registry
        from models.tracking import answering

        plan, folder = self.plan(uri)
        name = model_of(uri)
        self.project.run(embed.STAGE, self.pool)
        self.project.run(score.STAGE, self.pool, self.project.with_filter(score.STAGE, folder))
        if left := self.plan(str(folder))[0].rows_to_score:
            raise UserError(f"backfill: wanted a score for every pair; found {left:,} without; fix: run it again")
        with answering(self.project.tracking_uri):
            number = registry.version_of(name, plan.filter_version)
            if number is None:
                raise UserError(f"backfill: wanted {plan.filter_version} in {name}; found it gone; fix: name another")
            registry.set_alias(name, registry.SERVING, number)
        return number

    def serve(self) -> dict[str, str]:
        """Scores what is new under `@serving`, and says what a backfill to another champion would cost.

        Of filters of another encoder than the project's it says so: what `dfn run` was asked for is done.
        """
        uri = self.project.tracking_uri
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            return {}  # nothing was ever registered
        from models import registry  # seconds: mlflow
        from models.tracking import TrackingDownError, answering

        try:
            with answering(self.project.tracking_uri):
                known = registry.aliases(self._model)
        except TrackingDownError as error:
            self.project.say(f"serving: not scored: {error}")
            return {}
        serving, champion = known.get(registry.SERVING), known.get(registry.CHAMPION)
        found = {"serving": f"version {serving}"} if serving else {}
        try:
            if serving:
                folder = filter_folder(self.project, f"models:/{self._model}@serving")
                self.project.run(score.STAGE, self.pool, self.project.with_filter(score.STAGE, folder))
            if champion is None or champion == serving:
                return found
            plan, _ = self.plan(self.champion_uri)
        except WeightsError as error:
            self.project.say(f"serving: not scored: {error}")
            return {**found, "not_scored": str(error)}
        told = (
            f"{self._model} version {champion} is the champion and not serving: a backfill takes {plan} (dfn backfill)"
        )
        self.project.say(told)
        return {"serving": "none", **found, "backfill": told}

    def _missing(self, table: Table, where: Slice) -> int:
        """Pairs without a row in a slice."""
        store = self.project.store
        if not store.exists(self.pool, PAIRS):
            raise UserError(f"backfill: wanted pairs of {self.pool}; found none; fix: dfn run")
        pairs = store.read(self.pool, PAIRS).select("uid")
        if not store.exists(self.pool, table):
            return pairs.count()
        return pairs.join(store.read(self.pool, table, where=where).select("uid"), on="uid", how="left_anti").count()


def model_of(uri: str) -> str:
    """The registered name in models:/NAME@ALIAS or models:/NAME/VERSION. Raises UserError for anything else."""
    name = uri.removeprefix("models:/").replace("@", "/").partition("/")[0]
    if not uri.startswith("models:/") or not name:
        raise UserError(f"backfill: wanted models:/NAME@ALIAS or models:/NAME/VERSION; found {uri}; fix: register it")
    return name


def _pace(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Hours a row."""
    rows = sum(run["rows"] for run in runs)
    return sum(run["seconds"] for run in runs) / 3600 / rows if rows else None
