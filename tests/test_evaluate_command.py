"""`dfn evaluate` from the command line: table, JSON, absent sets, and mistakes that are one line and exit code 2."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_models_encoder import TINY, tiny_clip
from test_models_filters import random_heads
from wds import image_bytes, write_set

from etl.__main__ import _run
from etl.commands.cli import app
from etl.config import load
from etl.encode.encoder_config import EncoderConfig
from etl.encode.encoders import encoder_folder
from etl.stage import UserError
from models import registry, spool
from models.embedder import Embedder
from models.eval_sets import EvalFolder
from models.evaluate import evaluate_folder
from models.filters import save_filter
from models.records import WeightsError
from models.tracking import answering

DIM = TINY["embed_dim"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, heads on it, and two sets, of which one is a task of DataComp, too small."""
    root = tmp_path_factory.mktemp("judge")
    record = tiny_clip(root / "encoder")
    save_filter(root / "heads", random_heads(DIM, DIM, 3), encoder_record=record)
    rng = np.random.default_rng(0)
    noise = [image_bytes(Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))) for _ in range(12)]
    rows = [{"webp": image, "cls": b"%d" % (i % 3)} for i, image in enumerate(noise)]
    write_set(root / "sets" / "wds_mnist_test", rows, classes=["a", "b", "c"], templates=["{c}"])
    write_set(root / "pairs", [{"webp": image, "txt": b"a\nb"} for image in noise], kind="retrieval")
    return root


def dfn(*arguments):
    return _run(lambda **options: app([str(a) for a in arguments], **options))


def test_the_table_lists_absent_sets_and_the_json_holds_all(world, tmp_path, capsys):
    out = tmp_path / "deep" / "e.json"
    assert dfn("evaluate", world / "encoder", world / "pairs", "--datacomp", world / "sets", "--out", out) == 0
    printed, found = capsys.readouterr().out.splitlines(), json.loads(out.read_text())
    metrics = evaluate_folder(Embedder.load(world / "encoder"), EvalFolder.open(world / "pairs")).metrics
    assert found["sets"][str(world / "pairs")] == {"num_samples": 12, "num_broken": 0, **metrics}
    assert (found["datacomp"]["MNIST"]["state"], found["datacomp"]["GTSRB"]["state"]) == ("not whole", "absent")
    assert found["averages"]["average"] == {"value": None, "num_tasks": 0, "num_wanted": 38}
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in printed}
    assert len([line for line in printed if line.endswith("absent")]) == 37
    assert lines["MNIST"] == "MNIST 12 of 10,000 top1 not whole"
    assert lines["average"] == "average - over 0 of 38 tasks"
    assert lines["pairs"].startswith(f"pairs 12 image_to_text_r1 {metrics['image_to_text_r1']:.4f}")


def test_a_registered_model_is_evaluated_as_its_folders_are(world, tmp_path, capsys, mlflow_uri):
    uri = mlflow_uri
    run_id = spool.log_training_run(
        uri, "e", "r", params={}, metrics={}, step_losses=[1.0], inputs={}, folder=world / "heads"
    )
    with answering(uri):
        number = registry.register_filter(run_id, world / "heads", world / "encoder")
        registry.set_alias("dfn_filter", "champion", number)
    found = []
    for model in ("models:/dfn_filter@champion", world / "heads"):
        options = ["--tracking-uri", uri] if str(model).startswith("models:/") else ["--encoder", world / "encoder"]
        assert dfn("evaluate", model, world / "pairs", "--out", tmp_path / "e.json", "--json", *options) == 0
        found.append(json.loads(capsys.readouterr().out) | {"model": ""})
    assert found[0] == found[1] and found[0]["filter_version"]
    assert dfn("evaluate", "models:/dfn_filter@serving", world / "pairs", "--tracking-uri", uri) == 2
    assert "wanted models:/dfn_filter@serving; found aliases of dfn_filter: @champion -> 1" in capsys.readouterr().err


