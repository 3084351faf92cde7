"""Captions that are nearly the same: MinHash band keys (Broder 1997) and the exact Jaccard. numba; touches nothing.

A caption is the set of its shingles: runs of five bytes of its UTF-8, ASCII letters in lower case, runs of ASCII blanks
as one space, none at the ends; a shorter one is a shingle itself. numba, since the same in numpy takes seven times as
long, and datasketch's own Python eighty times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats  # type: ignore[import-untyped]

SHINGLE_BYTES = 5
NUM_HASHES = 128
SEED = 1
BAND_HASHES = 96
"""Of NUM_HASHES, so many at most make bands. With fewer hashes bands are shorter, and fewer are needed: bringing their
keys together is what costs. But captions of a common kind crowd into the buckets of short ones."""
RECALL = 0.98
SKETCH_RECALL = 0.999
MAX_BYTES = 100_000
"""Of a caption, the rest is not looked at: one of a megabyte must not cost what all the others do."""
Floats = npt.NDArray[np.float64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Banding:
    """Two captions with Jaccard j share a band with probability 1 - (1 - j^rows)^bands."""

    num_bands: int
    num_rows: int

    def recall(self, jaccard: float) -> float:
        return float(1 - (1 - jaccard**self.num_rows) ** self.num_bands)


def banding(min_jaccard: float) -> Banding:
    """The longest bands, and so the fewest false candidates, by which RECALL of pairs at the threshold are found; of
    them no more than that takes.

    Pairs above it are found more surely: at 0.8, 0.981; at 0.85, 0.998.
    """
    for num_rows in range(BAND_HASHES, 0, -1):
        all_bands = [Banding(number, num_rows) for number in range(1, BAND_HASHES // num_rows + 1)]
        if found := [bands for bands in all_bands if bands.recall(min_jaccard) >= RECALL]:
            return found[0]
    return Banding(BAND_HASHES, 1)


def band_keys(texts_N: pa.StringArray, bands: Banding) -> tuple[Keys, Keys, npt.NDArray[np.bool_]]:
    """keys_NB, the key of each caption in each band; sketches_NW, its sketch; and is_some_N: whether it has a shingle,
    and so any key.

    Keys of different bands can be equal by chance: compare within a band. NULL has no shingle. A sketch is a bit of
    each hash function's least value (b-bit minwise hashing, Li and König 2010, arXiv 0910.3349), 128 in two numbers.
    """
    data, offsets = _buffers(texts_N)
    draw = np.random.default_rng(SEED)
    num_hashes = max(-(-bands.num_bands * bands.num_rows // 32) * 32, NUM_HASHES)  # whole vectors: a rest costs as much
    factors_H = draw.integers(0, 1 << 31, num_hashes, np.uint32) * np.uint32(2) + np.uint32(1)
    terms_H = draw.integers(0, 1 << 32, num_hashes, np.uint32)
    keys_NB = np.zeros((len(texts_N), bands.num_bands), np.uint64)
    sketches_NW = np.zeros((len(texts_N), NUM_HASHES // 64), np.uint64)
    is_some_N = _keys(data, offsets, factors_H, terms_H, bands.num_rows, keys_NB, sketches_NW)
    return keys_NB, sketches_NW, is_some_N


def min_bits(min_jaccard: float) -> int:
    """Of the bits of two sketches, how many agree at least: SKETCH_RECALL of pairs at the threshold have so many.

    The bits of two captions with Jaccard j agree with probability (1 + j) / 2 each.
    """
    return int(stats.binom.ppf(1 - SKETCH_RECALL, NUM_HASHES, (1 + min_jaccard) / 2))


def jaccard(texts_N: pa.StringArray, others_N: pa.StringArray) -> Floats:
    """Shared shingles over all shingles of each pair, 0 to 1; 0 where neither has any."""
    return _jaccard(*_buffers(texts_N), *_buffers(others_N))  # type: ignore[no-any-return]


def signatures(texts_N: pa.StringArray, num_hashes: int = NUM_HASHES) -> npt.NDArray[np.uint64]:
    """One key for each hash function: two captions agree on a share of them that estimates their Jaccard."""
    return band_keys(texts_N, Banding(num_hashes, 1))[0]


def _buffers(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes, and offsets_N+1 into them. A NULL is empty."""
    texts = texts.fill_null("") if texts.null_count else texts
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    offsets = np.frombuffer(texts.buffers()[1] or bytes(8), width)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(texts.buffers()[2] or b"\0", np.uint8), offsets.astype(np.int64)


