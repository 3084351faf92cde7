"""Weights of before and after: the middle, both ends to the bit, and what must not be averaged; template captions."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models_encoder import tiny_clip
from test_models_filters import encoder_record, random_heads

from models import clip
from models.average import average_clips, average_heads, average_tensors
from models.encoder import Encoder
from models.filters import Filter, save_filter
from models.formulas import DfnCosine
from models.prompts import class_captions
from models.records import WeightsError


@pytest.fixture
def heads(tmp_path):
    record = encoder_record(6, 5)
    record.write((tmp_path / "encoder").mkdir() or tmp_path / "encoder")
    for seed in (0, 1):
        save_filter(tmp_path / str(seed), random_heads(6, 5, 3, seed=seed), encoder_record=record, name=f"f{seed}")
    return tmp_path


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_heads_lie_on_the_line_between_before_and_after(heads, alpha):
    before, after = (Filter.load(heads / str(seed)) for seed in (0, 1))
    average_heads(heads / "0", heads / "1", heads / "out", alpha=alpha, encoder_folder=heads / "encoder")
    found = Filter.load(heads / "out")
    for name, tensor in found.heads.tensors().items():
        wanted = (1 - alpha) * before.heads.tensors()[name] + alpha * after.heads.tensors()[name]
        if alpha in (0, 1):
            assert np.array_equal(tensor, wanted)
        np.testing.assert_allclose(tensor, wanted, rtol=1e-6)
    assert found.record.provenance == {
        "averaged": f"{1 - alpha:g} of {before.version} and {alpha:g} of {after.version}"
    }
    assert (found.record.name, type(found.formula)) == ("f1", DfnCosine)
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((4, 6)), rng.standard_normal((4, 5))
    same = [np.array_equal(found.score(images, texts), side.score(images, texts)) for side in (before, after)]
    assert same == [alpha == 0, alpha == 1]


def test_what_must_not_be_averaged_is_refused(heads):
    folders = {"alpha": 0.5, "encoder_folder": heads / "encoder"}
    save_filter(heads / "wide", random_heads(6, 5, 4), encoder_record=encoder_record(6, 5))
    with pytest.raises(WeightsError, match=r"same names and shapes; found others: text.proj.weight"):
        average_heads(heads / "0", heads / "wide", heads / "out", **folders)
    other = encoder_record(6, 5).model_copy(update={"batch_size": 9})
    save_filter(heads / "other", random_heads(6, 5, 3), encoder_record=other)
    with pytest.raises(WeightsError, match="wanted heads on"):
        average_heads(heads / "0", heads / "other", heads / "out", **folders)
    with pytest.raises(ValueError, match="wanted alpha from 0"):
        average_heads(heads / "0", heads / "1", heads / "out", alpha=1.5, encoder_folder=heads / "encoder")
    assert not (heads / "out").exists()


def test_integers_come_from_after_and_halves_are_summed_in_double():
    halves = torch.linspace(-3, 3, 1000, dtype=torch.float16)
    before, after = {"steps": torch.tensor(3), "w": halves}, {"steps": torch.tensor(7), "w": halves.flip(0).square()}
    found = average_tensors(before, after, 0.3)
    assert (found["steps"].item(), found["w"].dtype) == (7, torch.float16)
    assert torch.equal(found["w"], (before["w"].double() * 0.7 + after["w"].double() * 0.3).half())


def test_whole_clips_are_averaged_and_load(tmp_path):
    first = tiny_clip(tmp_path / "a")
    tiny_clip(tmp_path / "b", seed=1)
    found = average_clips(tmp_path / "a", tmp_path / "b", tmp_path / "out", alpha=0.3)
    a, b, out = (load_file(tmp_path / name / clip.WEIGHTS) for name in ("a", "b", "out"))
    for name, tensor in out.items():
        torch.testing.assert_close(tensor, a[name] * 0.7 + b[name] * 0.3)
    assert found.model_copy(update={"weights_sha256": first.weights_sha256}) == first
    assert average_clips(tmp_path / "a", tmp_path / "b", tmp_path / "same", alpha=0).version == first.version
    assert Encoder.load(tmp_path / "out").encode_texts(["a"]).shape == (1, 16)
    tiny_clip(tmp_path / "c", quick_gelu=True)
    with pytest.raises(WeightsError, match="differ in their weights alone; found others: architecture"):
        average_clips(tmp_path / "a", tmp_path / "c", tmp_path / "bad", alpha=0.3)
    save_file(b, tmp_path / "a" / clip.WEIGHTS)
    with pytest.raises(WeightsError, match="sha256"):
        average_clips(tmp_path / "a", tmp_path / "b", tmp_path / "bad", alpha=0.3)


def test_each_image_gets_a_template_that_follows_from_seed_and_uid():
    labels = {f"{i:032x}": ("cat", "dog")[i % 2] for i in range(600)}
    templates = ["a photo of a {}", "a {c}, drawn", "{}"]
    found = class_captions(labels, templates)
    assert list(found) == list(labels)
    counts = dict.fromkeys(templates, 0)
    for uid, caption in found.items():
        (template,) = (t for t in templates if t.format(labels[uid], c=labels[uid]) == caption)
        counts[template] += 1
    assert all(150 < count < 250 for count in counts.values()), counts
    part = dict(list(labels.items())[100:103])
    assert class_captions(part, templates) == {uid: found[uid] for uid in part}
    assert class_captions(labels, templates, seed=1) != found
