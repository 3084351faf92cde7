"""Append what is missing, chunk by chunk, each exactly once. Runs whose stages share a pass make it together.

Touches tables through `store.py` only. A pass (`Stage.shared`) is the costly look at every row, such as decoding its
image: where two runs miss the same rows of a chunk it is computed once and kept on executors' disks until both have
committed. Each run has its own slice, key and commits all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from pyspark import StorageLevel
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from etl.chunks import WITHOUT_PIXELS, Chunk, can_wait, grouped, left, outdated, plan, unwritten
from etl.cpu import Meter, is_local
from etl.job import Job, Progress, StageRun, own
from etl.stage import Facts, Shared, digest

OBSERVED_SECONDS = 10
"""How long to wait for a pass's timings after its commit; they are told, not needed."""


@dataclass
class Rows:
    """What is left of one job, and how far it is."""

    job: Job
    driving: str
    """Name of the input that has a row per output row."""
    row_key: str
    rows: DataFrame
    """That input, grouped."""
    todo: dict[str, Chunk]
    """Chunks with rows missing, by id, in order."""
    missing: Mapping[str, tuple[str, int]]
    """Chunk id -> content hash and number of the rows that it lacks."""
    total: int
    must_replace: bool
    begun_in: int
    """Part of each commit's id: rows begun anew must not be taken for the same rows of an earlier beginning."""
    facts: Facts = field(default_factory=dict)
    num_committed: int = 0
    """Chunks of `todo`."""
    num_written: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Timings of the passes of this run, and those of the last one."""
    of_chunk: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> Rows:
        """Plans chunks, finds what is missing, and prepares; runs jobs."""
        found = cls.seen(job)
        if not found.todo:
            return found
        found._clear()
        return replace(found, facts=job.facts())

    def _clear(self) -> None:
        """Removes what was said of rows before their pixels came: it is made anew now. One commit, for all chunks."""
        job, table, written = self.job, self.job.stage.writes[-1], self.job.written()
        if self.must_replace or not can_wait(self.rows, written):
            return
        said = written.where(F.col("status").isin(*WITHOUT_PIXELS))
        if said.isEmpty():
            return
        keys = outdated(self.rows, said, self.row_key).select(*table.key).localCheckpoint()
        if not keys.isEmpty():
            job.store.merge(keys, job.dataset, table, note={"slice": dict(job.where)}, do="delete")

    @classmethod
    def seen(cls, job: Job) -> Rows:
        """As `of`, without the facts: a look at what is left, that changes nothing."""
        driving, frame = next(iter(job.inputs.items()))
        table = job.stage.writes[-1]
        row_key = next(c for c in table.key if c not in table.sliced_by)
        rows = grouped(frame, row_key)
        commits = job.current_commits()
        finished = {c.note["chunk"] for c in commits if "chunk" in c.note}
        chunks = plan(rows, getattr(job.config, "chunk_rows", 1_000_000))
        still_open = [chunk for chunk in chunks if chunk.id not in finished]
        if commits and still_open:
            missing = left(rows, job.written(), row_key, still_open)
        else:  # nothing that is written counts
            missing = {chunk.id: (chunk.id, chunk.num_rows) for chunk in still_open}
        todo = {chunk.id: chunk for chunk in still_open if missing.get(chunk.id, ("", 0))[1]}
        return cls(
            job, driving, row_key, rows, todo, missing, sum(chunk.num_rows for chunk in chunks), not commits,
            commits[-1].version if commits else -1,
        )  # fmt: skip

    @property
    def num_left(self) -> int:
        return sum(self.missing[id_][1] for id_ in self.todo)

    def inputs(self, chunk: Chunk) -> dict[str, DataFrame]:
        """The job's inputs with only the rows of `chunk` that are missing."""
        rows = self.rows.where(F.col("_group").isin(list(chunk.groups))).drop("_group", "_name")
        if self.missing[chunk.id][1] < chunk.num_rows:
            rows = unwritten(rows, self.job.written(), self.row_key)
        inputs = {**self.job.inputs, self.driving: rows}
        for name, read in self.job.stage.reads.items():
            if own(self.job.stage, read):
                version = self.job.before(read.table, chunk.id)
                written = self.job.store.read(self.job.dataset, read.table, version=version)
                inputs[name] = written.limit(0) if self.must_replace else written
        return inputs

    def commit(self, chunk: Chunk, frames: Sequence[DataFrame]) -> None:
        """One commit per table. Replaces the slice first when what stands there was written by other code or config."""
        job, (content, num_rows) = self.job, self.missing[chunk.id]
        # Counted, not looked up: beside a run that lacks other chunks, these need not come in their own order.
        note = job.note(chunk=chunk.id, code=job.code, is_last=self.num_committed + 1 == len(self.todo))
        for number, (table, frame) in enumerate(zip(job.stage.writes, frames, strict=True)):
            if self.must_replace:
                job.store.replace(frame, job.dataset, table, where=job.where, note={**note, "is_first": True})
            else:
                if job.stage.replaces and number == 0:
                    there, frame = job.stage.replaces(frame)
                    if not there.isEmpty():
                        job.store.merge(there, job.dataset, table, note={**note, "is_last": False}, do="update")
                id_ = digest(content, job.code, self.begun_in)
                job.store.append_once(frame, job.dataset, table, content=id_, note=note)
        if self.must_replace:
            self.begun_in = job.store.history(job.dataset, job.stage.writes[-1])[0].version
            self.must_replace = False
        self.num_committed += 1
        self.num_written += num_rows
        if job.stage.committed:
            job.stage.committed(job.config, job.written())

    def progress(self, seconds: float, cpu_share: float | None) -> Progress:
        left_now = self.num_left - self.num_written
        return Progress(
            self.job.stage.name, self.job.dataset, self.total - left_now, self.total, self.num_written, seconds,
            cpu_share, self.of_chunk,
        )  # fmt: skip

    def done(self, base: StageRun) -> StageRun:
        if not self.todo:
            return base
        ledger = self.job.ledger(base, self.facts)
        return replace(
            ledger, is_up_to_date=False, num_rows_in=self.total, num_rows_written=self.num_written, timings=self.seconds
        )


