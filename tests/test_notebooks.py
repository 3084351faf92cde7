"""The notebooks run outside Databricks, and say what the tables say."""

import runpy
import shutil
from pathlib import Path

import matplotlib
import mlflow
import pytest

from models.records import FilterRecord

matplotlib.use("agg")
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


class Widgets:
    """What a notebook uses of `dbutils`."""

    def __init__(self, given):
        self.given, self.shown = given, {}
        self.widgets = self

    def text(self, name, default):
        self.shown[name] = default

    def get(self, name):
        return self.given.get(name, self.shown[name])


@pytest.fixture
def run(monkeypatch, capsys):
    """run(notebook, parameters) -> the variables that it left, with its figures as `figures`."""
    from matplotlib import pyplot

    def run(name, given, is_databricks=False):
        if not is_databricks:
            for key, value in given.items():
                monkeypatch.setenv(f"DFN_{key.upper()}", value)
        pyplot.close("all")
        left = runpy.run_path(str(NOTEBOOKS / f"{name}.py"), {"dbutils": Widgets(given)} if is_databricks else {})
        return left | {"figures": [pyplot.figure(number) for number in pyplot.get_fignums()]}

    yield run
    pyplot.close("all")


@pytest.fixture
def of_tiny(tiny):
    """Parameters that name the shared project: for notebooks that only read."""
    return {"conf": "tiny", "set": f"output={tiny[0].config.output_folder}"}


@pytest.fixture
def of_copy(tiny_output, tmp_path):
    """Parameters that name a copy of it."""
    shutil.copytree(tiny_output, tmp_path / "copy")
    return {"conf": "tiny", "set": f"output={tmp_path / 'copy'}"}


@pytest.fixture
def stored(tiny):
    """(folder of a filter, its stored scores by uid, the threshold of its selection)."""
    from etl.tables import SCORES

    project, ended, _ = tiny
    filter_ = ended.filters[1].final.folder
    record = FilterRecord.read(filter_)
    where = {"filter": record.name, "filter_version": record.version}
    rows = project.store.read("pool", SCORES, where=where).select("uid", "score").collect()
    return filter_, {row["uid"]: row["score"] for row in rows}, ended.arms["dfn"].receipts[1]["facts"]["threshold"]


def kept(project, receipt):
    from etl.tables import SELECTIONS

    rows = project.store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]}).collect()
    return {row["uid"] for row in rows}


def pictures(figure):
    """Titles of the axes that show a picture."""
    return [axis.get_title() for axis in figure.axes if axis.images]


def test_every_notebook_has_a_test_and_begins_as_databricks_wants_it():
    names = [path.stem for path in sorted(NOTEBOOKS.glob("*.py"))]
    assert names == ["00_doctor", "01_pool", "02_score", "03_select", "04_train", "05_promote"]
    for name in names:
        assert (NOTEBOOKS / f"{name}.py").read_text().startswith("# Databricks notebook source\n# MAGIC %md\n")
        assert f'run("{name}"' in Path(__file__).read_text()


@pytest.mark.slow
def test_the_doctor_says_what_the_command_says_and_stops_a_job_where_something_is_broken(
    spark, run, tmp_path, mlflow_uri
):
    from etl.stage import UserError

    given = {"conf": "tiny", "set": f"output={tmp_path} tracking_uri={mlflow_uri}", "tasks": "2"}
    left = run("00_doctor", given)
    names = [
        "driver",
        "spark",
        "tables",
        "executors",
        "code",
        "gpus",
        "data pool",
        "data clean",
        "data things",
        "mlflow",
    ]
    assert [(check.name, check.is_ok) for check in left["checks"]] == [(name, True) for name in names]
    broken = f"{given['set']} datasets.things.corpus=null datasets.things.shards={tmp_path}/none/*.tar"
    with pytest.raises(UserError, match="wanted all checks to pass; found data things; fix: as said above"):
        run("00_doctor", given | {"set": broken})