@numba.njit(cache=True)
def _mixed(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The finaliser of MurmurHash3 (Appleby 2011): every bit of the result depends on every bit of x."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@numba.njit(cache=True)
def _shingles(data, start, end, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Writes the shingles of a caption to `out`, repeats too, each in 40 bits; how many there are."""
    number, length, shingle, is_blank = 0, 0, np.uint64(0), False
    for at in range(start, end):
        byte = data[at]
        if byte == 32 or 9 <= byte <= 13:
            is_blank = length > 0
            continue
        if 65 <= byte <= 90:
            byte += 32
        for turn in range(2 if is_blank else 1):  # the blank before it, if there is one, then the byte
            taken = np.uint64(32) if is_blank and turn == 0 else np.uint64(byte)
            shingle = (shingle << np.uint64(8) | taken) & np.uint64(0xFFFFFFFFFF)
            length += 1
            if length >= 5:
                out[number] = shingle
                number += 1
        is_blank = False
    if 0 < length < 5:
        out[0] = shingle
        return 1
    return number


@numba.njit(cache=True)
def _longest(offsets):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    longest = 0
    for n in range(len(offsets) - 1):
        longest = max(longest, offsets[n + 1] - offsets[n])
    return min(longest, MAX_BYTES)


@numba.njit(cache=True)
def _least(hashes, number, factors_H, terms_H, least_H):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """least_H: of each hash function, (factor * x + term) mod 2^32, the least value over the shingles.

    Four shingles in one pass over the functions, which the compiler makes vector instructions of; the last
    one stands in for those that are missing.
    """
    for h in range(len(least_H)):
        least_H[h] = np.uint32(0xFFFFFFFF)
    for n in range(0, number, 4):
        w, x = hashes[n], hashes[min(n + 1, number - 1)]
        y, z = hashes[min(n + 2, number - 1)], hashes[min(n + 3, number - 1)]
        for h in range(len(least_H)):
            factor, term = factors_H[h], terms_H[h]
            one = min(np.uint32(factor * w + term), np.uint32(factor * x + term))
            two = min(np.uint32(factor * y + term), np.uint32(factor * z + term))
            least_H[h] = min(least_H[h], min(one, two))


@numba.njit(cache=True)
def _keys(data, offsets, factors_H, terms_H, num_rows, keys_NB, sketches_NW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    longest = _longest(offsets)
    shingles, hashes = np.empty(longest, np.uint64), np.empty(longest, np.uint32)
    least_H, is_some_N = np.empty(len(factors_H), np.uint32), np.zeros(len(keys_NB), np.bool_)
    for n in range(len(keys_NB)):
        number = _shingles(data, offsets[n], min(offsets[n + 1], offsets[n] + MAX_BYTES), shingles)
        is_some_N[n] = number > 0
        for s in range(number):
            hashes[s] = np.uint32(_mixed(shingles[s]))
        _least(hashes, number, factors_H, terms_H, least_H)
        for band in range(keys_NB.shape[1]):
            key = np.uint64(0)
            for row in range(band * num_rows, (band + 1) * num_rows):
                key = (key ^ np.uint64(least_H[row])) * np.uint64(0x9E3779B97F4A7C15)  # odd: no two keys become one
                key ^= key >> np.uint64(32)
            keys_NB[n, band] = key
        for word in range(sketches_NW.shape[1]):
            bits = np.uint64(0)
            for h in range(64 * word, 64 * (word + 1)):
                bits = bits << np.uint64(1) | np.uint64(np.uint32(least_H[h] * np.uint32(0x9E3779B1)) >> np.uint32(31))
            sketches_NW[n, word] = bits
    return is_some_N


@numba.njit(cache=True)
def _jaccard(data_a, offsets_a, data_b, offsets_b):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    longest_a, longest_b = _longest(offsets_a), _longest(offsets_b)
    shingles_a, shingles_b = np.empty(longest_a, np.uint64), np.empty(longest_b, np.uint64)
    # A table for all pairs: a slot is empty unless its mark is one of this pair, `of_a` or `of_b`.
    slots, marks = np.empty(_slots(longest_a + longest_b), np.uint64), np.zeros(_slots(longest_a + longest_b), np.int64)
    found = np.zeros(len(offsets_a) - 1)
    for n in range(len(found)):
        number_a = _shingles(data_a, offsets_a[n], min(offsets_a[n + 1], offsets_a[n] + MAX_BYTES), shingles_a)
        number_b = _shingles(data_b, offsets_b[n], min(offsets_b[n + 1], offsets_b[n] + MAX_BYTES), shingles_b)
        last, of_a, of_b = np.uint64(_slots(number_a + number_b) - 1), 2 * n + 1, 2 * n + 2
        num_all, num_shared = 0, 0
        for s in range(number_a):
            at = _mixed(shingles_a[s]) & last
            while marks[at] == of_a and slots[at] != shingles_a[s]:
                at = (at + np.uint64(1)) & last
            num_all += marks[at] != of_a
            slots[at], marks[at] = shingles_a[s], of_a
        for s in range(number_b):
            at = _mixed(shingles_b[s]) & last
            while marks[at] >= of_a and slots[at] != shingles_b[s]:
                at = (at + np.uint64(1)) & last
            num_all += marks[at] < of_a
            num_shared += marks[at] == of_a
            slots[at], marks[at] = shingles_b[s], of_b
        if num_all:
            found[n] = num_shared / num_all
    return found


@numba.njit(cache=True)
def _slots(number):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Of a table for so many: a power of two, at least twice as many."""
    slots = 2
    while slots < 2 * number:
        slots *= 2
    return slots
