"""What earlier runs took, as points (rows, core-seconds) of each stage; a line through them; what it says of another.

Reads the table `runs`, and counts pairs. A line is what a stage costs once and for each row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import functions as F
from scipy.optimize import nnls  # type: ignore[import-untyped]

from etl.plan.rates import Rates, StageRate
from etl.stage import UserError
from etl.store import Store
from etl.tables import PAIRS, RUNS

COUNTS_FILES = ("ingest",)
"""Stages whose rows are files: their pairs are shared out over their runs."""
WORK = ("read_seconds", "decode_seconds", "model_seconds")
"""Of a pass over pixels, summed over its tasks: what is not waiting."""


@dataclass(frozen=True)
class Point:
    rows: int
    core_seconds: float
    model_share: float = 0.0
    """Of a pass over pixels: how much of its work was the model's, which a GPU would do."""


@dataclass(frozen=True)
class Line:
    """core_seconds = fixed + per_row * rows"""

    fixed: float
    per_row: float
    num_sizes: int
    """Different numbers of rows that it was drawn through."""
    model_share: float = 0.0

    def at(self, rows: int) -> float:
        return self.fixed + self.per_row * rows


def points(store: Store, dataset: str, cores: int) -> dict[str, list[Point]]:
    """Stage -> its runs on a dataset that had rows.

    Args:
        cores: of the machine, for runs that did not note their CPU seconds: all are taken to have worked.

    Raises:
        UserError: no run.
    """
    if not store.exists("", RUNS) or not store.exists(dataset, PAIRS):
        raise UserError(f"plan: wanted a run of {dataset} in {store.root}; found none; fix: dfn run, or no --conf")
    fact = {name: F.get_json_object("facts_json", f"$.{name}") for name in ("num_rows_written", "cpu_seconds")}
    times = {name: F.get_json_object("facts_json", f"$.timings.{name}") for name in WORK}
    told = store.read("", RUNS).where((F.col("dataset") == dataset) & (F.col("num_rows_in") > 0))
    columns = {name: column.cast("double").alias(name) for name, column in (fact | times).items()}
    rows = told.select("name", "num_rows_in", "seconds", *columns.values()).collect()
    found: dict[str, list[Point]] = defaultdict(list)
    files = {name: sum(row["num_rows_in"] for row in rows if row["name"] == name) for name in COUNTS_FILES}
    num_pairs = store.read(dataset, PAIRS).count()
    for row in rows:
        name, count = row["name"], int(row["num_rows_written"] or row["num_rows_in"])
        count = round(num_pairs * row["num_rows_in"] / files[name]) if name in files else count
        seconds = row["cpu_seconds"] if row["cpu_seconds"] is not None else row["seconds"] * cores
        found[name].append(Point(count, float(seconds), _model_share(row)))
    return dict(found)


def _model_share(row: Any) -> float:
    busy = sum(row[name] or 0.0 for name in WORK)
    return float(row["model_seconds"] / busy) if busy else 0.0


def fit(measured: Sequence[Point], default: StageRate | None) -> Line:
    """The line, neither part below 0, whose relative errors are smallest in the square.

    Points of one size tell no slope: then what is fixed is the default's, at most all of it.
    """
    sizes = {point.rows for point in measured}
    model = float(np.mean([point.model_share for point in measured]))
    took = np.array([max(point.core_seconds, 1e-9) for point in measured])
    rows = np.array([point.rows for point in measured], dtype=float)
    if len(sizes) == 1:
        fixed = min(default.fixed_seconds if default else 0.0, float(took.mean()))
        return Line(fixed, (float(took.mean()) - fixed) / rows[0], 1, model)
    (fixed, per_row), _ = nnls(np.stack([1 / took, rows / took], axis=1), np.ones(len(took)))
    return Line(float(fixed), float(per_row), len(sizes), model)


def fits(samples: Sequence[Mapping[str, Sequence[Point]]], rates: Rates) -> dict[str, Line]:
    """Stage -> the line through its points of all samples."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    joined = {name: [p for sample in samples for p in sample.get(name, ())] for name in names}
    return {name: fit(measured, rates.stages.get(name)) for name, measured in joined.items()}


def measured_rates(rates: Rates, lines: Mapping[str, Line]) -> Rates:
    """The rates, with what was measured in place of their defaults; what the model took is left to the GPU."""
    stages = dict(rates.stages)
    for name, line in lines.items():
        known = stages.get(name)
        on_cpu = line.per_row * (1 - line.model_share if known and known.cluster == "gpu" else 1)
        base = known or StageRate(cluster="cpu")
        stages[name] = base.model_copy(update={"fixed_seconds": line.fixed, "core_seconds": on_cpu})
    return rates.model_copy(update={"stages": stages})


def compared(lines: Mapping[str, Line], took: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    """A row a stage that both know, the largest first: core-seconds predicted, taken, and their ratio; then the sum."""
    rows = []
    for name in lines.keys() & took.keys():
        predicted = sum(lines[name].at(point.rows) for point in took[name])
        rows.append((name, sum(p.rows for p in took[name]), predicted, sum(p.core_seconds for p in took[name])))
    rows.sort(key=lambda row: -row[3])
    rows.append(("all", rows[0][1] if rows else 0, sum(r[2] for r in rows), sum(r[3] for r in rows)))
    return [
        {
            "stage": name,
            "rows": n,
            "predicted": round(guess, 1),
            "took": round(real, 1),
            "ratio": round(guess / real, 2),
        }
        for name, n, guess, real in rows
        if real
    ]
