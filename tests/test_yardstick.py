"""What a champion was judged by is read from MLflow again: at the scale of the seeds, and at the target scale."""

import json
from pathlib import Path

import mlflow
import pytest

from etl.config import load
from etl.loop.training import Data, EvalSet, Trained
from etl.loop.yardstick import Yardstick
from etl.project import Project
from etl.stage import UserError
from models.tracking import connect

SETTINGS = ["loop.gate.proxy={steps: 10, batch_size: 32}"]


def yardstick(*overrides):
    sets = (EvalSet("things", Path("things-1"), None),)
    return Yardstick(Project(load(["tiny"], overrides)), sets, Data(Path("pool-1"), "pool-1", {"/lake/pool": 3}))


@pytest.fixture
def champion(mlflow_uri):
    """(tags of a version that a proxy judged under two seeds and one run of the target scale confirmed, its runs)."""
    connect(mlflow_uri)
    experiment, runs = mlflow.MlflowClient().create_experiment("tiny"), []
    for value in (0.25, 0.5, 0.75):
        with mlflow.start_run(experiment_id=experiment) as run:
            mlflow.log_metrics({"things.r5": value, "loss": 1.0})
        runs.append(run.info.run_id)
    made = yardstick(*SETTINGS)
    models = {seed: Trained(Path("none"), {}, run) for seed, run in enumerate(runs[:2])}
    evidence = made.evidence(models, {1: Trained(Path("none"), {}, runs[2])})
    return {"judged": json.dumps(evidence)}, runs


def test_its_values_are_those_of_its_runs_at_either_scale(champion):
    tags, runs = champion
    found = yardstick(*SETTINGS)
    assert found.champion("clip", "3", tags)["avg"] == {0: 0.25, 1: 0.5}
    seed, run, values = found.champion_at_target("clip", "3", tags, [0, 1])
    assert (seed, run, values["avg"], values["things.r5"]) == (1, runs[2], {1: 0.75}, {1: 0.75})
    for seeds, overrides in (([0], []), ([0, 1], ["loop.induced.steps=41"])):
        with pytest.raises(UserError, match=r"wanted a run of clip version 3 at loop.induced, under a seed of this"):
            yardstick(*SETTINGS, *overrides).champion_at_target("clip", "3", tags, seeds)


def test_another_scale_than_the_champions_is_refused_by_name(champion):
    tags, _ = champion
    with pytest.raises(UserError, match=r"wanted loop.induced as the champion's, {'steps': 10"):
        yardstick().champion("clip", "3", tags)
    with pytest.raises(UserError, match=r"wanted loop.gate.proxy as the champion's, .* found {'steps': 11"):
        yardstick("loop.gate.proxy={steps: 11, batch_size: 32}").champion("clip", "3", tags)


def test_at_a_proxy_scale_a_champion_is_known_by_its_runs(champion):
    tags, runs = champion
    for seed, run, is_same in ((0, runs[0], True), (1, runs[0], False), (0, "another", False)):
        mine = {seed: Trained(Path("none"), {}, run)}
        assert yardstick(*SETTINGS).is_judged_by(tags, mine) == is_same
        assert not yardstick().is_judged_by(tags, mine)
