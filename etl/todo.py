"""What of a run is left, stage by stage: up to date, stale and why, half done, not begun; and what that would cost.

Reads tables, as a run would; makes none and writes nothing, but that names are resolved as a run does it, which the
first time fetches the packages of corpora and encoder into the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from etl.dedup import evalsets
from etl.history import Commit, data_version
from etl.job import code_of
from etl.loop.outcome import rows_by_status
from etl.project import Project
from etl.recipe import BEFORE_FILTERS, edits_of
from etl.rows import Rows
from etl.run import NOT_THERE, Pin, Plan
from etl.runs import RECENT_RUNS, recent_runs
from etl.selection.receipts import Replay, receipts
from etl.stage import Slice, Stage, UserError, overlap, slice_from
from etl.stages import decontaminate_semantic
from etl.tables import DATASET_TABLES

UP_TO_DATE, HALF_DONE, STALE, NOT_BEGUN = "up to date", "half done", "stale", "not begun"
SHOWN = 4
"""Of reasons of one kind."""


@dataclass(frozen=True)
class Standing:
    """Where one stage is on one dataset."""

    stage: str
    dataset: str
    state: str
    why: str | None = None
    after: tuple[str, ...] = ()
    """STAGE.DATASET before it that are not up to date: what they write it reads, so it runs after them in any case."""
    version: int | None = None
    """Delta version of its table."""
    rows_left: int | None = None
    """To write, or for a stage that makes its table anew to read; files for one that lists files. More where `after`
    says so. None: not known before what it reads is there."""
    rows: int | None = None
    """Of which those are left."""
    seconds: float | None = None
    """For the rows left, at the pace of the last runs; None where no run tells."""

    @property
    def runs(self) -> bool:
        return self.state != UP_TO_DATE or bool(self.after)

    def told(self) -> dict[str, Any]:
        """As `dfn status` says it."""
        more = "at least " if self.after and self.rows_left is not None else ""
        left = None if self.rows_left is None or not self.runs else f"{more}{self.rows_left:,} of {self.rows or 0:,}"
        seconds = None if self.seconds is None or not self.runs else round(self.seconds, 1)
        told = {
            "state": self.state, "why": self.why, "runs_after": ", ".join(self.after), "rows_left": left,
            "about_seconds": seconds, "version": self.version,
        }  # fmt: skip
        return {name: value for name, value in told.items() if value not in (None, "")}


@dataclass(frozen=True)
class Todo:
    project: Project

    @cached_property
    def standings(self) -> list[Standing]:
        """Of everything that `dfn run` runs, in its order."""
        found: list[Standing] = []
        busy: list[tuple[str, str, Slice, Stage]] = []
        seen: set[str] = set()
        for stage, dataset in self.project.wanted():
            source = self.project.sources[dataset] if stage.listing else None
            parts = self.project.parts(stage, dataset)
            for part, config in parts:
                plan = self.project.runner.look(part, dataset, config, source=source)
                if plan.base.key in seen:  # it has made the pass of another stage
                    continue
                seen.add(plan.base.key)
                after = tuple(dict.fromkeys(n for n, d, where, by in busy if _reads(plan, d, where, by)))
                standing = self._standing(plan, dataset, after)
                if config is not next(first for other, first in parts if other is part):  # another encoder, or model
                    standing = replace(standing, stage=f"{part.name} {plan.base.slice[part.writes[0].sliced_by[0]]}")
                if standing.runs:
                    busy.append((f"{standing.stage}.{dataset}", dataset, plan.base.slice, part))
                found.append(standing)
        return found

    def next(self) -> dict[str, Any]:
        """What would run, in order, and about how long; {} where nothing is left."""
        left = [standing for standing in self.standings if standing.runs]
        if not left:
            return {}
        known = [standing.seconds for standing in left if standing.seconds is not None]
        found = {
            "first": f"{left[0].stage}.{left[0].dataset}",
            "then": [f"{s.stage}.{s.dataset}" for s in left[1:]],
            "about_seconds": round(sum(known), 1) if known else None,
            "cost_not_known_of": [f"{s.stage}.{s.dataset}" for s in left if s.seconds is None],
        }
        return {name: value for name, value in found.items() if value not in (None, [])}

    def _standing(self, plan: Plan, dataset: str, after: tuple[str, ...]) -> Standing:
        store, table = self.project.store, plan.stage.writes[-1]
        history = store.history(dataset, table) if store.exists(dataset, table) else []
        known: dict[str, Any] = {"after": after, "version": history[0].version if history else None}
        lacking = self._lacking_vectors(plan.stage)
        if plan.is_complete and not lacking:
            told = None if plan.is_idle else "its rows are all there; the table runs has no line on it yet"
            return Standing(plan.stage.name, dataset, UP_TO_DATE, told, **known)
        notes = [c for c in history if "key" in c.note and overlap(c.note.get("slice", {}), plan.base.slice)]
        rows_left, rows = self._left(plan, dataset)
        state, why = (STALE, lacking) if lacking else self._why(plan, dataset, notes, rows_left)
        seconds = self._seconds(plan.stage.name, dataset, rows_left)
        return Standing(plan.stage.name, dataset, state, why, rows_left=rows_left, rows=rows, seconds=seconds, **known)

    def _left(self, plan: Plan, dataset: str) -> tuple[int | None, int | None]:
        """(rows left, of how many)."""
        pins = [pin for some in plan.pins.values() for pin in some]
        if any(pin.version == NOT_THERE for pin in pins) or (plan.listed is not None and plan.listed.empty):
            return (0, 0) if plan.listed is not None and plan.listed.empty else (None, None)
        job = self.project.runner.job(plan, dataset)
        if plan.stage.resume == "table":
            number = next(iter(job.inputs.values())).count()
            return number, number
        seen = Rows.seen(job)
        return seen.num_left, seen.total

    def _why(self, plan: Plan, dataset: str, notes: Sequence[Commit], rows_left: int | None) -> tuple[str, str | None]:
        if plan.listed is not None and plan.listed.empty:
            return NOT_BEGUN, "no file: nothing matches what the dataset's config names"
        if not notes:
            missing = sorted({p.label for some in plan.pins.values() for p in some if p.version == NOT_THERE})
            return NOT_BEGUN, f"reads {', '.join(missing)}, not there yet" if missing else None
        newest = notes[0].note
        if newest.get("code") != code_of(plan.stage, plan.config):
            return STALE, self._settings(plan, dataset, newest)
        if plan.stage.resume == "rows":
            if rows_left == 0:
                return UP_TO_DATE, None
            return (STALE, "rows came since") if newest.get("is_last") else (HALF_DONE, None)
        return STALE, _changed(plan, newest.get("inputs", {}))

    @cached_property
    def _runs(self) -> list[dict[str, Any]]:
        """Of all stages, newest first."""
        return recent_runs(self.project.store, BEFORE_FILTERS)

    def _settings(self, plan: Plan, dataset: str, note: dict[str, Any]) -> str:
        """Which settings are others than those that wrote what stands there; else it is the stage's code."""
        runs = [run for run in self._runs if (run["name"], run["dataset"]) == (plan.stage.name, dataset)]
        wrote = next((run for run in runs if run["key"] == note["key"]), runs[0] if runs else None)
        now, was = plan.config.model_dump(mode="json"), json.loads(wrote["config_json"]) if wrote else {}
        changes = [
            f"{name}: {was[name]} before, {now[name]} now" for name in now if name in was and was[name] != now[name]
        ]
        return f"settings changed: {_some(changes)}" if changes else "the stage's code changed, or settings of it"

    def _lacking_vectors(self, stage: Stage) -> str | None:
        """Registered evaluation sets that a run embeds first."""
        if stage is not decontaminate_semantic.STAGE or self.project.config.encoder.published:
            return None
        wanted = ("semantic", "edited") if edits_of(self.project.config) else ("semantic",)
        held = {name: evalsets.holdings(self.project, name) for name in evalsets.used(self.project)}
        lacking = [name for name, holds in held.items() if not all(holds[method] for method in wanted)]
        return f"vectors of {', '.join(lacking)} are made first" if lacking else None

    def _seconds(self, stage: str, dataset: str, rows_left: int | None) -> float | None:
        """At the pace of the stage's last runs on the dataset, or where there are none on any."""
        of_stage = [run for run in self._runs if run["name"] == stage]
        runs = ([run for run in of_stage if run["dataset"] == dataset] or of_stage)[:RECENT_RUNS]
        rows = sum(run["rows"] for run in runs)
        return rows_left * sum(run["seconds"] for run in runs) / rows if rows and rows_left is not None else None


