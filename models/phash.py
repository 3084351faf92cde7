"""The perceptual hash of a picture: imagehash's phash, bit for bit, in a third of its time. numba; touches nothing.

Its time is that of Pillow's grey and Lanczos resize, which take as long as decoding a JPEG. Both are made here to the
bit, since any other resize gives other hashes: the many coefficients that are nearly 0 in drawings change their sign.
So they do from Pillow 12.0 to 13.0, which shrinks tall pictures along their columns first; here rows are always first,
so that a hash does not hang on Pillow's version. Weights are integers of 22 bits after the point (Pillow's
Resample.c): the order of sums does not matter, and they become vector instructions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from scipy import fft  # type: ignore[import-untyped]

BITS = 22
"""After the point, of a weight."""
LOBES = 3.0
TOGETHER = 4
"""Rows that are shrunk in one turn: a weight is loaded once for them, and their sums do not wait for one another."""


def phash(image: Image.Image) -> int:
    """Of an 8x8 DCT the 64 bits row by row, 1 above the median; the first one is the sign of a signed 64-bit integer.

    Under Pillow 13 imagehash's own can differ for tall pictures, as said above.
    """
    return int(_above_median(fft.dctn(shrink(image, 32))))


def shrink(image: Image.Image, size_px: int) -> npt.NDArray[np.uint8]:
    """`size_px` squared: what Pillow's `convert("L")` and `resize` by LANCZOS make of a picture, its rows first."""
    rgbx_HW, sizes = _pixels(image), (image.width, image.height)
    return _shrunk(rgbx_HW, *(weights(size, size_px) for size in sizes))  # type: ignore[no-any-return]


def _pixels(image: Image.Image) -> npt.NDArray[np.uint32]:
    """The pixels as Pillow holds them: red in the lowest byte, none in the highest."""
    image = image.convert("RGB") if image.mode != "RGB" else image
    try:
        flat = pa.array(image).values.buffers()[1]  # no copy, which alone would take as long as what follows
    except ValueError:  # more than 16 MB: Pillow holds it in pieces
        flat = image.tobytes("raw", "RGBX")
    return np.frombuffer(flat, np.uint32, count=image.width * image.height).reshape(image.height, image.width)


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
def _shrunk(rgbx_HW, across, down):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    height, width = rgbx_HW.shape
    grey_RW, narrow_OH = np.empty((TOGETHER, width), np.int32), np.empty((len(across[0]), height), np.int32)
    for top in range(0, height, TOGETHER):
        for row in range(TOGETHER):
            _grey(rgbx_HW[min(top + row, height - 1)], grey_RW[row])  # past the end the last one again
        _narrow(grey_RW, across, narrow_OH[:, top : top + TOGETHER])
    made_OO = np.empty((len(down[0]), len(across[0])), np.uint8)
    rest_RH = np.empty((TOGETHER, height), np.int32)
    for left in range(0, len(narrow_OH), TOGETHER):
        for row in range(TOGETHER):
            for n in range(height):
                rest_RH[row, n] = narrow_OH[min(left + row, len(narrow_OH) - 1), n]
        _narrow(rest_RH, down, made_OO[:, left : left + TOGETHER])
    return made_OO


@numba.njit(cache=True)
def _grey(rgbx_W, grey_W):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """ITU-R 601-2 luma, of 16 bits after the point, as Pillow rounds it."""
    byte = np.uint32(255)
    for n in range(len(grey_W)):
        red, green, blue = rgbx_W[n] & byte, rgbx_W[n] >> np.uint32(8) & byte, rgbx_W[n] >> np.uint32(16) & byte
        luma = red * np.uint32(19595) + green * np.uint32(38470) + blue * np.uint32(7471)
        grey_W[n] = np.int32(luma + np.uint32(1 << 15) >> np.uint32(16))


@numba.njit(cache=True)
def _narrow(pixels_RN, weights, made_OR):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The O sums of weighted pixels of each of TOGETHER rows, 0 to 255; made_OR may have fewer columns."""
    ends_O2, weights_OK = weights
    row_a, row_b, row_c, row_d = pixels_RN[0], pixels_RN[1], pixels_RN[2], pixels_RN[3]
    for out in range(len(ends_O2)):
        first, end = ends_O2[out, 0], ends_O2[out, 1]
        weights_K = weights_OK[out]
        a, b, c, d = row_a[first:end], row_b[first:end], row_c[first:end], row_d[first:end]
        sum_a = sum_b = sum_c = sum_d = np.int32(1 << (BITS - 1))
        for n in range(end - first):  # cast at each step, since numba makes 64 bits of a product
            sum_a = np.int32(sum_a + np.int32(a[n] * weights_K[n]))
            sum_b = np.int32(sum_b + np.int32(b[n] * weights_K[n]))
            sum_c = np.int32(sum_c + np.int32(c[n] * weights_K[n]))
            sum_d = np.int32(sum_d + np.int32(d[n] * weights_K[n]))
        for row, total in enumerate((sum_a, sum_b, sum_c, sum_d)):
            if row < made_OR.shape[1]:
                made_OR[out, row] = min(max(total >> BITS, 0), 255)


@numba.njit(cache=True)
def _above_median(dct_OO):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    in_order = np.empty(64)
    for number in range(64):  # sorted as they come: numba compiles its own sort for seconds
        coefficient, n = dct_OO[number // 8, number % 8], number
        while n > 0 and in_order[n - 1] > coefficient:
            in_order[n] = in_order[n - 1]
            n -= 1
        in_order[n] = coefficient
    median, bits = (in_order[31] + in_order[32]) / 2, np.int64(0)
    for number in range(64):
        bits = bits << 1 | np.int64(dct_OO[number // 8, number % 8] > median)
    return bits
