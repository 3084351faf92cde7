"""The self-test of the pipeline: what it plants, what it wants, and that it fails where a stage is broken."""

import io
import json
import tarfile
from functools import partial

import numpy as np
import pytest
from helpers import picture
from PIL import Image, ImageChops
from test_models_filters import random_heads

import etl.project
from etl.__main__ import _run, app
from etl.config import load
from etl.loop import selftest
from etl.loop.selftest import Check, _bottom
from etl.project import Project
from etl.samples.planted import PLANTED, Sample, plant, samples, write
from models.filters import save_filter

POOL = [Sample(picture(number, (32, 32)), "png", f"picture {number}", f"pool/{number}") for number in range(60)]
HELD_OUT = [Sample(picture(number, (32, 32)), "png", f"thing {number}", f"held/{number}") for number in range(900, 910)]


def pixels(sample):
    return Image.open(io.BytesIO(sample.image)).convert("RGB")


def test_each_kind_is_what_it_says_of_other_pairs_and_the_same_every_time():
    found = plant(POOL, HELD_OUT)
    assert found == plant(POOL, HELD_OUT)
    assert {kind: len(pairs) for kind, pairs in found.items()} == {
        "contaminated": 6, "same_bytes": 6, "same_pixels": 6, "jpeg": 6, "mismatched": 30
    }  # fmt: skip
    of_pool = [of.uid for kind, pairs in found.items() if kind != "contaminated" for _, of in pairs]
    made = [planted.uid for pairs in found.values() for planted, _ in pairs]
    assert len(of_pool) == len(set(of_pool)) and len(made) == len(set(made))
    assert not set(made) & {one.uid for one in (*POOL, *HELD_OUT)}
    assert {of.uid for _, of in found["contaminated"]} <= {one.uid for one in HELD_OUT}
    for kind in ("contaminated", "same_bytes", "mismatched"):
        assert all(planted.image == of.image for planted, of in found[kind])
    for planted, of in found["same_pixels"]:
        assert planted.image != of.image and ImageChops.difference(pixels(planted), pixels(of)).getbbox() is None
    for planted, of in found["jpeg"]:
        assert planted.image[:2] == b"\xff\xd8" and (planted.extension, planted.text) == ("jpg", of.text)
    swapped = [(planted.text, of.text) for planted, of in found["mismatched"]]
    assert sorted(a for a, _ in swapped) == sorted(b for _, b in swapped) and all(a != b for a, b in swapped)


def test_in_the_shards_nothing_tells_who_was_planted(tmp_path):
    planted = plant(POOL, HELD_OUT)
    write(tmp_path, POOL, planted)
    known = json.loads((tmp_path / PLANTED).read_text())
    assert known.pop("num_pairs") == 60 + 54
    assert known == {kind: {a.uid: b.uid for a, b in pairs} for kind, pairs in planted.items()}
    read = samples(tmp_path)
    assert {one.uid: one for one in read} == {
        one.uid: one for one in [*POOL, *(a for pairs in planted.values() for a, _ in pairs)]
    }
    places = [place for place, one in enumerate(read) if one.url.startswith("selftest")]
    assert min(places) < 20 and max(places) > 94
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert {name.rpartition(".")[2] for name in tar.getnames()} <= {"png", "jpg", "txt", "json"}
    with pytest.raises(ValueError, match="wanted 40 pairs and 1 evaluation images; found 3 and 10"):
        plant(POOL[:3], HELD_OUT)


def test_what_is_wanted_of_the_filter_no_chance_filter_reaches():
    """By hand: n = 2 with scores 1, 4 under 2, 3: true ones win 1 vs none, 4 vs both: half of the four comparisons."""
    found = _bottom({"a": 2.0, "b": 3.0, "A": 1.0, "B": 4.0}, {"a": "A", "b": "B"})
    assert (found.num, found.found, found.wanted) == (2, 0.5, round(0.5 + 5 * (5 / 48) ** 0.5, 3))
    uids = {f"bad {number}": f"true {number}" for number in range(200)}
    rng, passed = np.random.default_rng(0), 0
    for _ in range(500):
        scores = dict(zip([*uids, *uids.values()], rng.normal(size=400), strict=True))
        passed += _bottom(scores, uids).is_passed
    assert passed == 0
    assert _bottom(dict.fromkeys([*uids, *uids.values()], 1.0), uids).found == 0.5
    best = {**dict.fromkeys(uids, 0.0), **dict.fromkeys(uids.values(), 1.0)}
    assert _bottom(best, uids) == Check("mismatched below true pairs (area)", 200, 0.645, 1.0)
    assert not _bottom({}, uids).is_passed and not Check("none planted", 0, 1.0, 1.0).is_passed


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--conf", "local", "--set", "datasets.x={kind: pool, shards: '/data/*.tar'}"], "fix: --conf selftest"),
        (["--out", "."], "selftest: wanted a folder of its own; found"),
    ],
)
def test_a_folder_or_a_pool_that_is_not_its_own_is_left_alone(given, says, monkeypatch, capsys):
    monkeypatch.setattr(etl.project, "session", lambda **_: pytest.fail("Spark was started"))
    assert _run(partial(app, ["selftest", *given])) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_planted_comes_out_and_a_broken_stage_or_filter_is_told(spark, tmp_path):
    def checks(*overrides, filter=None):
        project = Project(load(["selftest"], [f"output={tmp_path}", *overrides]))
        made = selftest.prepared(project, tmp_path / "selftest")
        return {check.name: check for check in selftest.run(made, filter)}, made

    found, project = checks()
    assert [check for check in found.values() if not check.is_passed] == []
    assert [check.num for check in found.values()] == [760, 40, 40, 40, 40, 200]
    blind, record = tmp_path / "blind", project.encoder[0]
    save_filter(blind, random_heads(record.image_dim, record.text_dim, 16), encoder_record=record)
    broken, _ = checks("stages.dedup.methods=[sha256]", "stages.decontaminate.methods=[phash]", filter=blind)
    assert [name for name, check in broken.items() if not check.is_passed] == [
        "same_pixels found as duplicates", "jpeg found as duplicates", "mismatched below true pairs (area)"
    ]  # fmt: skip