def test_runs_that_waited_are_sent_by_dfn_sync(world, tmp_path, capsys, mlflow_uri, monkeypatch):
    monkeypatch.setitem(spool._lost, "seconds", 0.0)
    folder = shutil.copytree(world / "heads", tmp_path / "models" / "a")
    told = {"params": {}, "metrics": {}, "step_losses": [1.0], "inputs": {}, "folder": folder}
    assert spool.log_training_run("http://127.0.0.1:1", "e", "r", **told) is None
    arguments = ["sync", "--conf", "tiny", "-s", f"output={tmp_path}", "--json"]
    assert dfn(*arguments, "-s", "tracking_uri=http://127.0.0.1:1") == 2
    assert "wanted MLflow at http://127.0.0.1:1; found no answer" in capsys.readouterr().err
    for num_sent in (1, 0):
        assert dfn(*arguments, "-s", f"tracking_uri={mlflow_uri}") == 0
        assert json.loads(capsys.readouterr().out)["sent"] == num_sent
    assert spool.run_id_of(folder)


def test_mistakes_are_one_line(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DFN_CACHE", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for arguments, says in [
        ([world / "encoder"], "wanted folders of sets, or --datacomp FOLDER; found neither"),
        ([world / "encoder", world / "none"], "wanted a folder; found none at"),
        ([world, world / "pairs"], "wanted a folder with record.json, or models:/NAME@ALIAS; found"),
        ([world / "heads", world / "pairs"], "wanted encoder tiny-clip"),
        (["models:/x@y", world / "pairs"], "wanted --tracking-uri"),
        ([world / "encoder", world / "encoder"], "nshards.txt; found no such file"),
        (
            ["models:/x@y", world / "pairs", "--tracking-uri", "http://127.0.0.1:1"],
            "wanted MLflow at http://127.0.0.1:1",
        ),
    ]:
        assert dfn("evaluate", *arguments, "--out", tmp_path / "e.json") == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    assert not (tmp_path / "e.json").exists()


def test_the_public_dfn_recipe_loads_and_has_the_papers_numbers():
    config = load(["dfn_public_medium"])
    assert config.stages.selection.keep.top_fraction == 0.15
    assert str(config.encoder.hub_folder) == "data/DFN-public"
    changes = ["hub_folder=null", "open_clip=ViT-B-32", "pretrained=openai"]
    openai = load(["dfn_public_medium"], [f"encoder.{change}" for change in changes])
    assert (openai.encoder.open_clip, openai.encoder.pretrained) == ("ViT-B-32", "openai")
    text = (Path(__file__).parent.parent / "conf" / "dfn_public_medium.yaml").read_text()
    rows = [line[1:].split() for line in text.splitlines() if line.startswith("#   ")]
    assert rows[0][-4:] == ["yours:", "ImageNet", "38", "tasks"] and "UNRUN" in text.splitlines()[0]
    assert [row[-2:] for row in rows[1:4]] == [[".307", ".349"], [".371", ".373"], [".285", ".338"]]


def test_an_encoder_is_named_by_a_copy_of_a_hub_repository(world, tmp_path, monkeypatch):
    monkeypatch.setenv("DFN_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "DFN-like"
    repository.mkdir()
    (repository / "open_clip_model.safetensors").write_bytes((world / "encoder" / "model.safetensors").read_bytes())
    (repository / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    config = EncoderConfig(hub_folder=repository, precision="fp32")
    record, folder = encoder_folder(config, lambda _: None)
    assert (record.name, record.shares_space) == ("DFN-like", True)
    assert Embedder.load(folder).embed_texts(["a"]).shape == (1, DIM)
    assert encoder_folder(config, lambda line: pytest.fail(line)) == (record, folder)
    with pytest.raises(WeightsError, match="wanted quick_gelu=False"):
        encoder_folder(config.model_copy(update={"quick_gelu": True}), lambda _: None)
    with pytest.raises(UserError, match=r"encoder.pretrained: wanted weights that open_clip knows for ViT-B-32; found"):
        encoder_folder(EncoderConfig(open_clip="ViT-B-32", pretrained="nobody"), lambda _: None)
    for wrong, says in [
        ({"pretrained": "openai"}, "wanted open_clip, the architecture"),
        ({"sha256": "0" * 64}, "wanted pretrained or hub_folder beside sha256"),
        ({"hub_folder": "x", "open_clip": "y", "checkpoint": "z"}, "found open_clip and hub_folder"),
    ]:
        with pytest.raises(ValueError, match=says):
            EncoderConfig(**wrong)
