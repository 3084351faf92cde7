"""Vector and perceptual hash as one vector: its cosine distance is the joint distance, whatever vectors and hashes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.looks import ROUNDING, joined, joint_distances

HASH = st.integers(0, 2**64 - 1)


def one_by_one(left, right, i: int, j: int) -> float:
    (a, b), bits = (
        (left[0][i].astype(float), right[0][j].astype(float)),
        (int(left[1][i]) ^ int(right[1][j])).bit_count(),
    )
    return (2 * (1 - a @ b / np.sqrt((a @ a) * (b @ b))) + bits / 32) / 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.lists(HASH, min_size=1, max_size=20), st.lists(HASH, min_size=1, max_size=20))
def test_the_cosine_of_joined_vectors_is_the_joint_distance(seed, left, right):
    rng = np.random.default_rng(seed)
    dims, length = int(rng.integers(1, 80)), 10 ** rng.uniform(-2, 2)
    sides = [((rng.standard_normal((len(hashes), dims)) * length).astype(np.float16), np.array(hashes, np.uint64))
             for hashes in (left, right)]  # fmt: skip
    for vectors, _ in sides:
        vectors[~vectors.any(axis=1)] = 1  # rounded to zero
    i_P, j_P = (axis.ravel() for axis in np.indices((len(left), len(right))))
    wanted = [one_by_one(*sides, i, j) for i, j in zip(i_P, j_P, strict=True)]
    np.testing.assert_allclose(joint_distances(*sides, i_P, j_P), wanted, atol=1e-7)
    units = [joined(*side) for side in sides]
    assert all(side.shape == (len(side), dims + 64) and side.dtype == np.float32 for side in units)
    np.testing.assert_allclose(np.linalg.norm(units[0], axis=1), 1, atol=1e-6)
    apart = 1 - np.einsum("pd,pd->p", units[0][i_P].astype(float), units[1][j_P].astype(float))
    np.testing.assert_allclose(apart, wanted, atol=ROUNDING)


def test_the_same_look_is_no_distance_and_the_opposite_one_is_two():
    vectors, hashes, one = np.array([[1, 2], [-1, -2]], np.float16), np.array([5, 2**64 - 6], np.uint64), np.array([0])
    side = (vectors, hashes)
    assert joint_distances(side, side, one, one)[0] == 0.0
    assert joint_distances(side, side, one, one + 1)[0] == 2.0
