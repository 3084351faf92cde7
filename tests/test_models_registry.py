"""MLflow on sqlite: what was logged is what comes back."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from test_models_encoder import TINY, tiny_clip
from test_models_filters import random_heads

from etl.commands.train import first_weights
from etl.stage import UserError
from models import registry, spool, tracking
from models.clip import WEIGHTS, assemble
from models.embedder import Embedder
from models.encoder import Encoder
from models.filters import Filter, save_filter
from models.records import EncoderRecord, RegistryError, WeightsError

DIM = TINY["embed_dim"]


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A run and two versions over one tiny CLIP: version 1 by reference, version 2 with its towers."""
    root = tmp_path_factory.mktemp("registry")
    record = tiny_clip(root / "encoder")
    folders = [root / "heads1", root / "heads2"]
    for seed, folder in enumerate(folders):
        save_filter(folder, random_heads(DIM, DIM, 3, seed=seed), encoder_record=record)
    run_id = spool.log_training_run(
        f"sqlite:///{root}/store/mlflow.db",
        "filters",
        "seed 0",
        params={"steps": 400, "lr": 1e-3},
        metrics={"dev_r5": 0.25},
        step_losses=[4.8 - step / 1000 for step in range(1200)],
        inputs={"/lake/clean/embeddings": 3, "/lake/clean/pairs": 0},
        folder=folders[0],
        tags={"seed": "0"},
    )
    versions = [
        registry.register_filter(run_id, folders[0], root / "encoder"),
        registry.register_filter(run_id, folders[1], root / "encoder", with_towers=True),
    ]
    return root, run_id, versions


def test_the_run_holds_its_recipe_losses_inputs_and_heads(registered):
    root, run_id, _ = registered
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.data.params == {"steps": "400", "lr": "0.001", "encoder_folder": str(root / "encoder")}
    assert run.data.metrics == {"loss": pytest.approx(3.601), "dev_r5": 0.25}
    losses = client.get_metric_history(run_id, "loss")
    assert [point.step for point in sorted(losses, key=lambda point: point.step)] == list(range(1200))
    inputs = {(i.dataset.name, i.dataset.digest, i.dataset.source_type) for i in run.inputs.dataset_inputs}
    assert inputs == {
        ("/lake/clean/embeddings", "v3", "delta_table"),
        ("/lake/clean/pairs", "v0", "delta_table"),
    }
    version = Filter.load(root / "heads1").version
    assert (run.data.tags["filter_version"], run.data.tags["seed"]) == (version, "0")
    assert (root / "store" / "artifacts" / "filters" / run_id / "artifacts" / "heads" / "record.json").is_file()


