"""Pillow's Lanczos resize of a grey picture, bit for bit, in a quarter of its time: for perceptual hashes. numba.

Pillow takes as long for it as for decoding a JPEG, and any other resize gives other hashes: the many coefficients that
are nearly 0 in drawings change their sign. So they do from Pillow 12.0 to 13.0, which shrinks tall pictures along their
columns first; here rows are always first, so that a hash does not hang on Pillow's version. Weights are integers of 22
bits after the point (Pillow's Resample.c): the order of sums does not matter, and they become vector instructions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt

BITS = 22
"""After the point, of a weight."""
LOBES = 3.0
Grey = npt.NDArray[np.uint8]


def shrink(grey_HW: Grey, size_px: int) -> Grey:
    """`size_px` squared: what Pillow's `resize` by LANCZOS makes of a picture of mode L, its rows first."""
    return _narrowed(_narrowed(grey_HW, size_px).T, size_px).T


def _narrowed(grey_HW: Grey, width_px: int) -> Grey:
    if grey_HW.shape[1] == width_px:  # as Pillow does
        return grey_HW
    return _along_rows(np.ascontiguousarray(grey_HW), *weights(grey_HW.shape[1], width_px))  # type: ignore[no-any-return]


@lru_cache(maxsize=512)  # 12 kB each for 512 px
def weights(in_px: int, out_px: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """ends_O2, the first pixel that each output pixel looks at and the one after the last; weights_OK of those."""
    return _weights(in_px, out_px)  # type: ignore[no-any-return]


@numba.njit(cache=True)
def _lanczos(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    if x == 0.0:
        return 1.0
    if not -LOBES <= x < LOBES:
        return 0.0
    whole, part = x * math.pi, x / LOBES * math.pi
    return math.sin(whole) / whole * (math.sin(part) / part)


@numba.njit(cache=True)
def _weights(in_px, out_px):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    step = in_px / out_px
    scale = max(step, 1.0)
    reach = LOBES * scale
    ends_O2 = np.zeros((out_px, 2), np.int64)
    weights_OK = np.zeros((out_px, math.ceil(reach) * 2 + 1), np.int32)
    found = np.zeros(weights_OK.shape[1])
    for out in range(out_px):
        centre = (out + 0.5) * step
        first, end = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), in_px)
        total = 0.0
        for n in range(end - first):
            found[n] = _lanczos((n + first - centre + 0.5) * (1.0 / scale))
            total += found[n]
        for n in range(end - first):
            share = found[n] / total * (1 << BITS)
            weights_OK[out, n] = int(share - 0.5 if share < 0 else share + 0.5)
        ends_O2[out, 0], ends_O2[out, 1] = first, end
    return ends_O2, weights_OK


@numba.njit(cache=True)
def _along_rows(grey_HW, ends_O2, weights_OK):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    made_HO = np.empty((grey_HW.shape[0], len(ends_O2)), np.uint8)
    for out in range(len(ends_O2)):
        first, end = ends_O2[out, 0], ends_O2[out, 1]
        weights_K = weights_OK[out]
        for row in range(grey_HW.shape[0]):
            pixels_K = grey_HW[row, first:end]
            total = np.int32(1 << (BITS - 1))
            for n in range(len(pixels_K)):  # cast at each step, since numba makes 64 bits of a product
                total = np.int32(total + np.int32(np.int32(pixels_K[n]) * weights_K[n]))
            made_HO[row, out] = min(max(total >> BITS, 0), 255)
    return made_HO
