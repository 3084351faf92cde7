"""Pairs of 64-bit hashes that differ in few bits. numpy and numba; touches nothing.

Pigeonhole: where two hashes differ in at most d bits, they agree on one of any d + 1 disjoint bands of bits. So hashes
are compared only within buckets that agree on a band, and a large bucket is split again by d + 1 bands of the bits that
are left, as long as that at least halves the comparisons. No pair is lost. A crowd that agrees on nearly all bits is
compared all with all.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numba
import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
BITS = 64
SMALL = 512
"""Hashes that are compared all with all: sorting them by five bands costs as much."""


@cache
def bands(max_bits: int, fixed: int = 0) -> list[int]:
    """Masks of max_bits + 1 bands over the bits that are not in the mask `fixed`; none where there are too few bits."""
    free = [bit for bit in range(BITS) if not fixed >> bit & 1]
    if len(free) <= max_bits:
        return []
    ends = [len(free) * n // (max_bits + 1) for n in range(max_bits + 2)]
    return [sum(1 << bit for bit in free[low:high]) for low, high in pairwise(ends)]


def forest(
    hashes_N: Hashes, max_bits: int, fixed: int = 0, num_new: int | None = None
) -> tuple[Hashes, Hashes]:  # fmt: skip
    """Links (from, to) by which those are joined that any chain of pairs joins: at most one from each hash.

    Args:
        hashes_N: distinct.
        max_bits: pairs differ in at most so many bits.
        fixed: mask of bits; only pairs that agree on all of them are wanted. 0: all pairs.
        num_new: so many at the start; only pairs with one of them are wanted, or compared. None: all.
    """
    num_new = len(hashes_N) if num_new is None else num_new
    parents_N = np.arange(len(hashes_N))
    _link(hashes_N, parents_N, *_buckets(hashes_N, parents_N.copy(), fixed, num_new), fixed, max_bits, num_new)
    roots_N = _roots(parents_N)
    linked = np.flatnonzero(roots_N != np.arange(len(hashes_N)))
    return hashes_N[linked], hashes_N[roots_N[linked]]


def _buckets(hashes_N: Hashes, members: Places, mask: int, num_new: int) -> tuple[Places, Places]:
    """Members in order of their bits in `mask`; where each bucket of equal bits starts, and the end of the last.

    Where not all are new: the new ones first in each bucket, and no bucket without any.
    """
    keys = hashes_N[members] & np.uint64(mask)
    if num_new < len(hashes_N):
        is_met = np.isin(keys, keys[members < num_new])
        members, keys = members[is_met], keys[is_met]
        order = np.lexsort((members, keys))
    else:
        order = np.argsort(keys)
    is_start = keys[order[1:]] != keys[order[:-1]]
    return members[order], np.concatenate([[0], np.flatnonzero(is_start) + 1, [len(members)]])


def _link(
    hashes_N: Hashes, parents_N: Places, order: Places, starts: Places, fixed: int, max_bits: int, num_new: int
) -> None:  # fmt: skip
    """Joins in `parents_N` the pairs of each bucket, whose hashes agree on `fixed`."""
    is_large = np.diff(starts) > SMALL
    _compare(hashes_N, parents_N, order, starts, is_large, max_bits, num_new)
    for n in np.flatnonzero(is_large):
        bucket = order[starts[n] : starts[n + 1]]
        splits = [(mask, *_buckets(hashes_N, bucket, fixed | mask, num_new)) for mask in bands(max_bits, fixed)]
        num_pairs = sum(_num_pairs(members < num_new, smaller) for _, members, smaller in splits)
        # Half of them or more: they agree on nearly all, and splitting would repeat the work.
        if not splits or num_pairs > _num_pairs(bucket < num_new, np.array([0, len(bucket)])) / 2:
            _compare(hashes_N, parents_N, bucket, np.array([0, len(bucket)]), np.array([False]), max_bits, num_new)
            continue
        for mask, members, smaller in splits:
            _link(hashes_N, parents_N, members, smaller, fixed | mask, max_bits, num_new)


def _num_pairs(is_new_N: npt.NDArray[np.bool_], starts: Places) -> int:
    """Comparisons within buckets, about: of each new one with all."""
    num_new = np.diff(np.concatenate([[0], np.cumsum(is_new_N)])[starts])
    return int((num_new * np.diff(starts)).sum())


@numba.njit(cache=True)
def num_bits(x):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Of 64 bits those that are set: the compiler has an instruction for this form."""
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (x * np.uint64(0x0101010101010101)) >> np.uint64(56)


@numba.njit(cache=True)
def _root(parents_N, n):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    while parents_N[n] != n:
        parents_N[n] = parents_N[parents_N[n]]
        n = parents_N[n]
    return n


@numba.njit(cache=True)
def _roots(parents_N):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return np.array([_root(parents_N, n) for n in range(len(parents_N))], dtype=np.int64)


@numba.njit(cache=True)
def _compare(hashes_N, parents_N, order, starts, is_large, max_bits, num_new):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """All pairs with a new one of each bucket that is not large."""
    for bucket in range(len(is_large)):
        if is_large[bucket]:
            continue
        for i in range(starts[bucket], starts[bucket + 1]):
            if order[i] >= num_new:  # and all after it
                break
            one = hashes_N[order[i]]
            for j in range(i + 1, starts[bucket + 1]):
                if num_bits(one ^ hashes_N[order[j]]) <= np.uint64(max_bits):
                    low, high = _root(parents_N, order[i]), _root(parents_N, order[j])
                    parents_N[max(low, high)] = min(low, high)
