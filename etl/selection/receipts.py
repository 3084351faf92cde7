"""Receipts: read, replayed from time travel, and proved by their hash. Reads tables at the versions that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pydantic
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.forget.kept_out import forgotten_of, takedowns
from etl.selection import judging
from etl.selection.pinned import pinned_bytes
from etl.stage import Stage, UserError, content_hash, fold_hash, slice_from
from etl.stages import listed, selection
from etl.store import Store
from etl.tables import RECEIPTS, SELECTIONS

CHECKED_FILES = 1000
"""Of a table's version, looked for on disk before it is said that it can be read."""


def receipts(store: Store, dataset: str) -> dict[str, dict[str, Any]]:
    """selection_id -> receipt, as plain values."""
    rows = store.read(dataset, RECEIPTS).collect() if store.exists(dataset, RECEIPTS) else []
    parsed = [{k: (json.loads(v) if k in ("rule", "facts") else v) for k, v in row.asDict().items()} for row in rows]
    return {receipt["selection_id"]: receipt for receipt in parsed}


def receipt_of(store: Store, dataset: str, selection_id: str) -> dict[str, Any]:
    """One of them. Raises UserError where there is none."""
    known = receipts(store, dataset)
    if selection_id not in known:
        there = ", ".join(known) or "none yet"
        raise UserError(f"wanted a selection of {dataset}; found no {selection_id!r}; fix: one of {there}")
    return known[selection_id]


