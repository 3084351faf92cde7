"""Entries of one key brought together: cut into slices, compared within buckets of equal keys. numba; touches nothing.

An entry is a column of 64-bit numbers: its key, its id and, where it has one, the words of its sketch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import numpy.typing as npt

from models.hamming import num_bits

Numbers = npt.NDArray[np.uint64]
ALL_PAIRS = 100
"""Entries of a bucket that are compared all with all. Of a larger one each is compared with the smallest id and with
the ALL_PAIRS next ones by id, so that a template of a million captions costs linear work. What is not compared in this
bucket can be missed, unless another band that the two share is smaller: a cap on recall, within large buckets only."""


def into_slices(keys_N: Numbers, entries_CN: Numbers, num_slices: int) -> Iterator[tuple[int, Numbers]]:
    """(slice, its entries), 0 to num_slices - 1: those of equal keys are in one."""
    if num_slices == 1:
        yield 0, entries_CN
        return
    sorted_CN, ends_S = _into_slices(keys_N, entries_CN, num_slices)
    for number, (start, end) in enumerate(zip([0, *ends_S[:-1]], ends_S, strict=True)):
        if end > start:
            yield number, sorted_CN[:, start:end]


def close_pairs(entries_CN: Numbers, num_new: int, most_bits: int) -> tuple[Numbers, Numbers]:
    """Ids, the smaller and the larger, of entries with one key of which one at least is among the first `num_new`, and
    whose sketches differ in at most so many bits; of large buckets those that ALL_PAIRS says. An id counts once in a
    bucket."""
    keys_N, ids_N = entries_CN[:2]
    places = _may_be_shared(keys_N)
    places = places[np.argsort(keys_N[places])]
    found_2N = _close_pairs(places, keys_N, ids_N, entries_CN[2:], num_new, np.uint64(most_bits), ALL_PAIRS)
    return ids_N[found_2N[0]], ids_N[found_2N[1]]


@numba.njit(cache=True)
def _into_slices(keys_N, entries_CN, num_slices):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    slices_N, ends_S = np.empty(len(keys_N), np.int32), np.zeros(num_slices, np.int64)
    for n in range(len(keys_N)):
        slices_N[n] = (keys_N[n] * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(num_slices)
        ends_S[slices_N[n]] += 1
    ends_S = np.cumsum(ends_S)
    places_S, sorted_CN = ends_S.copy(), np.empty_like(entries_CN)
    for n in range(len(keys_N) - 1, -1, -1):  # from the end: a slice keeps their order
        places_S[slices_N[n]] -= 1
        for column in range(len(entries_CN)):
            sorted_CN[column, places_S[slices_N[n]]] = entries_CN[column, n]
    return sorted_CN, ends_S


@numba.njit(cache=True)
def _may_be_shared(keys_N):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Places of the keys that come twice, and of a few more: most come once, and sorting is what costs."""
    shift = 61
    while 1 << (64 - shift) < 8 * len(keys_N):
        shift -= 1
    is_met, is_met_again = np.zeros(1 << (64 - shift), np.bool_), np.zeros(1 << (64 - shift), np.bool_)
    for n in range(len(keys_N)):
        slot = keys_N[n] * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(shift)
        is_met_again[slot] |= is_met[slot]
        is_met[slot] = True
    return np.array(
        [n for n in range(len(keys_N)) if is_met_again[keys_N[n] * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(shift)]],
        dtype=np.int64,
    )


@numba.njit(cache=True)
def _order_by_id(order, start, end, ids_N):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Sorts order[start:end] by id, then by place; the end of those that are left: each id once, by its first place, so
    that a new entry stands for old ones."""
    gap = 1
    while gap < (end - start) // 3:
        gap = 3 * gap + 1
    while gap > 0:  # Shell's sort: most buckets are of two, and numba compiles its own sorts for seconds
        for n in range(start + gap, end):
            place, m = order[n], n
            while m >= start + gap and (ids_N[order[m - gap]], order[m - gap]) > (ids_N[place], place):
                order[m] = order[m - gap]
                m -= gap
            order[m] = place
        gap //= 3
    number = start + 1
    for n in range(start + 1, end):
        if ids_N[order[n]] != ids_N[order[number - 1]]:
            order[number] = order[n]
            number += 1
    return number


@numba.njit(cache=True)
def _close_pairs(order, keys_N, ids_N, words_WN, num_new, most_bits, all_pairs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    found_2N, number, start = np.empty((2, 1024), np.int64), 0, 0
    while start < len(order):
        end, is_any_new = start, False
        while end < len(order) and keys_N[order[end]] == keys_N[order[start]]:
            is_any_new |= order[end] < num_new
            end += 1
        last = _order_by_id(order, start, end, ids_N) if is_any_new else start
        for n in range(start + 1, last):
            nearest = max(n - all_pairs, start)
            for m in range(nearest - (nearest > start), n):
                one, other = order[m if m >= nearest else start], order[n]
                bits = np.uint64(0)
                for word in range(len(words_WN)):
                    bits += num_bits(words_WN[word, one] ^ words_WN[word, other])
                if bits <= most_bits and (one < num_new or other < num_new):
                    if number == found_2N.shape[1]:
                        wider_2N = np.empty((2, 2 * number), np.int64)
                        for pair in range(number):
                            wider_2N[0, pair], wider_2N[1, pair] = found_2N[0, pair], found_2N[1, pair]
                        found_2N = wider_2N
                    found_2N[0, number], found_2N[1, number] = one, other
                    number += 1
        start = end
    return found_2N[:, :number]