@pytest.mark.slow
def test_the_pool_shows_every_row_by_status_and_the_funnel_of_the_newest_selection(tiny, run, of_tiny):
    _, ended, _ = tiny
    left = run("01_pool", of_tiny)
    assert left["statuses"].loc["pool.pairs", "ok"] == 400
    assert left["statuses"].loc["things.embeddings", "ok"] == 100
    assert left["reasons"].empty
    assert sum(counts["pairs"] for counts in left["sources"].values()) == 400 and len(left["sources"]) == 8
    ids = {str(r["selection_id"]) for arm in ended.arms.values() for r in arm.receipts.values()}
    assert left["receipt"]["selection_id"] in ids
    steps = left["steps"]["pairs"].tolist()
    assert (steps[0], steps[-1]) == (400, left["receipt"]["num_rows"])
    (figure,) = left["figures"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == steps[::-1]
    dfn = ended.arms["dfn"].receipts[2]
    chosen = run("01_pool", of_tiny | {"selection": dfn["selection_id"]})["steps"]
    assert chosen["pairs"].tolist()[-1] == dfn["num_rows"] < steps[0]


@pytest.mark.parametrize("is_databricks", [False, True], ids=["anywhere", "databricks"])
def test_scores_from_pixels_are_the_stored_ones(run, of_tiny, stored, is_databricks):
    filter_, scores, threshold = stored
    left = run("02_score", of_tiny | {"filter": str(filter_), "num_pairs": "30"}, is_databricks)
    found = dict(zip(left["scored"]["uid"], left["scored"]["score"], strict=True))
    assert len(found) == 30
    assert {uid: scores[uid] for uid in found} == pytest.approx(found, abs=1e-4)
    assert left["threshold"] == threshold
    assert len(set(found.values())) > 20
    distances = sorted(abs(score - threshold) for score in found.values())
    assert sorted(abs(left["near"]["score"] - threshold)) == pytest.approx(distances[:12], abs=1e-6)
    histogram, grid = left["figures"]
    assert len(histogram.axes) == 1
    assert [title[:5] for title in pictures(grid)] == [f"{score:.3f}"[:5] for score in left["near"]["score"]]


@pytest.mark.slow
def test_another_rule_shows_who_enters_and_who_leaves_and_why(tiny, run, of_copy):
    """From the selection of one seed's filter to that of another's, whose pairs the loop has stored."""
    project, ended, _ = tiny
    was, is_ = (ended.arms["dfn"].receipts[seed] for seed in (1, 2))
    given = {"rule": "stages.selection.keep.top_fraction=0.15", "before": was["selection_id"], "num_pairs": "5"}
    left = run("03_select", of_copy | given | {"filter": str(ended.filters[2].final.folder)})
    before, after = kept(project, was), kept(project, is_)
    assert left["receipt"]["hash"] == is_["hash"] and left["after"] != was["selection_id"]
    assert (left["found"]["left"], left["found"]["entered"]) == (len(before - after), len(after - before))
    assert min(len(before - after), len(after - before)) > 5
    moved = {name: set(rows["uid"]) for name, rows in left["moved"].groupby("change")}
    assert {name: len(uids) for name, uids in moved.items()} == {"entered": 5, "left": 5}
    assert moved["entered"] < after - before and moved["left"] < before - after
    assert (left["moved"][["score_before", "score_after"]].notna().all(axis=1)).all()
    assert [len(pictures(figure)) for figure in left["figures"]] == [5, 5]


def test_induced_runs_stand_beside_those_that_judged_the_champion(tiny, run, of_tiny):
    _, ended, _ = tiny
    left = run("04_train", of_tiny)
    runs, headline = left["runs"], left["headline"]
    wanted = {name: dict(arm.metrics[headline]) for name, arm in ended.arms.items()}
    wanted |= {"champion": wanted["dfn"]} if ended.is_promoted else {}
    found = {arm: dict(zip(rows["seed"], rows[headline], strict=True)) for arm, rows in runs.groupby("arm")}
    assert found.keys() == wanted.keys()
    for arm, by_seed in wanted.items():
        assert found[arm] == pytest.approx(by_seed)
    assert set(runs["samples_seen"]) == {40 * 32}
    (figure,) = left["figures"]
    assert len([line for line in figure.axes[0].lines if line.get_marker() == "o"]) == len(wanted)


@pytest.mark.slow
def test_a_decision_is_shown_approved_and_taken_back(run, of_copy):
    from etl.config import load
    from etl.loop.promotion import WAITING, Decision, Promotions
    from etl.project import Project
    from models import registry
    from models.tracking import connect

    project = Project(load(["tiny"], of_copy["set"].split()))
    connect(project.tracking_uri)
    promotions = Promotions(project.store, "dfn_filter")
    shown = run("05_promote", of_copy)
    before = [decision.decision_id for decision in promotions.decisions()]
    assert shown["decisions"]["decision_id"].tolist() == before[::-1] and shown["done"] is None
    for version in ("two", "three"):
        mlflow.MlflowClient().create_model_version("dfn_filter", "somewhere", tags={"filter_version": version})
        waiting = Decision.of("dfn_filter", version, "champion", WAITING, "avg better", follows=promotions.tip(),
                              facts={"values": {"0": 0.1, "1": 0.2}})  # fmt: skip
        promotions.add(waiting)
        act = {"act": "approve", "decision": waiting.decision_id, "approver": "Ada"}
        left = run("05_promote", of_copy | act)
        assert (left["done"].challenger, left["done"].approver, left["standing"][-1].challenger) == (
            version, "Ada", version
        )  # fmt: skip
        assert registry.tags_of("dfn_filter", registry.champion())["filter_version"] == version
    assert len(left["figures"]) == 1
    back = run("05_promote", of_copy | {"act": "rollback", "approver": "Grace"})
    assert (back["done"].challenger, back["done"].approver) == ("two", "Grace")
    assert registry.tags_of("dfn_filter", registry.champion())["filter_version"] == "two"
    assert len(promotions.decisions()) == len(before) + 5


def test_a_filter_of_other_towers_is_refused(tiny, stored, tmp_path):
    from etl.encode.gpu import make_dfn_score
    from etl.stages import score
    from models.records import WeightsError

    project, _, _ = tiny
    other = tmp_path / "other"
    other.mkdir()
    record = FilterRecord.read(stored[0]).model_copy(update={"encoder_version": "0" * 16})
    for file in stored[0].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    record.write(other)
    with pytest.raises(WeightsError, match="fix: give the encoder that the filter was trained on"):
        make_dfn_score(project.encoder[1], other)
    with pytest.raises(WeightsError, match="wanted encoder"):
        project.with_filter(score.STAGE, other)


def test_what_an_evaluation_set_has_too_is_not_shown(tiny):
    """Pairs of the clean set that are near ones of `things`, with three others between them."""
    from etl.notebook import with_images
    from etl.tables import CONTAMINATED, PAIRS

    project, _, _ = tiny
    leaked = {row["uid"] for row in project.store.read("clean", CONTAMINATED).collect()}
    pairs = project.store.read("clean", PAIRS).where("status = 'ok'").orderBy("uid").toPandas()
    others = pairs[~pairs["uid"].isin(leaked)].head(3)
    rows = pairs[pairs["uid"].isin([*leaked, *others["uid"]])]
    assert leaked and len(rows) == len(leaked) + 3
    shown = with_images(project, "clean", rows)
    assert list(shown["uid"]) == list(others["uid"])
    assert all(shown["image"].str.len() > 0)
