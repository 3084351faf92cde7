"""Products of vectors whose bits depend on nothing but the two vectors: not on who else is in the batch, on threads, or
on which kernel a BLAS takes. numpy only.

A BLAS adds in the order of its kernel, and takes its kernel by shape, place in the block and CPU: those of OpenBLAS for
Haswell give a row other last bits at another place. So both sides are rounded to whole numbers of so few bits that no
sum of their products needs more than the 53 that float64 holds: every order gives the same sum.

Dimensions: B rows, T other vectors, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

MANTISSA_BITS = 53
"""Of float64: sums of whole numbers up to 2^53 are exact."""
AT_ONCE = 8192
"""Other vectors that are rounded together: 50 MB of 768 features."""


def products(rows_BD: NDArray[np.floating[Any]], others_TD: NDArray[np.floating[Any]]) -> Float32:
    """Every row's product with every other vector: float32, shape BT; no number for a row that is not finite.

    A vector is rounded to 2^-bits of the power of two above its largest number, bits = (53 - log2 D) / 2 rounded down:
    21 of 1,280 features, 22 of 512. That moves a product of unit vectors by some 1e-7, as adding in float32 does.
    """
    found_BT = np.empty((len(rows_BD), len(others_TD)), np.float32)
    rounded_BD = rounded(rows_BD)
    for start in range(0, len(others_TD), AT_ONCE):
        found_BT[:, start : start + AT_ONCE] = rounded_BD @ rounded(others_TD[start : start + AT_ONCE]).T
    return found_BT


def rounded(vectors_ND: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Vectors as `products` multiplies them."""
    bits = (MANTISSA_BITS - (vectors_ND.shape[1] - 1).bit_length()) // 2
    largest_N = np.abs(vectors_ND).max(axis=1, initial=0)
    exponents_N = np.frexp(np.where(np.isfinite(largest_N), largest_N, 0))[1] - bits
    # Beside so large a number float64 has no place for smaller parts than the wanted ones.
    large_N1 = np.ldexp(1.5, exponents_N + MANTISSA_BITS - 1)[:, None]
    rounded_ND: NDArray[np.float64] = vectors_ND + large_N1
    rounded_ND -= large_N1
    return rounded_ND
