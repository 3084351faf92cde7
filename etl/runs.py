"""The table `runs`: one row per stage or training run, found again by its key. Touches that table only."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from etl.stage import Facts, digest
from etl.store import Store
from etl.tables import RUNS


def record_run(store: Store, *, name: str, dataset: str | None, key: str, inputs: Mapping[str, int], config_json: str,
               facts: Facts, seconds: float, num_rows_in: int | None = None, output_version: int | None = None,
               num_rows_by_status: Mapping[str, int] | None = None) -> str:  # fmt: skip
    """One row in `runs`; returns its run_id, which follows from name and key."""
    if not store.exists("", RUNS):
        store.create("", RUNS)
    run_id = digest(name, dataset, key)[:16]
    row = (
        run_id, name, dataset, key, dict(inputs), output_version, config_json, json.dumps(facts), git_commit(), seconds,
        num_rows_in, dict(num_rows_by_status or {}), datetime.now(UTC),
    )  # fmt: skip
    frame = store.spark.createDataFrame([row], store.schema("", RUNS))
    store.append_once(frame, "", RUNS, content=digest(run_id, str(row[-1])), note={"slice": {}, "run": run_id})
    return run_id


def find_runs(store: Store) -> dict[tuple[str, str], Facts]:
    """(name, key) -> what the newest run of it found. A run whose key is not here is not up to date."""
    if not store.exists("", RUNS):
        return {}
    rows = store.read("", RUNS).orderBy("ended_at").select("name", "key", "facts_json").collect()
    return {(row["name"], row["key"]): json.loads(row["facts_json"]) for row in rows}


@cache
def git_commit() -> str | None:
    """The commit of the code that runs, where it runs from a checkout."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
