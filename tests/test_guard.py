"""The noise of a filter dataset: planted repeats, lengths, languages and exchanged captions are found, each once."""

import hashlib

import numpy as np
import pytest
from helpers import frame, uid
from test_models_train import DIMS, SMALL, encoder_record, planted

from etl.filters import guard
from etl.filters.guard import GuardConfig, Noise
from etl.stage import UserError
from etl.tables import PAIRS
from models.data import write_part
from models.train import train

ENGLISH = "A red bird sits on the old wooden fence in the garden"
GERMAN = "Ein roter Vogel sitzt auf dem alten Zaun im Garten hinter dem Haus"


def pair(number, text, image=None, status="ok"):
    sha256 = hashlib.sha256(str(number if image is None else image).encode()).hexdigest()
    return {"uid": uid(number), "text": text, "sha256": sha256, "status": status}


def test_each_pair_counts_once_under_its_first_reason(spark):
    rows = [
        pair(0, ENGLISH),
        pair(1, ENGLISH, image=0),  # the same image and caption
        pair(2, ENGLISH, image=0),
        pair(3, ENGLISH + " again", image=0),  # another caption of the same image is none
        pair(4, "bird"),
        pair(5, "bird", image=4),  # repeated, and too short
        pair(6, "word " * 40),
        pair(7, GERMAN),
        pair(8, "Vogel"),  # too short, and German
        pair(9, None, status="missing_text"),
        pair(10, ENGLISH),
    ]
    pairs = frame(spark, PAIRS, rows, partitions=3)
    config = GuardConfig(min_words=2, max_words=30, languages=("en",))
    assert guard.count(pairs, config) == Noise(10, 3, 3, 1, None)
    assert guard.count(pairs, GuardConfig(min_words=2, max_words=30), 0.5) == Noise(10, 3, 3, 0, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_the_share_of_exchanged_captions_is_estimated(share):
    rng = np.random.default_rng(0)
    null, true = rng.normal(0, 1, 4000), rng.normal(4, 1, 4000)
    scores = np.where(np.arange(4000) < share * 4000, rng.normal(0, 1, 4000), true).astype(np.float32)
    scores[::100] = np.nan
    assert guard.mismatched_fraction(scores, null.astype(np.float32)) == pytest.approx(share, abs=0.05)
    assert guard.mismatched_fraction(scores[:0], null[:0]) == 0


def test_a_trained_filter_finds_exchanged_captions_in_stored_vectors(tmp_path):
    clean = planted(tmp_path / "train")
    train(clean, SMALL, tmp_path / "filter", encoder_record=encoder_record(**DIMS))
    held_out = planted(tmp_path / "clean", num_rows=400, seed=5)
    moved = np.arange(400)
    moved[:120] = np.roll(moved[:120], 1)
    write_part(tmp_path / "noisy" / "part-0.arrow", held_out.uids, held_out.image_NI, held_out.text_NT[moved])
    few = guard.fit_of(tmp_path / "clean", tmp_path / "filter")
    many = guard.fit_of(tmp_path / "noisy", tmp_path / "filter")
    assert few < 0.06 < 0.2 < many < 0.4


def test_the_verdict_warns_refuses_or_passes():
    noise = Noise(1000, 50, 30, 20, 0.2)
    assert noise.fraction == pytest.approx(0.1 + 0.9 * 0.2)
    told = (
        "28.0% of 1,000 pairs are noise (50 repeated, 30 of odd length, 20 of other languages; 20.0% of the rest do "
        "not fit under the champion)"
    )
    assert guard.verdict("clean", noise, GuardConfig(max_noisy_fraction=0.28001)) == f"guard: clean: {told}"
    assert guard.verdict("clean", noise, GuardConfig()).startswith(f"warning: guard: clean: {told}; at most 10.0%")
    with pytest.raises(UserError, match=r"loop.guard: wanted at most 10.0% noise in clean; found that 28.0%"):
        guard.verdict("clean", noise, GuardConfig(action="refuse"))
    assert "no champion to ask" in str(Noise(0, 0, 0, 0, None))
