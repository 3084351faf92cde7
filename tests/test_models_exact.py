"""Products that depend on nothing but the two vectors: against exact arithmetic, in any batch, at any place."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import exact
from models.exact import products, rounded

FINITE = st.floats(-65504, 65504, width=32) | st.sampled_from([0.0, -0.0, 1e-30, -65504.0, 2.0**-24])


def vectors(rows, dims, seed, spread=8):
    """float32 whose numbers differ by many powers of two."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, dims)) * 2.0 ** rng.integers(-spread, spread, (rows, dims))).astype(np.float32)


@given(st.data(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_exact_arithmetic(data, dims):
    one, other = (
        np.array(data.draw(st.lists(FINITE, min_size=dims, max_size=dims)), np.float32)[None] for _ in range(2)
    )
    wanted = sum(
        Fraction(float(a)) * Fraction(float(b)) for a, b in zip(rounded(one)[0], rounded(other)[0], strict=True)
    )
    assert products(one, other) == np.float32(float(wanted))


@pytest.mark.parametrize("dims", [1, 2, 3, 384, 1280, 2048, 4096])
def test_no_sum_needs_more_bits_than_there_are(dims):
    """All numbers near the largest, all of one sign: of no other vectors is a sum as large."""
    rng = np.random.default_rng(dims)
    one, other = (rounded(rng.uniform(0.999, 1, (5, dims))) for _ in range(2))
    wanted = [
        sum(Fraction(a) * Fraction(b) for a, b in zip(*pair, strict=True)) for pair in zip(one, other, strict=True)
    ]
    assert [Fraction(float(total)) for total in np.diag(one @ other.T)] == wanted


@pytest.mark.parametrize("dims", [1, 2, 3, 384, 1280, 4096])
def test_rounding_takes_less_than_adding_in_float32_could(dims):
    rows, others = vectors(40, dims, 0), vectors(30, dims, 1)
    off = np.abs(rounded(rows) - rows).max(axis=1) / np.abs(rows).max(axis=1)
    bits = (53 - (dims - 1).bit_length()) // 2
    assert off.max() <= 2.0**-bits
    lengths = np.linalg.norm(rows.astype(float), axis=1)[:, None] * np.linalg.norm(others.astype(float), axis=1)
    wanted = rows.astype(float) @ others.astype(float).T
    assert (np.abs(products(rows, others) - wanted) / lengths).max() < 4e-7


def test_no_place_in_a_batch_and_no_batch_changes_a_bit(monkeypatch):
    rows, others = vectors(530, 700, 2), vectors(260, 700, 3)
    whole, rng = products(rows, others), np.random.default_rng(4)
    for some in (rng.permutation(530), np.arange(1, 2), np.arange(77, 530), np.repeat(5, 513)):
        assert np.array_equal(products(rows[some], others), whole[some])
        theirs = some[some < 260]
        assert np.array_equal(products(rows, others[theirs]), whole[:, theirs])
    assert np.array_equal(products(others, rows), whole.T)
    monkeypatch.setattr(exact, "AT_ONCE", 7)
    assert np.array_equal(products(rows, others), whole)


def test_rows_without_numbers_leave_the_others_alone():
    rows, others = vectors(6, 9, 5), vectors(4, 9, 6)
    wanted = products(rows, others)
    rows[1, 3], rows[2, 4], rows[4] = np.nan, np.inf, 0
    with np.errstate(invalid="ignore"):
        found = products(rows, others)
    assert not np.isfinite(found[[1, 2]]).any() and (found[4] == 0).all()
    assert np.array_equal(found[[0, 3, 5]], wanted[[0, 3, 5]])
    assert products(rows[:0], others).shape == (0, 4) and products(rows, others[:0]).shape == (6, 0)
