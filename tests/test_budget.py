"""What a budget makes of a selection: repeats, and the shares that induced runs in a real MLflow store speak for."""

import mlflow
import pytest

from etl.loop.budget import points_of, repeats_by_fraction
from etl.loop.loop_config import LoopConfig
from etl.stages.selection import Condition, Config, Keep
from models import tracking
from models.budget import Point

LOOP = LoopConfig(headline_parts=("things.r5", "things.top1"))


def receipt(hash_, keep, num_rows, **rule):
    scored_by = {"dfn": ("dfn", hash_)} if keep.top_fraction else {}
    config = Config(name=hash_, keep=keep, scored_by=scored_by, **rule)
    facts = {"num_eligible": 2_000}
    return {"hash": hash_, "num_rows": num_rows, "facts": facts, "rule": config.model_dump(mode="json")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a fifth at two budgets, the whole pool, and what must not count."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    assert tracking.finished_runs(uri, "tiny", kind="induced") == [], "no store, and none is made"
    tracking.connect(uri)
    mlflow.set_experiment("tiny")
    planted = [("a", 10, 0.2, 0.4), ("b", 10, 0.4, 0.6), ("a", 50, 0.5, 0.5), ("all", 10, 0.1, 0.1),
               ("random", 10, 0.9, 0.9), ("english", 10, 0.9, 0.9), ("unknown", 10, 0.9, 0.9)]  # fmt: skip
    for content, steps, r5, top1 in planted:
        with mlflow.start_run(tags={"kind": "induced"}):
            mlflow.log_params({"content": content, "steps": steps, "batch_size": 32})
            mlflow.log_metrics({"things.r5": r5, "things.top1": top1})
    with mlflow.start_run(tags={"kind": "filter"}):
        mlflow.log_params({"content": "a", "steps": 10, "batch_size": 32})
        mlflow.log_metrics({"things.r5": 0.9, "things.top1": 0.9})
    with pytest.raises(KeyError), mlflow.start_run(tags={"kind": "induced"}):
        mlflow.log_params({"content": "a", "steps": 10, "batch_size": 32})
        raise KeyError("killed")
    found = tracking.finished_runs(uri, "tiny", kind="induced")
    assert len(found) == len(planted) and tracking.finished_runs(uri, "other", kind="induced") == []
    return found


def test_points_are_of_the_same_ranking_of_the_same_pairs_over_seeds(runs):
    known = [
        receipt("a", Keep(top_fraction=0.2), 400),
        receipt("b", Keep(top_fraction=0.2), 400),  # another seed: another version of the filter of this name
        receipt("all", Keep(all=True), 2_000),
        receipt("random", Keep(random_fraction=0.2), 400),
        receipt("english", Keep(top_fraction=0.2), 400, where=Condition(of="language", is_in=("en",))),
    ]
    assert points_of(known, runs, LOOP, known[0]) == [
        Point(0.2, 400, 320, pytest.approx(1 - (0.3 + 0.5) / 2)),
        Point(0.2, 400, 1_600, pytest.approx(0.5)),
        Point(1.0, 2_000, 320, pytest.approx(0.9)),
    ]
    assert points_of(known, runs, LoopConfig(headline_parts=("other.r5",)), known[0]) == []


def test_repeats_follow_from_the_samples_that_a_run_sees():
    of = {"num_rows": 150, "facts": {"num_eligible": 1000}}
    found = repeats_by_fraction(of, 1000)
    assert found["this_selection"] == 6.67 and found["by_fraction"]["15%"] == 6.67 and "warning" not in found
    assert found["by_fraction"]["100%"] == 1.0
    assert "repeats" in repeats_by_fraction(of, 2000)["warning"]