def funnel(receipt: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(step, pairs left, why the others left), from all pairs of the pool to those kept."""
    counts = dict(receipt["facts"]["num_rows_by_status"])
    kept, below = counts.pop("kept"), counts.pop("below_cut", 0)
    left = kept + below + sum(counts.values())
    steps = [("pairs in the pool", left, "")]
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        left -= count
        steps.append((f"not {reason}", left, f"{count:,} {reason}"))
    return [*steps, ("kept by the rule", kept, f"{below:,} below the cut")]


def newest(store: Store, dataset: str) -> dict[str, Any]:
    """The receipt that was written last. Raises UserError where there is none."""
    commits = store.history(dataset, RECEIPTS) if store.exists(dataset, RECEIPTS) else []
    slices = [commit.note.get("slice", {}) for commit in commits]
    if not (ids := [where["selection_id"] for where in slices if "selection_id" in where]):
        raise UserError(f"wanted a selection of {dataset}; found none; fix: dfn loop, or dfn select")
    return receipt_of(store, dataset, str(ids[0]))


def receipt_named(store: Store, dataset: str, named: str) -> dict[str, Any]:
    """The receipt of a selection by its id, or by its name where one only has it. Raises UserError."""
    known = receipts(store, dataset)
    found = [named] if named in known else [id_ for id_, receipt in known.items() if receipt["rule"]["name"] == named]
    if len(found) > 1:
        raise UserError(f"wanted one selection of {dataset}; found {len(found)} named {named}; "
                        f"fix: one of {', '.join(sorted(found))}")  # fmt: skip
    return known[found[0]] if found else receipt_of(store, dataset, named)


def cuts_of(store: Store, dataset: str, filter_version: str) -> list[float]:
    """The thresholds of the selections that this filter ranked."""
    rules = ((receipt, selection.ranked_by(receipt["rule"])) for receipt in receipts(store, dataset).values())
    cuts = (receipt["facts"]["threshold"] for receipt, ranked in rules if ranked and ranked[1] == filter_version)
    return [cut for cut in cuts if cut is not None]


@dataclass(frozen=True)
class Proof:
    """What became of a receipt that was held against the tables."""

    how: str
    """replayed: the rule was applied again to the tables as they were. stored: only the rows it made were hashed."""
    is_proved: bool
    hash: str
    num_rows: int
    reason: str | None
    """Why it could not be replayed."""
    num_forgotten: int = 0
    """Rows that takedowns took out since; `hash` and `num_rows` are with them."""


@dataclass(frozen=True)
class Replay:
    """The rule of a receipt over the tables as they were. Raises UserError for a rule of another release."""

    store: Store
    dataset: str
    receipt: Mapping[str, Any]

    @property
    def stage(self) -> Stage:
        """What made the selection: a rule, or a list."""
        return listed.STAGE if "listed" in self.receipt["rule"] else selection.STAGE

    @property
    def config(self) -> Any:
        try:
            return self.stage.config.model_validate(self.receipt["rule"])
        except pydantic.ValidationError:
            raise UserError(
                f"receipt {self.receipt['selection_id']}: wanted a rule of this release; found one of another; "
                "fix: verify it against the stored rows"
            ) from None

    @cached_property
    def inputs(self) -> dict[str, DataFrame]:
        """The tables that the rule reads, as they were: finding an old version costs seconds, so once."""
        config, found = self.config, {}
        for name, read in self.stage.reads.items():
            if read.is_read(config):
                version = self.receipt["inputs"][f"{self.dataset}.{read.table.name}"]
                where = read.slice_of(config) if read.slice_of else slice_from(read.table, config)
                found[name] = self.store.read(self.dataset, read.table, version=version, where=where)
        return found

    def obstacle(self) -> str | None:
        """Why tables, or files that the rule names, cannot be read as they were; None where they can."""
        try:
            for name, frame in self.inputs.items():
                if missing := _missing(frame.inputFiles()[:CHECKED_FILES]):
                    return f"{name}: {missing} is gone"
            self._check_files()
        except (UserError, AnalysisException, KeyError) as error:
            return str(error).strip().splitlines()[0][:200]
        return None

    def _check_files(self) -> None:
        """That those which the rule reads beside tables are there as they were. Raises UserError."""
        if self.stage is listed.STAGE:
            listed.check(self.config)
        else:
            for path in map(Path, self.config.files_sha256):
                pinned_bytes(path, self.config.files_sha256)

    def judged(self) -> DataFrame:
        """(uid, verdict, rank, is_kept) of every pair, by the cuts that the receipt holds."""
        inputs = dict(self.inputs)
        if self.stage is listed.STAGE:
            return listed.as_judged(inputs["pairs"], self.config)
        duplicates = inputs.pop("duplicates", None)
        given = {name: inputs.get(name) for name in judging.GATHERED}
        found = judging.gather(self.config, **given)  # type: ignore[arg-type]
        facts = self.receipt["facts"]
        judged = judging.judge(found, duplicates, self.config, facts)
        is_kept: Column = (F.col("verdict") == "eligible") & (judging.num_repeats(self.config, facts["cuts"]) > 0)
        return judged.select("uid", "verdict", "rank", is_kept.alias("is_kept"))

    def run(self) -> tuple[str, int]:
        """(hash, rows) of the rule applied again from nothing: its cuts are found anew."""
        inputs, config = self.inputs, self.config
        facts = {"key": self.receipt["selection_id"], "inputs": self.receipt["inputs"]}
        facts |= self.stage.prepare(**inputs, config=config) if self.stage.prepare else {}
        frames: Any = self.stage.transform(**inputs, config=config, facts=facts)
        row = frames[-1].collect()[0]
        return row["hash"], row["num_rows"]


def _missing(uris: list[str]) -> str | None:
    for uri in uris:
        files, path = fsspec.url_to_fs(uri)
        if not files.exists(path):
            return uri
    return None


def prove(store: Store, dataset: str, receipt: Mapping[str, Any]) -> Proof:
    """Replays a receipt; past retention it is held against the stored rows."""
    replay = Replay(store, dataset, receipt)
    reason = replay.obstacle()
    if not reason:
        found, num_rows = replay.run()
        is_proved = found == receipt["hash"] and num_rows == receipt["num_rows"]
        return Proof("replayed", is_proved, found, num_rows, None)
    return prove_stored(store, dataset, receipt, reason)


def prove_stored(store: Store, dataset: str, receipt: Mapping[str, Any], reason: str | None = None) -> Proof:
    """Holds a receipt against the rows that are there, with those that were forgotten: hashes are sums."""
    id_ = str(receipt["selection_id"])
    found, num_rows = stored(store, dataset, id_)
    num_forgotten, theirs = forgotten_of(takedowns(store), dataset, id_)
    if num_rows < receipt["num_rows"]:  # else a takedown has begun, and its rows are still there
        found, num_rows = f"{(int(found, 16) + theirs) % (1 << 128):032x}", num_rows + num_forgotten
    is_proved = found == receipt["hash"] and num_rows == receipt["num_rows"]
    return Proof("stored", is_proved, found, num_rows, reason, num_forgotten)


def stored(store: Store, dataset: str, selection_id: str) -> tuple[str, int]:
    """(hash, rows) of the rows of a selection as they are."""
    rows = store.read(dataset, SELECTIONS, where={"selection_id": selection_id})
    sums = rows.agg(F.count(F.lit(1)).alias("n"), *content_hash("uid", "num_repeats")).collect()[0]
    return fold_hash(sums["hash_high"], sums["hash_low"]), int(sums["n"])
