"""Run stages: pin -> is it up to date? -> lease -> job -> record. What is up to date is not done again, and says so.

Touches tables through `store.py` only; `job.py` does the work of a run that has any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.job import Job, Progress, StageRun, own
from etl.runs import RunRow, find_runs, record_runs
from etl.stage import Read, Slice, Stage, StageConfig, Table, digest, overlap, slice_from
from etl.store import Store, data_version


@dataclass(frozen=True)
class Pin:
    """One table of one dataset at the version that this run reads, and the version that its rows last changed in."""

    dataset: str
    table: Table
    where: Slice
    version: int
    data_version: int

    @property
    def label(self) -> str:
        return f"{self.dataset}.{self.table.name}"


@dataclass(frozen=True)
class Runner:
    """Runs stages on the datasets of one project."""

    store: Store
    kinds: Mapping[str, str]
    """dataset -> its kind"""
    on_progress: Callable[[Progress], None] = lambda _: None

    @cached_property
    def _recorded(self) -> set[tuple[str, str]]:
        """(stage, key) of the runs in `runs`: a kill after the last commit of rows leaves one out."""
        return set(find_runs(self.store))

    def run(self, stage: Stage, dataset: str, config: StageConfig, *, source: Any = None) -> StageRun:
        """Bring the stage's output for `dataset` up to date. Does nothing, and says so, when it is.

        `source`: the dataset's own config, for a stage that lists files. Raises UserError when another process writes
        the same table.
        """
        started = time.monotonic()
        pins = {name: self._pin(read, dataset, config) for name, read in stage.reads.items() if not own(stage, read)}
        listed = stage.listing(source) if stage.listing else None
        files = [] if listed is None else listed.to_dict("records")
        versions = {name: [(p.label, p.data_version) for p in some] for name, some in pins.items()}
        key = digest(stage.name, stage.version, dataset, config.model_dump(mode="json"), versions, files)
        where = stage.output_slice(config, key)
        base = StageRun(
            stage.name, dataset, key, where, True, {p.label: p.version for some in pins.values() for p in some}
        )
        for table in stage.writes:
            self._create(dataset, table)
        is_complete = self._is_complete(stage, dataset, where, key)
        if is_complete and (stage.name, key) in self._recorded:
            return base
        with self.store.lease(dataset, stage.writes[-1]):
            inputs = {name: self._read(stage.reads[name], some, dataset) for name, some in pins.items()}
            if listed is not None:
                inputs = {"files": self.store.spark.createDataFrame(listed), **inputs} if len(listed) else {}
            job = Job(self.store, stage, dataset, config, where, key, inputs, base.inputs, self.on_progress)
            if is_complete:
                done = job.ledger(base, job.facts())
            else:
                done = job.rows(base) if stage.resume == "rows" else job.table(base)
        done = replace(done, seconds=time.monotonic() - started)
        if is_complete or not done.is_up_to_date:
            self._record(done, stage, config)
        return done

    def _create(self, dataset: str, table: Table) -> None:
        if not self.store.exists(dataset, table):
            self.store.create(dataset, table)

    def _pin(self, read: Read, dataset: str, config: StageConfig) -> list[Pin]:
        where = slice_from(read.table, config)
        pinned = []
        for name in [n for n, kind in self.kinds.items() if kind in read.kinds] if read.kinds else [dataset]:
            self._create(name, read.table)
            history = self.store.history(name, read.table)
            pinned.append(Pin(name, read.table, where, history[0].version, data_version(history, where)))
        return pinned

    def _read(self, read: Read, pins: list[Pin], dataset: str) -> DataFrame:
        frames = [self.store.read(p.dataset, p.table, version=p.version, where=p.where) for p in pins]
        if not read.kinds:
            return frames[0]
        if not frames:  # no dataset of these kinds: no rows
            return self.store.read(dataset, read.table).limit(0).withColumn("dataset", F.lit(""))
        named = [frame.withColumn("dataset", F.lit(pin.dataset)) for frame, pin in zip(frames, pins, strict=True)]
        union = named[0]
        for frame in named[1:]:
            union = union.unionByName(frame)
        return union

    def _is_complete(self, stage: Stage, dataset: str, where: Slice, key: str) -> bool:
        notes = [
            c.note for c in self.store.history(dataset, stage.writes[-1]) if overlap(c.note.get("slice", {}), where)
        ]
        latest = next((note for note in notes if note.get("key")), {})
        return bool(latest.get("key") == key and latest.get("is_last"))

    def _record(self, run: StageRun, stage: Stage, config: StageConfig) -> None:
        output = self.store.history(run.dataset, stage.writes[-1])[0].version
        row = RunRow(
            run.stage, run.dataset, run.key, run.inputs, config.model_dump_json(), run.facts, run.seconds,
            run.num_rows_in, output, run.num_rows_by_status,
        )  # fmt: skip
        record_runs(self.store, [row])
        self._recorded.add((run.stage, run.key))
