"""Recall, flagged shares and thresholds from planted looks, against loops."""

import numpy as np
import pytest

from models.calibration import METHODS, Cost, Looks, costs, flagged, of_copies, of_pairs, shares, to_closest


def looks(num: int, seed: int, near: Looks | None = None) -> Looks:
    """Random ones; or somewhat near to those of another, row by row."""
    rng = np.random.default_rng(seed)
    vectors, hashes = rng.standard_normal((num, 24)), rng.integers(0, 2**63, num, dtype=np.uint64)
    if near is not None:
        vectors = near.vectors_ND[:num] + 0.4 * vectors
        hashes = near.hashes_N[:num] ^ (hashes & np.uint64(0x1111111111111111))
    return Looks(vectors.astype("<f2"), hashes)


def one_by_one(left: Looks, right: Looks, i: int, j: int) -> tuple[int, float, float]:
    bits = (int(left.hashes_N[i]) ^ int(right.hashes_N[j])).bit_count()
    a, b = left.vectors_ND[i].astype(float), right.vectors_ND[j].astype(float)
    apart = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
    return bits, apart, (2 * apart + bits / 32) / 3


def test_distances_to_the_closest_are_those_of_all_pairs():
    theirs = looks(70, 1)
    ours = looks(300, 2)  # more than a block
    ours = Looks(*(np.concatenate(side) for side in zip(ours, looks(50, 3, near=theirs), strict=True)))
    found, nearest = to_closest(ours, theirs)
    every = np.array([[one_by_one(ours, theirs, i, j) for j in range(70)] for i in range(350)])
    for number, method in enumerate(METHODS):
        np.testing.assert_allclose(found[method], every[..., number].min(axis=1), atol=2e-6)
    np.testing.assert_array_equal(nearest, every[..., 2].argmin(axis=1))
    assert (nearest[300:] == np.arange(50)).mean() > 0.9
    pairs = of_pairs(ours, theirs, np.arange(350), nearest)
    wanted = every[np.arange(350), nearest]
    for number, method in enumerate(METHODS):
        np.testing.assert_allclose(pairs[method], wanted[:, number], atol=2e-6)


def test_edited_copies_are_met_by_vector_and_by_both_but_not_by_a_hash_alone():
    """As in the stages. Against loops: each to its own original and that one's copies, and to all of them."""
    originals, edited = looks(40, 1), [looks(40, 2), looks(40, 3)]
    made = Looks(*(np.concatenate(side) for side in zip(
        looks(10, 4, near=originals),
        *(Looks(*(v[at : at + 15] for v in looks(40, 5, near=one))) for one, at in zip(edited, (10, 25), strict=True)),
        strict=True)))  # fmt: skip
    every = np.array(
        [[[one_by_one(made, one, n, m) for one in (originals, *edited)] for m in range(40)] for n in range(40)]
    )
    found = of_copies(made, originals, edited)
    own = every[np.arange(40), np.arange(40)]
    theirs = Looks(*(np.concatenate(side) for side in zip(originals, *edited, strict=True)))
    closest, nearest = to_closest(made, theirs, np.arange(120) >= 40)
    for number, method in enumerate(METHODS):
        of = slice(1) if method == "phash" else slice(3)
        np.testing.assert_allclose(found[method], own[:, of, number].min(axis=1), atol=2e-6)
        np.testing.assert_allclose(closest[method], every[:, :, of, number].min(axis=(1, 2)), atol=2e-6)
    np.testing.assert_array_equal(nearest // 40, [0] * 10 + [1] * 15 + [2] * 15)
    np.testing.assert_array_equal(nearest % 40, np.arange(40))
    assert (of_copies(made, originals)["semantic"][10:] > found["semantic"][10:]).mean() > 0.9


FOUND = {"phash": np.array([0, 4, 5, 30]), "semantic": np.array([0.0, 0.3, 0.1, 0.9]),
         "semantic_phash": np.array([0.0, 0.2, 0.12, 0.7])}  # fmt: skip


@pytest.mark.parametrize(("limits", "wanted"), [
    ({"phash": 4, "semantic": 0.1, "semantic_phash": 0.15}, ([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0])),
    ({"semantic_phash": 0.2}, ([0] * 4, [0] * 4, [1, 1, 1, 0], [1, 1, 1, 0])),
    ({}, ([0] * 4,) * 4),
])  # fmt: skip
def test_a_method_flags_what_is_within_its_limit_and_nothing_where_it_has_none(limits, wanted):
    found = flagged(FOUND, limits)
    assert list(found) == [*METHODS, "any"]
    assert [values.astype(int).tolist() for values in found.values()] == list(map(list, wanted))
    assert shares(FOUND, limits) == {name: sum(row) / 4 for name, row in zip(found, wanted, strict=True)}


def test_a_threshold_flags_at_most_its_share_of_the_pool():
    """Of a thousand pictures the closest are 0, 1, 2 … bits away, one each, and in hundredths likewise."""
    ranks = np.random.default_rng(0).permutation(1000)
    pool = {"phash": np.minimum(ranks, 64), "semantic": ranks / 100, "semantic_phash": np.full(1000, 0.004)}
    copies = [{method: np.array([3, 15, 15, 60]) / (1 if method == "phash" else 100) for method in METHODS}]
    by_rank = [(1, 0.001, 0), (2, 0.002, 0), (5, 0.005, 0.25), (10, 0.01, 0.25), (20, 0.02, 0.75), (50, 0.05, 0.75)]
    assert costs(copies, pool) == [
        *(Cost("phash", n - 1, flags, finds) for n, flags, finds in by_rank),
        *(Cost("semantic", (n - 1) / 100, flags, finds) for n, flags, finds in by_rank),
        Cost("semantic_phash", 0.0, 0.0, 0.0),
    ]