def _reads(plan: Plan, dataset: str, where: Slice, by: Stage) -> bool:
    """Whether a run reads what `by` writes on a dataset."""
    pins = (pin for some in plan.pins.values() for pin in some if pin.dataset == dataset and not pin.is_registered)
    return any(pin.table in by.writes and overlap(pin.where, where) for pin in pins)


def _changed(plan: Plan, read: dict[str, int]) -> str:
    """Inputs that are others than those of the run that wrote what stands there."""
    pins: list[Pin] = [pin for some in plan.pins.values() for pin in some]
    names = [f"{p.label} changed (version {read[p.label]} was read, {p.data_version} has other rows)"
             for p in pins if p.label in read and p.data_version > read[p.label]]  # fmt: skip
    names += [f"{p.label} is new" for p in pins if p.label not in read and p.data_version != NOT_THERE]
    names += [f"{label} is no longer read" for label in sorted(read.keys() - {p.label for p in pins})]
    return _some(names) if names else "files that it reads changed"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def tables(project: Project) -> dict[str, dict[str, int]]:
    """DATASET.TABLE -> its version, and its rows by status."""
    found = {}
    for dataset, table in product(project.config.datasets, DATASET_TABLES):
        label = f"{dataset}.{table.name}"
        if project.store.exists(dataset, table):
            found[label] = {"version": project.store.history(dataset, table)[0].version}
    counts = rows_by_status(project)
    return {label: version | counts.get(label, {}) for label, version in found.items()}


def selections(project: Project) -> Iterator[tuple[str, dict[str, Any]]]:
    """(DATASET.SELECTION, what it is) of all receipts: whether they can be replayed, and what changed since."""
    for dataset in project.config.of_kind("pool"):
        for id_, receipt in receipts(project.store, dataset).items():
            replay = Replay(project.store, dataset, receipt)
            obstacle = replay.obstacle()
            told = {"name": receipt["rule"]["name"], "pairs": receipt["num_rows"],
                    "receipt": f"cannot be replayed: {obstacle}" if obstacle else "can be replayed"}  # fmt: skip
            changed = ", ".join(_changed_since(replay))
            yield f"{dataset}.{id_}", told | ({"changed_since": changed} if changed else {})


def _changed_since(replay: Replay) -> Iterator[str]:
    """Tables that the rule reads and that have other rows than it read."""
    store, read = replay.store, replay.receipt["inputs"]
    try:
        config = replay.config
    except UserError:
        return
    for each in replay.stage.reads.values():
        label = f"{replay.dataset}.{each.table.name}"
        if each.is_read(config) and label in read and store.exists(replay.dataset, each.table):
            where = each.slice_of(config) if each.slice_of else slice_from(each.table, config)
            if data_version(store.history(replay.dataset, each.table), where) > read[label]:
                yield each.table.name
