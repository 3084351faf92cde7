"""How near two pictures are by an encoder's vector and a perceptual hash together. numpy; touches nothing.

Each misses copies that the other sees: a cropped picture has another hash, a drawing in a poor JPEG has unstable bits,
and a small encoder's vectors wander. Far enough apart not to be flagged by one alone, such copies are still nearer by
both than other pictures are. So there is a joint distance, a weighted mean of two cosine distances (a hash is a vector
of 64 signs; of two hashes it is bits / 32):

    (2 (1 - cosine) + bits / 32) / 3

It is 1 - cosine of the vectors that `joined` makes: what finds near vectors finds these pairs.

Dimensions: N pictures, D features, P pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.near import Indices, Vectors, distances

BITS = 64
OF_VECTOR = 2 / 3
"""Share of the vector in the distance."""
ROUNDING = 1e-5
"""By how much the cosine of two joined vectors, which are float32, can be off."""


def joined(vectors_ND: Vectors, hashes_N: NDArray[np.uint64]) -> Vectors:
    """float32 (N, D + 64), of length 1: vectors, none of them zero, with the bits of their hashes as signs."""
    units_ND = vectors_ND.astype(np.float32)
    units_ND /= np.linalg.norm(units_ND, axis=1, keepdims=True)
    bits_NB = np.unpackbits(hashes_N.astype("<u8").view(np.uint8).reshape(-1, BITS // 8), axis=1)
    signs_NB = (bits_NB.astype(np.float32) * 2 - 1) / BITS**0.5
    return np.hstack([units_ND * OF_VECTOR**0.5, signs_NB * (1 - OF_VECTOR) ** 0.5])


def joint_distances(
    left: tuple[Vectors, NDArray[np.uint64]], right: tuple[Vectors, NDArray[np.uint64]], i_P: Indices, j_P: Indices
) -> NDArray[np.float64]:
    """Of pairs of rows of (vectors_ND, hashes_N), in [0, 2], to seven decimals: of equal ones exactly 0."""
    bits_P = np.bitwise_count(left[1][i_P] ^ right[1][j_P])
    apart_P = OF_VECTOR * distances(left[0], right[0], i_P, j_P) + (1 - OF_VECTOR) * bits_P * (2 / BITS)
    return np.asarray(np.round(apart_P, 7))