def append(jobs: Sequence[tuple[Job, StageRun]]) -> list[StageRun]:
    """Bring each job's slice up to date. Jobs of one dataset have the same chunks where their `chunk_rows` agree."""
    states = [Rows.of(job) if job.inputs else None for job, _ in jobs]
    started = time.monotonic()
    meter = Meter() if jobs and is_local(jobs[0][0].store.spark) else None
    for id_ in dict.fromkeys(id_ for rows in states if rows for id_ in rows.todo):
        for same in _sharing([rows for rows in states if rows and id_ in rows.todo], id_):
            _commit_together(same, same[0].todo[id_])
            cpu_share = meter.read() if meter else None
            for rows in same:
                rows.job.on_progress(rows.progress(time.monotonic() - started, cpu_share))
    return [rows.done(base) if rows else base for rows, (_, base) in zip(states, jobs, strict=True)]


def _sharing(states: Sequence[Rows], id_: str) -> list[list[Rows]]:
    """Those that can make one pass over a chunk: the same pass, with the same settings, over the same missing rows."""
    groups: dict[str, list[Rows]] = {}
    for number, rows in enumerate(states):
        shared = rows.job.stage.shared
        same = (id(shared.compute), shared.settings(rows.job.config), rows.missing[id_][0]) if shared else number
        key = digest(same)
        groups.setdefault(key, []).append(rows)
    return list(groups.values())


def _commit_together(states: Sequence[Rows], chunk: Chunk) -> None:
    first = states[0]
    inputs, shared = first.inputs(chunk), first.job.stage.shared
    if shared is None:
        first.commit(chunk, first.job.transform(inputs, first.facts))
        return
    with _passed(shared, inputs, states) as frame:
        for number, rows in enumerate(states):
            rows.commit(chunk, (rows.job.stage.shared.finish(frame, number, config=rows.job.config),))  # type: ignore[union-attr]


@contextmanager
def _passed(shared: Shared, inputs: Mapping[str, DataFrame], states: Sequence[Rows]) -> Iterator[DataFrame]:
    """The pass over a chunk, with its timings observed; on executors' disks where several runs read it."""
    observation = Observation()
    frame = shared.compute(**inputs, configs=[rows.job.config for rows in states])
    frame = frame.observe(observation, *[F.sum(name).alias(name) for name in shared.timings]).drop(*shared.timings)
    if len(states) > 1:
        frame = frame.persist(StorageLevel.DISK_ONLY)
    try:
        yield frame
    finally:
        if len(states) > 1:
            frame.unpersist()
    timings = {name: seconds or 0.0 for name, seconds in _observed(observation).items()}
    for rows in states:
        rows.of_chunk = timings
        for name, seconds in timings.items():
            rows.seconds[name] = rows.seconds.get(name, 0.0) + seconds


def _observed(observation: Observation) -> dict[str, Any]:
    """What was observed; {} where the rows were never computed, since Delta had the commit: there `get` waits."""
    found: SimpleQueue[dict[str, Any]] = SimpleQueue()
    Thread(target=lambda: found.put(observation.get), daemon=True).start()
    try:
        return found.get(timeout=OBSERVED_SECONDS)
    except Empty:
        return {}
