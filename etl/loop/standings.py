"""The induced runs of a project beside those that judged its champion, as a frame. Reads MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from etl.loop.arms import headline
from etl.project import Project

CHAMPION = "champion"


def standings(project: Project, model: str) -> pd.DataFrame:
    """A row a finished induced run: arm, seed, samples_seen, the headline and its parts.

    The champion's runs come again as the arm `champion`: those that its version of `model` names in the tag `judged`.

    Raises:
        TrackingDownError: MLflow does not answer.
    """
    from models import registry
    from models.tracking import answering, finished_runs

    loop, uri = project.config.loop, project.tracking_uri
    runs = finished_runs(uri, project.config.name, kind="induced")
    rows = [_row(loop, params["arm"], params["seed"], params, metrics) for params, metrics in runs
            if all(part in metrics for part in loop.headline_parts)]  # fmt: skip
    with answering(uri):
        judged = json.loads((registry.champion_tags(model) or {}).get("judged", "{}"))
        of_champion = registry.metrics_of({int(seed): run for seed, run in judged.get("runs", {}).items()})
    rows += [_row(loop, CHAMPION, seed, judged["recipe"], metrics) for seed, metrics in sorted(of_champion.items())]
    columns = ["arm", "seed", "samples_seen", loop.headline, *loop.headline_parts]
    return pd.DataFrame(rows, columns=columns).sort_values(["arm", "seed"], ignore_index=True)


def _row(loop: Any, arm: str, seed: Any, recipe: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    seen = int(recipe["steps"]) * int(recipe["batch_size"])
    parts = {part: metrics[part] for part in loop.headline_parts}
    return {"arm": arm, "seed": int(seed), "samples_seen": seen, loop.headline: headline(loop, metrics), **parts}
