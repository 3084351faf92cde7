"""The table `runs`: one row per stage or training run, found again by its key. Touches that table only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import functions as F

from etl.stage import Facts, digest
from etl.store import Store
from etl.tables import RUNS
from models.records import code_commit

RECENT_RUNS = 10
"""Of a stage, whose pace is taken for that of the next."""
MAX_RUNS = 2000
"""Of all stages, that come to the driver."""


@dataclass(frozen=True)
class RunRow:
    """One row of `runs`, see there."""

    name: str
    dataset: str | None
    key: str
    inputs: Mapping[str, int]
    config_json: str
    facts: Facts
    seconds: float
    num_rows_in: int | None = None
    output_version: int | None = None
    num_rows_by_status: Mapping[str, int] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        return digest(self.name, self.dataset, self.key)[:16]


def record_runs(store: Store, runs: Sequence[RunRow]) -> None:
    """Rows in `runs`, in one commit."""
    if not store.exists("", RUNS):
        store.create("", RUNS)
    now = datetime.now(UTC)
    rows = [
        (
            run.run_id, run.name, run.dataset, run.key, dict(run.inputs), run.output_version, run.config_json,
            json.dumps(run.facts), code_commit(), run.seconds, run.num_rows_in, dict(run.num_rows_by_status), now,
        )
        for run in runs
    ]  # fmt: skip
    content = digest([run.run_id for run in runs])  # once per run, also when a kill came right after this commit
    store.append_once(store.rows("", RUNS, rows), "", RUNS, content=content, note={"slice": {}})


def recent_runs(store: Store, stages: Sequence[str]) -> list[dict[str, Any]]:
    """Runs of stages that wrote rows, newest first: name, dataset, key, config_json, seconds, `rows` of each."""
    if not store.exists("", RUNS):
        return []
    written = F.coalesce(F.get_json_object("facts_json", "$.num_rows_written").cast("bigint"), "num_rows_in")
    runs = store.read("", RUNS).where(F.col("name").isin(list(stages))).withColumn("rows", written).where("rows > 0")
    told = runs.orderBy(F.desc("ended_at")).select("name", "dataset", "key", "config_json", "seconds", "rows")
    return [row.asDict() for row in told.limit(MAX_RUNS).collect()]


def find_runs(store: Store) -> dict[tuple[str, str], Facts]:
    """(name, key) -> what the newest run of it found. A run whose key is not here is not up to date."""
    if not store.exists("", RUNS):
        return {}
    rows = store.read("", RUNS).orderBy("ended_at").select("name", "key", "facts_json").collect()
    return {(row["name"], row["key"]): json.loads(row["facts_json"]) for row in rows}
