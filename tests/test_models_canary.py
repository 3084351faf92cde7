"""Canaries: vectors that are not those of before, or say nothing of their input, are refused before the first row."""

import json

import numpy as np
import pytest
import torch
from test_models_encoder import tiny_clip

import models.encoder
from models.canary import CANARIES, check_canaries, write_canaries
from models.encoder import Encoder
from models.records import WeightsError


@pytest.fixture
def folder(tmp_path):
    tiny_clip(tmp_path / "a")
    write_canaries(tmp_path / "a", Encoder.load(tmp_path / "a"))
    return tmp_path / "a"


def test_the_same_weights_pass_and_cosines_are_kept_by_pair(folder):
    kept = json.loads((folder / CANARIES).read_text())
    assert {side: len(values) for side, values in kept.items()} == {"images": 6, "captions": 6}
    assert Encoder.load(folder).record.image_dim == 16
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("side", ["images", "captions"])
def test_other_vectors_than_before_are_refused_when_the_encoder_is_loaded(folder, side):
    kept = json.loads((folder / CANARIES).read_text())
    kept[side][2] += 0.05
    (folder / CANARIES).write_text(json.dumps(kept))
    with pytest.raises(WeightsError, match=f"wanted canary {side} with cosines .* on cpu; fix: check device"):
        Encoder.load(folder)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan], ids=["zeros", "a constant", "NaN"])
def test_a_tower_that_computes_something_else_is_refused(folder, monkeypatch, value):
    """Weights whose sha256 is right, on a device or a library that is not."""
    original = models.encoder.inference_towers

    def broken(*args, **kwargs):
        towers = original(*args, **kwargs)
        return type(towers)(lambda images: torch.full((len(images), 16), value), towers.encode_text, towers.notes)

    monkeypatch.setattr(models.encoder, "inference_towers", broken)
    with pytest.raises(WeightsError, match="wanted canary images"):
        Encoder.load(folder)
    (folder / CANARIES).unlink()
    encoder = Encoder.load(folder)  # a folder without canaries is not checked
    check_canaries(folder, encoder)
    with pytest.raises(WeightsError, match="wanted images that differ in their vectors"):
        write_canaries(folder, encoder)
    assert not (folder / CANARIES).exists()
