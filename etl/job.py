"""One run of one stage that has work to do: what it reads, notes and counts, and the replacing of a table.

Touches tables through `store.py` only. What makes a run up to date is written in the Delta commit itself, beside the
rows, so that a kill at any point leaves either both or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import DataFrame

from etl.history import Commit
from etl.stage import Facts, Read, Slice, Stage, StageConfig, Table, digest, overlap, slice_from
from etl.store import Store
from models.records import code_commit


@dataclass(frozen=True)
class Progress:
    """What a run says while it works: one call per chunk."""

    stage: str
    dataset: str
    rows_done: int
    rows_total: int
    rows_this_run: int
    seconds: float
    cpu_share: float | None = None
    """Of all cores, over the last chunk, 0 to 1; None where executors are not of this process."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Of the last chunk's pass over pixels: see `StageRun.timings`."""

    @property
    def busiest(self) -> str:
        """What the last chunk's time went into most: `model 75%`, `decode 60%` (so long the model waited), `cpu 93%`.

        '' where nothing was measured.
        """
        model, wait = (self.timings.get(f"{part}_seconds", 0.0) for part in ("model", "wait"))
        if model + wait:
            feeding = max(("read", "decode"), key=lambda part: self.timings.get(f"{part}_seconds", 0.0))
            return f"model {model / (model + wait):.0%}" if model >= wait else f"{feeding} {wait / (model + wait):.0%}"
        return "" if self.cpu_share is None else f"cpu {self.cpu_share:.0%}"

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
    num_files: int | None = None
    """Listed, by a stage that lists files."""
    facts: Facts = field(default_factory=dict)
    num_rows_in: int = 0
    num_rows_written: int = 0
    """By this run, where it appends: earlier ones wrote the rest."""
    num_rows_by_status: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this process and all below it; of runs that share a pass, those of the pass."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Of a shared pass: seconds summed over its tasks, by part."""


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

    @property
    def code(self) -> str:
        """See `code_of`."""
        return code_of(self.stage, self.config)

    def table(self, base: StageRun) -> StageRun:
        """Replace the slice in one commit per table."""
        facts = self.facts()
        note = self.note(is_last=True, code=self.code, inputs=dict(self.pinned))
        since, frames = self.updated(facts)
        for table, frame in zip(self.stage.writes, frames or self.transform(self.inputs, facts), strict=True):
            self.store.replace(frame, self.dataset, table, where=self.where, note=note)
        facts |= {"since": since} if frames else {}
        return replace(self.ledger(base, facts), is_up_to_date=False)

    def updated(self, facts: Facts) -> tuple[dict[str, int], tuple[DataFrame, ...]]:
        """(versions of the inputs that the last run read, the output made from what it wrote and what came since).

        No frames where the stage cannot do that, or another code or config wrote, or the inputs did not only grow.
        """
        commits = self.store.history(self.dataset, self.stage.writes[-1]) if self.stage.update else []
        notes = [c.note for c in commits if "key" in c.note and overlap(c.note["slice"], self.where)]
        if not notes or (notes[0]["stage"], notes[0].get("code")) != (self.stage.name, self.code):
            return {}, ()
        since, earlier, added = notes[0]["inputs"], {}, {}
        for name, read in self.stage.reads.items():
            label, where = f"{self.dataset}.{read.table.name}", slice_from(read.table, self.config)
            versions = {"since": since[label], "version": self.pinned[label]}
            apart = self.store.apart(self.dataset, read.table, where=where, **versions)
            if apart is None:
                return {}, ()
            earlier[name], added[name] = apart
        more = {"facts": facts} if self.stage.prepare else {}
        found = self.stage.update(earlier, added, self.written(), config=self.config, **more)  # type: ignore[misc]
        return since, () if found is None else (found,)

    def ledger(self, base: StageRun, facts: Facts) -> StageRun:
        """What stands written: rows in by terminal status."""
        if "status" in self.written().columns:
            by_status = {r["status"]: int(r["count"]) for r in self.written().groupBy("status").count().collect()}
        else:
            by_status = facts.get("num_rows_by_status") or self._flagged()
        return replace(base, facts=facts, num_rows_in=sum(by_status.values()), num_rows_by_status=by_status)

    def _flagged(self) -> dict[str, int]:
        """The ledger of a sparse table: rows of the first input that it speaks of, and the others."""
        num_in = next(iter(self.inputs.values())).count()
        written = self.written()
        flagged = written.select("uid").distinct().count() if "uid" in written.columns else written.count()
        return {"written": flagged, "not_written": num_in - flagged}

    def current_commits(self) -> list[Commit]:
        """Commits of this slice since it was last begun anew, if the same code and config wrote them."""
        current: list[Commit] = []
        for commit in self.store.history(self.dataset, self.stage.writes[-1]):
            if "key" not in commit.note or not overlap(commit.note["slice"], self.where):
                continue
            if commit.note.get("code") != self.code:
                return []
            current.append(commit)
            if commit.note.get("is_first"):
                break
        return current

    def before(self, table: Table, chunk: str) -> int | None:
        """Version of a table before a killed run wrote its part of a chunk there; None where none has, or others have
        written since."""
        history = self.store.history(self.dataset, table)
        of_chunk = [(c.note.get("chunk"), c.note.get("code")) == (chunk, self.code) for c in history]
        num_newest = of_chunk.index(False) if False in of_chunk else len(of_chunk)
        return history[num_newest].version if 0 < num_newest < len(history) else None

    def facts(self) -> Facts:
        """What `prepare` found, and what only a run knows: its key, and which versions it reads."""
        known = {"key": self.key, "inputs": dict(self.pinned)}
        return {**known, **self.stage.prepare(**self.inputs, config=self.config)} if self.stage.prepare else {}

    def transform(self, inputs: Mapping[str, DataFrame], facts: Facts) -> tuple[DataFrame, ...]:
        more = {"facts": facts} if self.stage.prepare else {}
        frames = self.stage.transform(**inputs, config=self.config, **more)
        return frames if isinstance(frames, tuple) else (frames,)

    def written(self) -> DataFrame:
        return self.store.read(self.dataset, self.stage.writes[-1], where=self.where)

    def note(self, **more: Any) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "slice": dict(self.where),
            "key": self.key,
            "git_commit": code_commit(),
            **more,
        }


def code_of(stage: Stage, config: StageConfig) -> str:
    """What, beside its inputs, decides a stage's rows: where it changed, everything written before is stale."""
    return digest(stage.version, config.model_dump(mode="json"))


def own(stage: Stage, read: Read) -> bool:
    """Whether a stage reads what it writes: then each chunk sees what the earlier ones wrote."""
    return not read.kinds and read.slice_of is None and read.table in stage.writes
