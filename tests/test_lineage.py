"""From a model to the rows, filter, filter dataset and code that made it, and from a row to all models: both ways."""

from dataclasses import replace

import mlflow
import pytest
from training_data import job

from etl.commands.train import _from_selection
from etl.loop.lineage import Lineage
from etl.loop.train_log import log
from etl.loop.yardstick import run_id
from etl.stage import UserError
from etl.tables import PAIRS, SELECTIONS
from models import trace
from models.pretrain import run
from models.records import EncoderRecord, FilterRecord, code_commit
from models.tracking import answering


@pytest.fixture(scope="module")
def lineage(tiny):
    """what -> its lineage in the tiny recipe."""

    def of(what):
        with answering(tiny[0].tracking_uri):
            return Lineage(tiny[0]).of(what)

    return of


def runs_by_selection(ended):
    """selection -> runs of the models that were trained on it."""
    found = {}
    for arm in ended.arms.values():
        for seed, receipt in arm.receipts.items():
            found.setdefault(receipt["selection_id"], set()).add(run_id(arm.models[seed]))
    return found


def test_an_induced_model_leads_to_its_rows_filter_dataset_and_code(tiny, lineage):
    project, ended, _ = tiny
    receipt, model = ended.arms["dfn"].receipts[1], ended.arms["dfn"].models[1]
    found = lineage(run_id(model))
    assert (found["kind"], found["arm"], found["seed"]) == ("induced", "dfn", "1")
    assert found["heads"] == FilterRecord.read(model.folder).version
    assert found["code_commit"] == code_commit() is not None
    selection = found["selection"]
    assert (selection["selection"], selection["hash"]) == (receipt["selection_id"], receipt["hash"])
    assert selection["delta_versions"] == receipt["inputs"]
    assert selection["code_commit"] == code_commit()
    filter_ = selection["filters"]["dfn"]
    assert filter_["filter_version"] == FilterRecord.read(ended.filters[1].final.folder).version
    assert (filter_["run"], filter_["seed"]) == (run_id(ended.filters[1].final), "1")
    assert list(filter_["filter_dataset"]) == [f"{project.store.root}/clean/embeddings"]


def test_a_registered_model_is_its_run(tiny, lineage):
    found = lineage("dfn_filter/1")
    assert found == lineage("models:/dfn_filter/1")
    assert (found["run"], found["registered"]) == (run_id(tiny[1].filters[0].final), ["dfn_filter/1"])
    with pytest.raises(UserError, match="wanted a version of dfn_filter with its run; found 99"):
        lineage("dfn_filter/99")
    with pytest.raises(UserError, match="wanted a version of none with its run; found champion, aliases: none"):
        lineage("none@champion")


def test_a_selection_leads_to_all_models_trained_on_it(tiny, lineage):
    for selection, runs in runs_by_selection(tiny[1]).items():
        assert {model["run"] for model in lineage(selection)["models"]} == runs
    with pytest.raises(UserError, match="found 0123456789abcdef"):
        lineage("0123456789abcdef")


def test_a_row_leads_to_all_selections_that_hold_it_and_all_models_trained_on_it(tiny, lineage):
    project, ended, _ = tiny
    runs, holding = runs_by_selection(ended), {}
    for row in project.store.read("pool", SELECTIONS).select("uid", "selection_id").collect():
        holding.setdefault(row["uid"], set()).add(row["selection_id"])
    most, least = (choose(holding, key=lambda uid: (len(holding[uid]), uid)) for choose in (max, min))
    assert len(holding[most]) > len(holding[least]) == 1  # the whole pool
    for uid in (most, least):
        found = lineage(uid)
        assert (found["datasets"], set(found["selections"])) == (["pool"], holding[uid])
        assert {m["run"] for m in found["models"]} == set.union(*(runs[selection] for selection in holding[uid]))


def test_a_row_of_a_filter_dataset_leads_to_the_filters(tiny, lineage):
    uid = tiny[0].store.read("clean", PAIRS).orderBy("uid").first()["uid"]
    found = lineage(uid)
    assert (found["datasets"], found["selections"]) == (["clean"], {})
    assert {model["run"] for model in found["models"]} == {run_id(made.final) for made in tiny[1].filters.values()}
    for nothing in ("f" * 32, "what is this"):
        with pytest.raises(UserError, match="lineage: wanted"):
            lineage(nothing)


def test_a_clip_of_dfn_train_leads_to_its_rows_and_a_row_to_it(tiny, lineage, tmp_path):
    project, receipt = tiny[0], tiny[1].arms["dfn"].receipts[0]
    given, origin = _from_selection(job(tmp_path, samples_seen=16), project, "pool", receipt["selection_id"])
    result = run(given)
    with pytest.raises(UserError, match=f"wanted a model's folder whose run is in MLflow; found none of {given.out}"):
        lineage(str(given.out))
    assert log(given, result, {"r5": 0.5}, replace(origin, tracking_uri="http://127.0.0.1:1")) is None
    run_id = log(given, result, {"r5": 0.5}, origin)  # what waited
    assert log(given, result, {"r5": 0.5}, origin) == run_id
    try:
        found = lineage(str(given.out))
        version = EncoderRecord.read(given.out / "clip").version
        assert (found["run"], found["kind"], found["encoder_version"]) == (run_id, "pretrained", version)
        assert (found["selection"]["hash"], found["code_commit"]) == (receipt["hash"], code_commit())
        assert found["delta_versions"] == receipt["inputs"]
        assert found | {"model": str(given.out / "clip")} == lineage(str(given.out / "clip"))
        uid = project.store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]}).first()["uid"]
        assert run_id in {model["run"] for model in lineage(uid)["models"]}
        with answering(project.tracking_uri):
            traced = trace.traced(run_id)
            induced = replace(traced, tags={"kind": "induced", "encoder_version": version})
            assert traced.params["init_encoder"] == EncoderRecord.read(given.init).version
            assert Lineage(project).of_run(induced)["encoder_made_by"]["run"] == run_id
    finally:
        mlflow.MlflowClient().delete_run(run_id)  # the other tests count
