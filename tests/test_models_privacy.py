"""Membership inference on planted scores, against direct counting; and that memorising shows where noise does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.privacy import auc, halves, leak


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_of_pairs_that_it_ranks_right(rows):
    scores, flags = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    if flags.all() or not flags.any():
        with pytest.raises(ValueError, match="wanted scores of members and others"):
            auc(scores, flags)
        return
    won = [(inside > outside) + (inside == outside) / 2 for inside in scores[flags] for outside in scores[~flags]]
    assert auc(scores, flags) == pytest.approx(np.mean(won), abs=1e-12)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="wanted finite scores; found 1 that are not"):
        auc(np.array([1.0, np.nan, 0.0]), np.array([True, True, False]))


def test_each_pair_is_a_member_of_one_twin_of_each_couple_and_couples_differ():
    found = halves(101, 6)
    assert (found[0::2] ^ found[1::2]).all()
    assert found.sum(axis=1).tolist() == [50, 51] * 3
    assert len({row.tobytes() for row in found}) == 6
    assert (halves(101, 6) == found).all()
    assert (halves(101, 6, seed=1) != found).any()


@pytest.mark.parametrize("wrong", [(100, 3), (100, 5), (100, 2), (3, 4)])
def test_too_few_twins_or_pairs_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted"):
        halves(*wrong)


def planted(memory: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 400 pairs under 8 twins: how easy a pair is, which all share, then memory of members, then noise."""
    random = np.random.default_rng(3)
    flags = halves(400, 8)
    return random.normal(size=400) * 2 + memory * flags + random.normal(size=(8, 400)) * 0.5, flags


def test_scores_without_memory_show_nothing():
    found = leak(*planted(0.0))
    assert not found.by_score.shows
    assert not found.calibrated.shows
    assert found.calibrated.low < 0.5 < found.calibrated.high
    assert (found.num_pairs, found.num_twins) == (400, 8)


def test_memory_shows_more_to_who_knows_how_easy_a_pair_is():
    found = leak(*planted(0.5))
    assert found.by_score.shows
    assert found.by_score.value == pytest.approx(0.568, abs=0.02)  # normal cdf of .5 / sqrt(2 (4 + .25))
    assert found.calibrated.value == pytest.approx(0.73, abs=0.03)  # of .5 / sqrt(2 x .25 x 1.3), about
    assert found.calibrated.low > found.by_score.high


def test_calibration_is_by_the_other_twins_that_lacked_the_pair():
    flags = halves(4, 4)
    scores = np.arange(16.0).reshape(4, 4)
    usual = np.array([
        [np.mean([scores[j, n] for j in range(4) if j != k and not flags[j, n]]) for n in range(4)] for k in range(4)
    ])  # fmt: skip
    each = [auc(*row) for row in zip(scores - usual, flags, strict=True)]
    assert leak(scores, flags).calibrated.value == pytest.approx(np.mean(each))
