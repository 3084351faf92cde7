"""Pairs of near vectors: those that a float64 product of all has, in every form, block and order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import near
from models.near import cosines, distances, forest, near_pairs

FORMS = ("int8", "bf16", "fp32")


def clustered(num: int, dims: int, seed: int = 0, spread: float = 0.2) -> np.ndarray:
    """float16 vectors around few centres, not of length 1, so that some pairs are near and many are nearly so."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(num // 5, 1), dims))
    found = centres[rng.integers(len(centres), size=num)] + spread * rng.standard_normal((num, dims))
    return (found * rng.uniform(0.1, 3, (num, 1))).astype(np.float16)


def wanted(left: np.ndarray, right: np.ndarray | None, min_cosine: float) -> set[tuple[int, int]]:
    sides = [side.astype(np.float64) for side in (left, left if right is None else right)]
    units = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    found = np.argwhere(units[0] @ units[1].T >= min_cosine)
    return {(i, j) for i, j in found.tolist() if right is not None or i < j}


def pairs(left, right=None, **options) -> list[tuple[int, int]]:
    return [pair for i, j in near_pairs(left, right, **options) for pair in zip(i.tolist(), j.tolist(), strict=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block_rows", [64, 100, 4096])
def test_the_pairs_are_those_of_all_products(form, block_rows):
    vectors = clustered(400, 48)
    found = pairs(vectors, min_cosine=0.95, form=form, block_rows=block_rows)
    assert len(found) == len(set(found)) > 300
    assert set(found) == wanted(vectors, None, 0.95)


@pytest.mark.parametrize("form", FORMS)
def test_pairs_between_two_sides(form):
    left, right = clustered(150, 40), clustered(90, 40)  # the same centres
    found = pairs(left, right, min_cosine=0.9, form=form, block_rows=32)
    assert set(found) == wanted(left, right, 0.9) and len(found) == len(set(found)) > 100
    assert pairs(left[:0], right, min_cosine=0.9, form=form) == pairs(left, right[:0], min_cosine=0.9) == []


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num=st.integers(1, 60),
    dims=st.sampled_from([1, 2, 3, 17, 64]),
    spread=st.sampled_from([0.0, 0.001, 0.05, 1.0]),
    min_cosine=st.floats(-1.0, 0.999),
    form=st.sampled_from(FORMS),
    outlier=st.booleans(),
)
def test_no_pair_is_lost_by_rounding(seed, num, dims, spread, min_cosine, form, outlier):
    vectors = clustered(num, dims, seed, spread)
    vectors[:, 0] *= 50 if outlier else 1  # as CLIP's vectors have one: then int8 has few steps left for the others
    found = set(pairs(vectors, min_cosine=min_cosine, form=form, block_rows=16))
    i, j = np.triu_indices(num, 1)
    is_near = cosines(vectors, vectors, i, j) >= min_cosine
    assert found == set(zip(i[is_near].tolist(), j[is_near].tolist(), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), num=st.integers(16, 80), dims=st.sampled_from([24, 64]),
    spread=st.sampled_from([0.0, 0.05, 0.3, 1.0]), min_cosine=st.floats(-1.0, 0.999), form=st.sampled_from(FORMS),
    common=st.sampled_from([0.0, 3.0]), right=st.booleans(),
)  # fmt: skip
def test_no_pair_is_lost_where_vectors_are_shortened(seed, num, dims, spread, min_cosine, form, common, right):
    """With a direction that all of them share too."""
    vectors = (clustered(num, dims, seed, spread).astype(np.float32) + common).astype(np.float16)
    sides = (vectors[: num // 2], vectors[num // 2 :]) if right else (vectors, None)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SHORT": (12,), "LEFT": 4, "SAMPLED": 4, "FEW": 1}.items():
            patch.setattr(near, name, value)
        shortened = near._basis(*sides, min_cosine, form, "cpu")
        found = pairs(*sides, min_cosine=min_cosine, form=form, block_rows=16)
    assert tuple(shortened.shape) == (dims, 8)
    i, j = np.indices((num, num)).reshape(2, -1)
    is_wanted = (i < num // 2) & (j >= num // 2) if right else i < j
    i, j = i[is_wanted], j[is_wanted]
    is_near = cosines(vectors, vectors, i, j) >= min_cosine
    assert set(found) == set(zip(i[is_near].tolist(), (j[is_near] - right * (num // 2)).tolist(), strict=True))


def test_vectors_are_shortened_to_what_leaves_few_candidates():
    """Random ones as far as they go; those of two directions not at all, where a bound is low."""
    draw = np.random.default_rng(0)
    spread = draw.standard_normal((5000, 512), np.float32)
    crowd = np.repeat(draw.standard_normal((2, 512), np.float32), 2500, axis=0) + 0.3 * spread
    widths = [
        near._basis(v, None, c, "int8", "cpu")
        for v, c in ((spread, 0.95), (spread, 0.8), (crowd, 0.8), (spread[:99], 0.9))
    ]
    assert [basis if basis is None else basis.shape[1] + near.LEFT for basis in widths] == [128, 256, None, None]


@pytest.mark.parametrize("form", FORMS)
def test_a_crowd_of_candidates_is_looked_at_by_one_product_and_gives_the_same(form, monkeypatch):
    vectors = clustered(300, 32, spread=0.15)
    one_by_one = pairs(vectors, min_cosine=0.97, form=form)
    monkeypatch.setattr(near, "MANY", 10)
    looked = []
    kept = near.cosines
    monkeypatch.setattr(near, "cosines", lambda a, b, i, j: looked.append(len(i)) or kept(a, b, i, j))
    assert pairs(vectors, min_cosine=0.97, form=form) == one_by_one != []
    assert sum(looked) < len(one_by_one) / 10


def test_order_changes_no_pair():
    vectors = clustered(300, 32)
    order = np.random.default_rng(1).permutation(300)
    shuffled = {tuple(sorted((order[i], order[j]))) for i, j in pairs(vectors[order], min_cosine=0.9, block_rows=70)}
    assert shuffled == set(pairs(vectors, min_cosine=0.9))


def test_cosines_of_a_pair_are_the_same_whatever_stands_beside_it_and_from_both_sides(monkeypatch):
    left, right = clustered(50, 33), clustered(50, 33, seed=2)
    i, j = np.arange(50), np.arange(50)[::-1]
    together = cosines(left, right, i, j).tolist()
    assert cosines(right, left, j, i).tolist() == together
    monkeypatch.setattr(near, "AT_ONCE", 7)
    assert cosines(left, right, i, j).tolist() == together
    two = np.float16([[1, 0], [0, 2]]), np.float16([[3, 4], [0, -1]])
    assert cosines(*two, np.array([0, 1, 1]), np.array([0, 1, 0])).tolist() == [0.6, -1.0, 0.8]
    assert distances(*two, np.array([0, 1, 1]), np.array([0, 1, 0])).tolist() == [0.4, 2.0, 0.2]
    assert set(distances(left, left, i, i).tolist()) == {0.0}


def test_a_vector_without_direction_is_refused():
    for bad in (0.0, np.nan, np.inf):
        vectors = np.ones((3, 4), np.float32)
        vectors[1] = bad
        with pytest.raises(ValueError, match="finite vectors that are not zero"):
            pairs(vectors, min_cosine=0.9, form="fp32")
    with pytest.raises(ValueError, match="one width; found 4 and 3"):
        pairs(np.ones((1, 4)), np.ones((1, 3)), min_cosine=0.9)


def test_a_forest_connects_what_the_pairs_connect_with_one_pair_each(monkeypatch):
    blocks = [
        (np.array([3, 7]), np.array([7, 9])),
        (np.array([5]), np.array([6])),
        (np.array([0, 0]), np.array([3, 9])),
    ]
    for max_pairs in (1, 100):
        monkeypatch.setattr(near, "MAX_PAIRS", max_pairs)
        i, j = forest(iter(blocks), 11)
        assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 3), (5, 6), (0, 7), (0, 9)]
    assert [len(side) for side in forest(iter([]), 5)] == [0, 0]


def test_thousands_of_one_vector_are_held_as_a_forest(monkeypatch):
    vectors = np.repeat(clustered(1, 8), 3000, axis=0)
    held = []
    folded = near._folded
    monkeypatch.setattr(near, "MAX_PAIRS", 1_000_000)
    monkeypatch.setattr(near, "_folded", lambda some, n: held.append(sum(len(i) for i, _ in some)) or folded(some, n))
    i, j = forest(near_pairs(vectors, min_cosine=0.99, block_rows=1000), 3000)
    assert set(i.tolist()) == {0} and j.tolist() == list(range(1, 3000))
    assert max(held) < 2_100_000 < 3000 * 2999 / 2
