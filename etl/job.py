"""One run of one stage that has work to do: replace a table, or append what is missing, chunk by chunk.

Touches tables through `store.py` only. What makes a run up to date is written in the Delta commit itself, beside the
rows, so that a kill at any point leaves either both or neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.chunks import group_of, left, plan
from etl.runs import git_commit
from etl.stage import Facts, Read, Slice, Stage, StageConfig, digest, overlap
from etl.store import Commit, Store


@dataclass(frozen=True)
class Progress:
    """What a run says while it works: one call per chunk."""

    stage: str
    dataset: str
    rows_done: int
    rows_total: int
    rows_this_run: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of this run; what an earlier one had done does not count."""
        return self.rows_this_run / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class StageRun:
    """What one run of a stage did."""

    stage: str
    dataset: str
    key: str
    slice: Slice
    is_up_to_date: bool
    inputs: Mapping[str, int]
    """table -> Delta version read"""
    facts: Facts = field(default_factory=dict)
    num_rows_in: int = 0
    num_rows_written: int = 0
    """By this run, where it appends: earlier ones wrote the rest."""
    num_rows_by_status: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """One run of one stage that has work to do."""

    store: Store
    stage: Stage
    dataset: str
    config: StageConfig
    where: Slice
    key: str
    inputs: Mapping[str, DataFrame]
    pinned: Mapping[str, int]
    on_progress: Callable[[Progress], None]

    def table(self, base: StageRun) -> StageRun:
        """Replace the slice in one commit per table."""
        facts = self.facts()
        for table, frame in zip(self.stage.writes, self._transform(self.inputs, facts), strict=True):
            self.store.replace(frame, self.dataset, table, where=self.where, note=self._note(is_last=True))
        return replace(self.ledger(base, facts), is_up_to_date=False)

    def ledger(self, base: StageRun, facts: Facts) -> StageRun:
        """What stands written: rows in by terminal status."""
        if self.stage.resume == "rows":
            by_status = {r["status"]: int(r["count"]) for r in self._written().groupBy("status").count().collect()}
        else:
            by_status = facts.get("num_rows_by_status") or self._flagged()
        return replace(base, facts=facts, num_rows_in=sum(by_status.values()), num_rows_by_status=by_status)

    def _flagged(self) -> dict[str, int]:
        """The ledger of a sparse table: rows of the first input that it speaks of, and the others."""
        num_in = next(iter(self.inputs.values())).count()
        written = self._written()
        flagged = written.select("uid").distinct().count() if "uid" in written.columns else written.count()
        return {"written": flagged, "not_written": num_in - flagged}

    def rows(self, base: StageRun) -> StageRun:
        """Append what is missing, chunk by chunk, each exactly once."""
        if not self.inputs:
            return base
        name, driving = next(iter(self.inputs.items()))
        row_key = next(c for c in self.stage.writes[-1].key if c not in self.stage.writes[-1].sliced_by)
        grouped = driving.withColumn("_group", group_of(driving))
        code = digest(self.stage.version, self.config.model_dump(mode="json"))
        commits = self._current_commits(code)
        written = self._written() if commits else self._written().limit(0)
        finished = {c.note["chunk"] for c in commits if "chunk" in c.note}
        chunks = plan(grouped, row_key, getattr(self.config, "chunk_rows", 1_000_000))
        total = sum(chunk.num_rows for chunk in chunks)
        open_chunks = [chunk for chunk in chunks if chunk.id not in finished]
        missing = left(grouped, written, row_key, open_chunks) if open_chunks else {}
        todo = [chunk for chunk in open_chunks if missing.get(chunk.id, ("", 0))[1]]
        if not todo:
            return base
        before, this_run, started = total - sum(missing[c.id][1] for c in todo), 0, time.monotonic()
        facts = self.facts()
        must_replace = not commits
        # Part of each commit's id: rows begun anew must not be taken for the same rows of an earlier beginning.
        begun_in = commits[-1].version if commits else -1
        for number, chunk in enumerate(todo):
            content, num_left = missing[chunk.id]
            rows = grouped.where(F.col("_group").isin(list(chunk.groups))).drop("_group")
            if num_left < chunk.num_rows:
                rows = rows.join(self._written().select(row_key), row_key, "left_anti")
            note = self._note(chunk=chunk.id, code=code, is_last=number == len(todo) - 1)
            self._commit_chunk({**self.inputs, name: rows}, facts, digest(content, code, begun_in), note, must_replace)
            if must_replace:
                begun_in, must_replace = self.store.history(self.dataset, self.stage.writes[-1])[0].version, False
            this_run += num_left
            at = (before + this_run, total, this_run, time.monotonic() - started)
            self.on_progress(Progress(self.stage.name, self.dataset, *at))
        done = self.ledger(base, facts)
        return replace(done, is_up_to_date=False, num_rows_in=total, num_rows_written=this_run)

    def _commit_chunk(self, inputs: Mapping[str, DataFrame], facts: Facts, content: str, note: dict[str, Any],
                      must_replace: bool) -> None:  # fmt: skip
        """One commit per table. Replaces the slice first when what stands there was written by other code or config."""
        for name, read in self.stage.reads.items():
            if own(self.stage, read):
                written = self.store.read(self.dataset, read.table)
                inputs = {**inputs, name: written.limit(0) if must_replace else written}
        for table, frame in zip(self.stage.writes, self._transform(inputs, facts), strict=True):
            if must_replace:
                self.store.replace(frame, self.dataset, table, where=self.where, note={**note, "is_first": True})
            else:
                self.store.append_once(frame, self.dataset, table, content=content, note=note)

    def _current_commits(self, code: str) -> list[Commit]:
        """Commits of this slice since it was last begun anew, if the same code and config wrote them."""
        current: list[Commit] = []
        for commit in self.store.history(self.dataset, self.stage.writes[-1]):
            if "key" not in commit.note or not overlap(commit.note["slice"], self.where):
                continue
            if commit.note.get("code") != code:
                return []
            current.append(commit)
            if commit.note.get("is_first"):
                break
        return current

    def facts(self) -> Facts:
        """What `prepare` found, and what only a run knows: its key, and which versions it reads."""
        known = {"key": self.key, "inputs": dict(self.pinned)}
        return {**known, **self.stage.prepare(**self.inputs, config=self.config)} if self.stage.prepare else {}

    def _transform(self, inputs: Mapping[str, DataFrame], facts: Facts) -> tuple[DataFrame, ...]:
        more = {"facts": facts} if self.stage.prepare else {}
        frames = self.stage.transform(**inputs, config=self.config, **more)
        return frames if isinstance(frames, tuple) else (frames,)

    def _written(self) -> DataFrame:
        return self.store.read(self.dataset, self.stage.writes[-1], where=self.where)

    def _note(self, **more: Any) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "slice": dict(self.where),
            "key": self.key,
            "git_commit": git_commit(),
            **more,
        }


def own(stage: Stage, read: Read) -> bool:
    """Whether a stage reads what it writes: then each chunk sees what the earlier ones wrote."""
    return not read.kinds and read.table in stage.writes
