"""A receipt's funnel, and induced runs beside the champion's: what notebooks show, on values made by hand."""

import json

import mlflow

from etl.config import load
from etl.loop.standings import standings
from etl.project import Project
from etl.selection.receipts import funnel
from models import registry, tracking


def test_each_step_of_the_funnel_says_why_the_others_left():
    counts = {"kept": 15, "below_cut": 60, "duplicate": 5, "contaminated": 20}
    assert funnel({"facts": {"num_rows_by_status": counts}}) == [
        ("pairs in the pool", 100, ""),
        ("not contaminated", 80, "20 contaminated"),
        ("not duplicate", 75, "5 duplicate"),
        ("kept by the rule", 15, "60 below the cut"),
    ]


def test_the_champions_own_runs_stand_as_an_arm(mlflow_uri):
    tracking.connect(mlflow_uri)
    logged = {}
    for seed, value in enumerate((0.25, 0.5)):
        params = {"arm": "dfn", "seed": seed, "steps": 40, "batch_size": 32}
        logged[seed] = tracking.log_run(mlflow_uri, "tiny", f"seed {seed}", params=params,
                                        metrics={"things.r5": value}, tags={"kind": "induced"})  # fmt: skip
    client = mlflow.MlflowClient()
    client.create_registered_model("dfn_filter")
    judged = {"runs": {"1": logged[1]}, "recipe": {"steps": 80, "batch_size": 32}}
    client.create_model_version("dfn_filter", "somewhere", tags={"judged": json.dumps(judged)})
    registry.set_alias("dfn_filter", "champion", "1")
    found = standings(Project(load(["tiny"], [f"tracking_uri={mlflow_uri}"])), "dfn_filter")
    rows = [tuple(row) for row in found[["arm", "seed", "samples_seen", "things.r5"]].itertuples(index=False)]
    assert rows == [("champion", 1, 2560, 0.5), ("dfn", 0, 1280, 0.25), ("dfn", 1, 1280, 0.5)]
