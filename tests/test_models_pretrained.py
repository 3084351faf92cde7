"""Pretrained weights by name, from a local cache and from a copy of a hub's repository, and what is refused."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip import pretrained as table
from safetensors.torch import load_file
from test_models_encoder import TINY, tiny_clip
from wds import image_bytes, write_set

from models import clip, pretrained
from models.data import open_npy
from models.embedder import Embedder
from models.eval_sets import EvalFolder, EvalSetError
from models.evaluate import evaluate_folder
from models.records import EncoderRecord, WeightsError


@pytest.fixture
def weights(tmp_path):
    """Weights of a tiny CLIP as safetensors, and open_clip knowing its architecture as tiny-clip."""
    tiny_clip(tmp_path / "made", quick_gelu=True)
    return tmp_path / "made" / clip.WEIGHTS


@pytest.mark.parametrize(
    ("name", "tag", "quick_gelu", "resize"),
    [
        ("ViT-B-16", "dfn2b", True, "shortest"),
        ("ViT-L-14", "dfn2b", True, "shortest"),
        ("ViT-L-14", "dfn2b_s39b", False, "shortest"),
        ("ViT-H-14", "dfn5b", True, "squash"),
        ("ViT-H-14-quickgelu", "dfn5b", True, "squash"),
        ("ViT-B-32", "openai", True, "shortest"),
        ("ViT-B-32", "datacomp_xl_s13b_b90k", False, "shortest"),
    ],
)
def test_what_published_weights_want_is_known(name, tag, quick_gelu, resize, tmp_path):
    found = pretrained.by_tag(name, tag, checkpoint=tmp_path / "none")
    assert (found.quick_gelu, found.preprocessing.resize, found.preprocessing.size_px) == (quick_gelu, resize, 224)
    with pytest.raises(WeightsError, match=rf"wanted quick_gelu={quick_gelu}, .*; found quick_gelu={not quick_gelu}"):
        pretrained.build(found, tmp_path / "out", quick_gelu=not quick_gelu)
    with pytest.raises(WeightsError, match=r"wanted the weights of .* as a file"):
        pretrained.build(found, tmp_path / "out")


def test_names_that_open_clip_does_not_know_are_told_with_those_that_it_does(tmp_path):
    with pytest.raises(ValueError, match=r"found 'dfn9b'; fix: one of .*dfn2b_s39b"):
        pretrained.by_tag("ViT-L-14", "dfn9b")
    assert pretrained.by_tag("ViT-B-16", "dfn2b", cache=tmp_path).checkpoint is None


def test_weights_come_from_a_local_cache_of_the_hub(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(table._PRETRAINED, "tiny-clip", {"best": table._pcfg(hf_hub="a/b/", quick_gelu=True)})
    home = tmp_path / "cache" / "models--a--b"
    (home / "snapshots" / "c0ffee").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("c0ffee")
    (home / "snapshots" / "c0ffee" / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    source = pretrained.by_tag("tiny-clip", "best", cache=tmp_path / "cache")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    record = pretrained.build(source, tmp_path / "out", sha256=sha256)
    assert record.architecture["quick_gelu"] is True
    assert record.weights_sha256 == EncoderRecord.read(weights.parent).weights_sha256
    model, _ = clip.load(tmp_path / "out")
    for name, tensor in load_file(weights).items():
        assert torch.equal(model.state_dict()[name], tensor)
    with pytest.raises(WeightsError, match="with sha256 0000"):
        pretrained.build(source, tmp_path / "other", sha256="0" * 64)
    assert not (tmp_path / "other").exists()


def test_a_copy_of_a_hub_repository_says_itself_what_it_wants(weights, tmp_path):
    folder = tmp_path / "DFN-like"
    folder.mkdir()
    with pytest.raises(WeightsError, match=r"wanted open_clip_config.json and one of"):
        pretrained.by_hub_folder(folder)
    facts = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": TINY | {"quick_gelu": True}, "preprocess_cfg": facts}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(load_file(weights), folder / "open_clip_pytorch_model.bin")
    record = pretrained.build(pretrained.by_hub_folder(folder), tmp_path / "out")
    assert (record.name, record.architecture["quick_gelu"]) == ("DFN-like", True)
    assert record.preprocessing.model_dump(include={"size_px", "resize", "interpolation", "mean", "std"}) == {
        "size_px": 32, "resize": "squash", "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3,
    }  # fmt: skip
    assert Embedder.load(tmp_path / "out").embed_texts(["a"]).shape == (1, 16)
    config["preprocess_cfg"]["resize_mode"] = "longest"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="other preprocessing: resize"):
        pretrained.by_hub_folder(folder)


class Bomb:
    """Its pickle touches a file named `ran` when it is read."""

    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    """Works: unpickled as it is usually done, it does run. Each test leaves it lying, and nothing may have run."""
    monkeypatch.chdir(tmp_path)
    np.save("evil.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.load("evil.npy", allow_pickle=True)
    assert Path("ran").exists()
    Path("ran").unlink()
    yield Path("evil.npy")
    assert not Path("ran").exists()


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"state_dict": b}, lambda b: {"a": torch.zeros(1), "b": [b]}])
@pytest.mark.parametrize("name", ["evil.pt", "evil.bin", "evil.safetensors"])
@pytest.mark.usefixtures("weights")
def test_code_in_a_checkpoint_is_refused(bomb, tmp_path, name, wrap):
    torch.save(wrap(Bomb()), name)
    with pytest.raises(WeightsError if name != "evil.safetensors" else Exception, match=r"plain tensors|[Hh]eader"):
        clip.build_open_clip("tiny-clip", Path(name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("weights")
def test_code_in_an_array_is_refused_wherever_one_is_read(bomb, tmp_path):
    with pytest.raises(WeightsError, match="wanted a checkpoint of torch or safetensors"):
        clip.build_open_clip("tiny-clip", bomb, tmp_path / "out")
    with pytest.raises(ValueError, match=r"wanted an .npy file of plain numbers"):
        open_npy(bomb)
    with pytest.raises(WeightsError, match="plain tensors"):  # the trunk of a LiT, read with torch.load
        torch.save(Bomb(), "trunk.pth")
        _lit_with(Path("trunk.pth"), tmp_path)


def _lit_with(trunk, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for name in (*clip.HF_FILES, clip.WEIGHTS):
        (text / name).write_bytes(b"{}")
    with pytest.MonkeyPatch.context() as here:  # the architecture is not what this is about, and takes seconds
        towers = SimpleNamespace(visual=SimpleNamespace(trunk=torch.nn.Linear(1, 1)))
        here.setattr(clip, "_construct", lambda *_: towers)
        clip.build_lit(trunk, text, tmp_path / "out")


def test_code_in_a_member_of_a_shard_is_refused_or_left_alone(bomb, weights):
    from PIL import Image

    image = image_bytes(Image.new("RGB", (8, 8)), "png")
    pickled = bomb.read_bytes()[128:]
    facts = {"classes": ["a", "b"], "templates": ["{}"]}
    model = Embedder.load(weights.parent)
    rows = [{"png": image, "cls": b"0", "pyd": pickled, "pkl": pickled, "pickle": pickled, "pth": pickled}]
    found = evaluate_folder(model, EvalFolder.open(write_set(Path("s"), rows, **facts)))
    assert found.num_samples == 1
    with tarfile.open("s/test/0.tar") as tar:
        assert tar.extractfile("s0000000.pyd").read() == pickled
    rows = [{"png": image, "cls": b"0", "npy": bomb.read_bytes()}]
    with pytest.raises(EvalSetError, match=r"wanted an .npy of plain numbers in s2/test/0.tar: s0000000"):
        evaluate_folder(model, EvalFolder.open(write_set(Path("s2"), rows, **facts)))


def test_the_bomb_of_these_tests_is_the_one_that_webdataset_would_run(bomb):
    """What `WDS_SECURE` is for: the decoder of a plain webdataset pipeline unpickles by the member's name."""
    from webdataset import autodecode

    buffer = io.BytesIO(bomb.read_bytes()[128:])
    autodecode.decoders["pyd"](buffer.getvalue())
    assert Path("ran").exists()
    Path("ran").unlink()
    assert open_clip.__version__