def test_versions_are_found_again_by_number_and_alias(registered, tmp_path):
    root, _, versions = registered
    assert (versions, registry.champion()) == (["1", "2"], None)
    with pytest.raises(RegistryError, match=r"wanted models:/dfn_filter@champion; found aliases of dfn_filter: none"):
        registry.resolve("models:/dfn_filter@champion", tmp_path / "x")
    registry.set_alias("dfn_filter", "champion", "2")
    assert registry.champion() == "2"
    for uri, wanted in {"models:/dfn_filter@champion": "heads2", "models:/dfn_filter/1": "heads1"}.items():
        found = registry.resolve(uri, tmp_path / "resolved")
        assert sorted(path.name for path in found.iterdir()) == ["heads.safetensors", "record.json"]
        assert Filter.load(found).version == Filter.load(root / wanted).version
    registry.set_alias("dfn_filter", "champion", "1")  # roll back
    assert registry.champion() == "1"
    with pytest.raises(RegistryError, match="@champion -> 1"):
        registry.resolve("models:/dfn_filter@serving", tmp_path / "x")
    with pytest.raises(RegistryError, match="version=9"):
        registry.resolve("models:/dfn_filter/9", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_version_is_found_by_the_content_of_its_heads(registered):
    root, run_id, versions = registered
    records = [Filter.load(root / f"heads{number}").record for number in (1, 2)]
    assert [registry.registered("dfn_filter", root / f"heads{number}") for number in (1, 2)] == versions
    assert [registry.version_of("dfn_filter", record.version) for record in records] == versions
    assert (registry.version_of("dfn_filter", "0" * 16), registry.registered("other", root / "heads1")) == (None, None)
    assert (registry.champion_tags("other"), registry.aliases("other")) == (None, {})
    registry.set_tags("dfn_filter", "2", {"judged": "b"})
    assert registry.tags_of("dfn_filter", "2") == {
        "filter_version": records[1].version, "encoder_version": records[1].encoder_version, "judged": "b"
    }  # fmt: skip
    (metrics,) = registry.metrics_of({7: run_id}).values()
    assert metrics == dict(mlflow.MlflowClient().get_run(run_id).data.metrics) != {}


@pytest.mark.parametrize("number", [0, 1])
def test_the_registered_model_scores_bytes_as_the_filter_scores_vectors(registered, number):
    root, _, versions = registered
    encoder, filter = Encoder.load(root / "encoder"), Filter.load(root / f"heads{number + 1}")
    files = []
    for color in ("red", "#123456"):
        Image.new("RGB", (50, 30), color).save(buffer := io.BytesIO(), "PNG")
        files.append(buffer.getvalue())
    frame = pd.DataFrame(
        {"image": [files[0], b"<html>", files[1]], "text": ["red", "none", "dark blue"]}, index=[5, 6, 7]
    )
    scores = mlflow.pyfunc.load_model(f"models:/dfn_filter/{versions[number]}").predict(frame)
    images = encoder.encode_images([encoder.preprocess(data) for data in files])
    wanted = filter.score(images, encoder.encode_texts(["red", "dark blue"]))
    np.testing.assert_array_equal(scores.to_numpy(), [wanted[0], np.nan, wanted[1]])
    assert scores.index.tolist() == [5, 6, 7]


FRESH = """
import sys, json, mlflow, numpy as np, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
frame = pd.DataFrame({"image": [open(sys.argv[2], "rb").read(), b"no"], "text": ["red", "blue"]})
filter = mlflow.pyfunc.load_model("models:/dfn_filter/2").predict(frame).tolist()
model = mlflow.pyfunc.load_model("models:/clip/1")
found = model.predict(frame, params={"classes": ["red", "blue"], "templates": ["a {}", "the {c}"]})
only_text = model.predict(frame[["text"]]).columns.tolist()
direct = model.unwrap_python_model().zero_shot(frame["image"][:1], ["red", "blue"])
print(json.dumps([filter, found.to_dict("list"), only_text, direct.tolist()]))
"""


@pytest.mark.slow
def test_registered_models_load_in_a_fresh_process_and_equal_our_own_scoring(registered, tmp_path):
    """Offline, with pickles refused, and from a folder without this project."""
    root, run_id, _ = registered
    receipt = {"selection_id": "abc", "hash": "f0", "num_rows": 60, "rule": {"name": "dfn"}, "facts": {}}
    assert registry.register_clip(run_id, root / "heads1", root / "encoder", receipt=receipt, with_towers=True) == "1"
    tags = mlflow.MlflowClient().get_model_version("clip", "1").tags
    record = Filter.load(root / "heads1").record
    assert tags == {
        "encoder_version": record.encoder_version, "filter_version": record.version, "selection_id": "abc",
        "selection_hash": "f0", "selection_num_pairs": "60", "selection_rule": '{"name": "dfn"}',
    }  # fmt: skip
    Image.new("RGB", (50, 30), "red").save(tmp_path / "red.png")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", FRESH, f"sqlite:///{root}/store/mlflow.db", str(tmp_path / "red.png")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    scores, found, only_text, direct = json.loads(done.stdout.splitlines()[-1])
    image = [(tmp_path / "red.png").read_bytes()]
    ours = Embedder.load(root / "encoder", root / "heads1")
    vector, texts = ours.embed_images(image)[0], ours.embed_texts(["red", "blue"])
    np.testing.assert_allclose(found["image_embedding"][0], vector, atol=1e-6)
    np.testing.assert_allclose(found["text_embedding"], texts, atol=1e-6)
    cosines = vector @ ours.embed_classes(["red", "blue"], ["a {}", "the {}"]).T
    assert found["label"] == [["red", "blue"][cosines.argmax()], None]
    assert found["cosine"] == [pytest.approx(cosines.max(), abs=1e-6), pytest.approx(np.nan, nan_ok=True)]
    assert (found["image_embedding"][1], only_text) == (None, ["text_embedding"])
    np.testing.assert_allclose(direct[0], vector @ texts.T, atol=1e-6)
    other = Embedder.load(root / "encoder", root / "heads2")
    assert scores[0] == pytest.approx(float(other.embed_images(image)[0] @ other.embed_texts(["red"])[0]), abs=1e-6)
    towers, heads = registry.resolve_model("models:/clip/1", tmp_path / "resolved")
    again = Embedder.load(towers, heads)
    np.testing.assert_array_equal(again.embed_images(image)[0], vector)
    assert towers == tmp_path / "resolved" / "encoder"


def test_training_begins_with_a_registered_clip_and_stays_with_what_it_began(registered, tmp_path):
    root, run_id, _ = registered
    uri = f"sqlite:///{root}/store/mlflow.db"
    assert registry.register_clip(run_id, None, root / "encoder", name="towers", with_towers=True) == "1"
    registry.set_alias("towers", registry.CHAMPION, "1")
    first = first_weights("models:/towers@champion", tmp_path / "run", uri)
    assert first.parent == tmp_path / "run" and EncoderRecord.read(first) == EncoderRecord.read(root / "encoder")
    assert (first / WEIGHTS).read_bytes() == (root / "encoder" / WEIGHTS).read_bytes()
    assert first_weights("models:/towers@champion", tmp_path / "run", "sqlite:////nowhere/mlflow.db") == first
    assert first_weights(str(root / "encoder"), tmp_path / "run", "") == root / "encoder"
    with pytest.raises(UserError, match="--init models:/dfn_filter/2: wanted a timm trunk"):
        first_weights("models:/dfn_filter/2", tmp_path / "run", uri)
    with pytest.raises(UserError, match="wanted --tracking-uri, for models:/towers@champion"):
        first_weights("models:/towers@champion", tmp_path / "other", "")


@pytest.mark.usefixtures("registered")
def test_a_pickled_model_is_not_loaded_and_its_payload_does_not_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    pickled = tmp_path / "model"
    with monkeypatch.context() as here:
        here.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
        mlflow.pyfunc.save_model(pickled, python_model=Bomb(ran), pip_requirements=[])
    client = mlflow.MlflowClient()
    apart = client.create_experiment("bombs", artifact_location=(tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=apart):
        mlflow.log_artifacts(str(pickled), "model")
        source = mlflow.get_artifact_uri("model")
    client.create_registered_model("bomb")
    client.create_model_version("bomb", source)
    for resolve in (registry.resolve, registry.resolve_model):
        with pytest.raises(RegistryError, match="wanted a model from code, as dfn makes them; found models:/bomb/1"):
            resolve("models:/bomb/1", tmp_path / "out")
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        mlflow.pyfunc.load_model("models:/bomb/1")
    assert not ran.exists() and not (tmp_path / "out").exists()


class Bomb(mlflow.pyfunc.PythonModel):
    """Its pickle touches a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))

    def predict(self, context, model_input: list[str]):
        return model_input


def test_nothing_registered_is_pickled_and_the_requirements_are_pinned(registered):
    root, _, versions = registered
    files = [path for path in (root / "store" / "artifacts").rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert not kinds & {".pkl", ".pickle", ".pt", ".pth", ".bin"}
    assert not any(path.read_bytes().startswith(b"\x80") for path in files)
    model = mlflow.models.get_model_info(f"models:/dfn_filter/{versions[0]}")
    assert json.loads(json.dumps(model.signature.to_dict()))["outputs"].count("float") == 1
    requirements = next(path for path in files if path.name == "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements) and any(line.startswith("torch==") for line in requirements)


def test_heads_of_another_encoder_are_not_registered(registered, tmp_path):
    root, run_id, _ = registered
    other = EncoderRecord.read(root / "encoder").model_copy(update={"batch_size": 99})
    save_filter(tmp_path / "h", random_heads(DIM, DIM), encoder_record=other)
    with pytest.raises(WeightsError, match="fix: give the encoder"):
        registry.register_filter(run_id, tmp_path / "h", root / "encoder")
    with pytest.raises(WeightsError, match="fix: give the encoder"):
        assemble(root / "encoder", tmp_path / "h")


def test_a_folder_is_no_tracking_store():
    with pytest.raises(ValueError, match="fix: sqlite:///"):
        tracking.connect("./mlruns")
