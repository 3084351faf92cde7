"""What the models that a selection induced are worth, with intervals. Reads MLflow, `runs` and `evaluations`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import sqrt
from statistics import mean, stdev
from typing import Any

from pyspark.sql import functions as F
from scipy import stats  # type: ignore[import-untyped]

from etl.project import Project
from etl.report.card import Measured
from etl.tables import EVALUATIONS, PAIRS, RUNS
from models import trace
from models.tracking import TrackingDownError, answering, may_answer

LEVEL = 0.95
SHARES = ("r1", "r5", "r10")
"""Ends of the names of metrics that are shares of the set's items."""


def measured(project: Project, receipt: Mapping[str, Any]) -> tuple[list[Measured], str | None]:
    """Metrics of the models trained on a selection's content, headline parts first; and why there are none, if that is
    not that none was trained."""
    store = project.store
    if not may_answer(project.tracking_uri):
        return [], None
    try:
        with answering(project.tracking_uri):
            ids = [run.run_id for run in trace.runs_with({"selection_hash": str(receipt["hash"])})]
    except TrackingDownError as error:
        return [], f"Induced models are not known: {error}"
    if not ids or not (store.exists("", RUNS) and store.exists("", EVALUATIONS)):
        return [], None
    of_mlflow = F.get_json_object("facts_json", "$.mlflow_run_id")
    runs = store.read("", RUNS).where(of_mlflow.isin(ids)).select("run_id", "config_json")
    rows = store.read("", EVALUATIONS).join(F.broadcast(runs), on="run_id", how="inner").collect()
    recipes = sorted({row["config_json"] for row in rows})
    sizes = {task: _num_items(project, task) for task in {row["task"] for row in rows}}

    def key(row: Any) -> tuple[str, str, int]:
        return row["task"], row["metric"], recipes.index(row["config_json"])

    found = []
    for (task, metric, recipe), some in groupby(sorted(rows, key=key), key):
        name = f"{task}.{metric}" + (f", {_samples(recipes[recipe])}" if len(recipes) > 1 else "")
        items = sizes[task] if metric.endswith(SHARES) else 0
        found.append(_measured(name, [float(row["value"]) for row in some], items))
    first = project.config.loop.headline_parts
    return sorted(found, key=lambda m: (not m.metric.startswith(tuple(first or ("\0",))), m.metric)), None


def _samples(config_json: str) -> str:
    """How long a recipe trains."""
    recipe = json.loads(config_json)
    return f"{recipe.get('steps', 0) * recipe.get('batch_size', 0):,} samples seen"


def _num_items(project: Project, task: str) -> int:
    store = project.store
    return store.read(task, PAIRS).where("status = 'ok'").count() if store.exists(task, PAIRS) else 0


def _measured(metric: str, values: Sequence[float], num_items: int) -> Measured:
    """Over seeds Student's interval; of one seed Wilson's over items (Wilson 1927, JASA 22, 209-212), which knows
    nothing of seeds. Of the mean of both directions of retrieval the items are counted once: too wide, if anything."""
    value, number = mean(values), len(values)
    if number > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * stdev(values) / sqrt(number)
        return Measured(metric, value, value - half, value + half, f"{number} seeds")
    if num_items:
        found = stats.binomtest(round(value * num_items), num_items).proportion_ci(LEVEL, method="wilson")
        return Measured(metric, value, float(found.low), float(found.high), f"{num_items:,} items, one seed")
    return Measured(metric, value, None, None, "one seed: not known")
