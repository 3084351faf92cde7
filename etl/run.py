"""Run stages: pin -> is it up to date? -> lease -> job -> record. What is up to date is not done again, and says so.

Touches tables through `store.py` only; `job.py` does the work of a run that has any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.cpu import cpu_seconds, is_local
from etl.history import data_version
from etl.job import Job, Progress, StageRun, own
from etl.rows import append
from etl.runs import RunRow, find_runs, record_runs
from etl.stage import Read, Slice, Stage, StageConfig, Table, digest, overlap, slice_from
from etl.store import Store

NOT_THERE = -1
"""Version of a table that is not made yet."""


@dataclass(frozen=True)
class Pin:
    """One table of one dataset at the version that this run reads, and the version that its rows last changed in."""

    dataset: str
    table: Table
    where: Slice
    version: int
    data_version: int
    store: Store
    is_registered: bool
    """An evaluation set that every project shares, not a dataset of this one."""

    @property
    def label(self) -> str:
        return f"{'evalsets.' if self.is_registered else ''}{self.dataset}.{self.table.name}"


@dataclass(frozen=True)
class Plan:
    """A run before it begins, or one that is only looked at."""

    stage: Stage
    config: StageConfig
    pins: Mapping[str, list[Pin]]
    listed: Any
    """Files, where the stage lists them: a pandas frame."""
    base: StageRun
    is_complete: bool
    """The rows are all there."""
    is_idle: bool
    """The rows are all there, and `runs` says so."""


@dataclass(frozen=True)
class Runner:
    """Runs stages on the datasets of one project."""

    store: Store
    kinds: Mapping[str, str]
    """dataset -> its kind"""
    on_progress: Callable[[Progress], None] = lambda _: None
    registered: Mapping[str, Store] = field(default_factory=dict)
    """Evaluation set -> the store that has it for every project: read with the datasets of kind eval."""

    @cached_property
    def _recorded(self) -> set[tuple[str, str]]:
        """(stage, key) of the runs in `runs`: a kill after the last commit of rows leaves one out."""
        return set(find_runs(self.store))

    def run(self, stage: Stage, dataset: str, config: StageConfig, *, source: Any = None) -> StageRun:
        """Bring the stage's output for `dataset` up to date. Does nothing, and says so, when it is.

        `source`: the dataset's own config, for a stage that lists files. Raises UserError when another process writes
        the same table.
        """
        return self.run_together([(stage, config)], dataset, source=source)[0]

    def run_together(
        self, parts: Sequence[tuple[Stage, StageConfig]], dataset: str, *, source: Any = None
    ) -> list[StageRun]:
        """`run` for each, at once: those whose stages share a pass over the rows make it once."""
        started, cpu_before = time.monotonic(), cpu_seconds()
        plans = [self._plan(stage, config, dataset, source) for stage, config in parts]
        done = {n: plan.base for n, plan in enumerate(plans) if plan.is_idle}
        busy = {n: plan for n, plan in enumerate(plans) if not plan.is_idle}
        with ExitStack() as leases:
            for table in {plan.stage.writes[-1].name: plan.stage.writes[-1] for plan in busy.values()}.values():
                leases.enter_context(self.store.lease(dataset, table))
            for table in {table.name: table for plan in busy.values() for table in plan.stage.writes}.values():
                self.store.extend(dataset, table)
            jobs = {n: self.job(plan, dataset) for n, plan in busy.items()}
            rows = [n for n, plan in busy.items() if plan.stage.resume == "rows" and not plan.is_complete]
            done |= dict(zip(rows, append([(jobs[n], busy[n].base) for n in rows]), strict=True))
            for n in busy.keys() - set(rows):
                done[n] = (
                    jobs[n].ledger(busy[n].base, jobs[n].facts())
                    if busy[n].is_complete
                    else jobs[n].table(busy[n].base)
                )
        seconds, on_cpu = time.monotonic() - started, max(0.0, cpu_seconds() - cpu_before)
        done = {n: replace(r, seconds=seconds, cpu_seconds=on_cpu) if n in busy else r for n, r in done.items()}
        for n, plan in busy.items():
            if plan.is_complete or not done[n].is_up_to_date:
                self._record(done[n], plan.stage, plan.config)
        return [done[n] for n in range(len(parts))]

    def look(self, stage: Stage, dataset: str, config: StageConfig, *, source: Any = None) -> Plan:
        """What `run` would begin with. Makes no table, and writes nothing."""
        return self._plan(stage, config, dataset, source, is_look=True)

    def _plan(self, stage: Stage, config: StageConfig, dataset: str, source: Any, *, is_look: bool = False) -> Plan:
        """Pins every input, names the run by what makes it up to date, and looks whether it is."""
        wanted = {name: read for name, read in stage.reads.items() if not own(stage, read) and read.is_read(config)}
        pins = {name: self._pin(read, dataset, config, is_look) for name, read in wanted.items()}
        listed = stage.listing(source) if stage.listing else None
        files = [] if listed is None else listed.to_dict("records")
        versions = {name: [(p.label, p.data_version) for p in some] for name, some in pins.items()}
        key = digest(stage.name, stage.version, dataset, config.model_dump(mode="json"), versions, files)
        where = stage.output_slice(config, key)
        inputs = {p.label: p.version for some in pins.values() for p in some}
        for table in stage.writes if not is_look else ():
            self._create(dataset, table)
        is_complete = self._is_complete(stage, dataset, where, key)
        base = StageRun(stage.name, dataset, key, where, True, inputs, None if listed is None else len(listed))
        is_idle = is_complete and (stage.name, key) in self._recorded
        return Plan(stage, config, pins, listed, base, is_complete, is_idle)

    def job(self, plan: Plan, dataset: str) -> Job:
        """The work of a run that is not up to date. Its inputs must be there."""
        inputs = {name: self._read(plan.stage.reads[name], some, dataset) for name, some in plan.pins.items()}
        if plan.listed is not None:
            files = {"files": self.store.spark.createDataFrame(plan.listed)} if len(plan.listed) else {}
            inputs = {**files, **inputs} if files else {}
        base = plan.base
        return Job(
            self.store, plan.stage, dataset, plan.config, base.slice, base.key, inputs, base.inputs, self.on_progress
        )

    def _create(self, dataset: str, table: Table) -> None:
        if not self.store.exists(dataset, table):
            self.store.create(dataset, table)

    def _pin(self, read: Read, dataset: str, config: StageConfig, is_look: bool) -> list[Pin]:
        """A table that a look does not find is pinned at NOT_THERE: like one that was just made, without rows."""
        where = read.slice_of(config) if read.slice_of else slice_from(read.table, config)
        own = [name for name, kind in self.kinds.items() if kind in read.kinds] if read.kinds else [dataset]
        shared = self.registered.items() if "eval" in read.kinds else ()
        for name in own if not is_look else ():
            self._create(name, read.table)
        pinned = []
        for name, store in [*((name, self.store) for name in own), *shared]:
            if store.exists(name, read.table):
                history, is_shared = store.history(name, read.table), store is not self.store
                newest, changed = history[0].version, data_version(history, where)
                pinned.append(Pin(name, read.table, where, newest, changed, store, is_shared))
            elif name in own:
                pinned.append(Pin(name, read.table, where, NOT_THERE, NOT_THERE, store, False))
        return pinned

    def _read(self, read: Read, pins: list[Pin], dataset: str) -> DataFrame:
        frames = [p.store.read(p.dataset, p.table, version=p.version, where=p.where) for p in pins]
        if not read.kinds:
            return frames[0]
        if not frames:  # no dataset of these kinds: no rows
            none = self.store.spark.createDataFrame([], read.table.ddl)
            return none.withColumn("dataset", F.lit(""))
        named = [frame.withColumn("dataset", F.lit(pin.dataset)) for frame, pin in zip(frames, pins, strict=True)]
        union = named[0]
        for frame in named[1:]:
            union = union.unionByName(frame)
        return union

    def _is_complete(self, stage: Stage, dataset: str, where: Slice, key: str) -> bool:
        if not self.store.exists(dataset, stage.writes[-1]):
            return False
        notes = [
            c.note for c in self.store.history(dataset, stage.writes[-1]) if overlap(c.note.get("slice", {}), where)
        ]
        latest = next((note for note in notes if note.get("key")), {})
        return bool(latest.get("key") == key and latest.get("is_last"))

    def _record(self, run: StageRun, stage: Stage, config: StageConfig) -> None:
        output = self.store.history(run.dataset, stage.writes[-1])[0].version
        facts = {**run.facts, "timings": dict(run.timings)} if run.timings else dict(run.facts)
        facts |= {"num_rows_written": run.num_rows_written} if run.num_rows_written else {}
        facts |= {"cpu_seconds": round(run.cpu_seconds, 2)} if is_local(self.store.spark) else {}
        row = RunRow(
            run.stage, run.dataset, run.key, run.inputs, config.model_dump_json(), facts, run.seconds,
            run.num_rows_in, output, run.num_rows_by_status,
        )  # fmt: skip
        record_runs(self.store, [row])
        self._recorded.add((run.stage, run.key))
