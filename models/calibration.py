"""How many edited copies a threshold finds, and how many other pictures it flags: what `dfn evalset calibrate` tells.

numpy; touches nothing. Dimensions: N pictures, M evaluation pictures, B of N at a time, D features, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from models.encoder import Encoder
from models.images import inspect
from models.looks import OF_VECTOR, joint_distances
from models.near import distances

METHODS = ("phash", "semantic", "semantic_phash")
"""Bits of the perceptual hash, 1 - cosine, and both as `models/looks.py` joins them."""
ANY = "any"
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Of the pool's pictures: what thresholds that flag so many would find."""
BLOCK_ROWS = 256

Distances = Mapping[str, Any]
"""Method -> an array."""


class Looks(NamedTuple):
    """What the methods see of N pictures."""

    vectors_ND: Any
    """float16, as they are stored."""
    hashes_N: Any
    """uint64."""


class Cost(NamedTuple):
    """A threshold of one method alone."""

    method: str
    threshold: float
    flags: float
    """Of the pool's pictures, 0 to 1."""
    finds: float
    """Mean recall over all edits."""


def look(files: Sequence[bytes], encoder: Encoder) -> Looks:
    """As ingest and embed look at them. Raises ImageError."""
    hashes_N = np.array([inspect(data).phash for data in files], np.int64).view(np.uint64)
    starts = range(0, len(files), BLOCK_ROWS)  # pixels of a few at a time
    vectors = [
        encoder.encode_images([encoder.preprocess(data) for data in files[start : start + BLOCK_ROWS]])
        for start in starts
    ]
    return Looks(np.concatenate(vectors).astype("<f2"), hashes_N)


def of_pairs(left: Looks, right: Looks, i_P: Any, j_P: Any) -> Distances:
    """Of pairs of pictures, as the stages have them."""
    bits_P = np.bitwise_count(left.hashes_N[i_P] ^ right.hashes_N[j_P])
    apart_P = distances(left.vectors_ND, right.vectors_ND, i_P, j_P)
    return dict(zip(METHODS, (bits_P, apart_P, joint_distances(left, right, i_P, j_P)), strict=True))


def of_copies(made: Looks, originals: Looks, edited: Sequence[Looks] = ()) -> Distances:
    """Of each of N pictures to the original that it was made of, or to the closest of that one's edited copies.

    `edited`: those copies, N for each edit. As in the stages, a hash by itself is held against originals alone.
    """
    places = np.arange(len(made.hashes_N))
    found = [of_pairs(made, one, places, places) for one in (originals, *edited)]
    return {METHODS[0]: found[0][METHODS[0]]} | {m: np.minimum.reduce([one[m] for one in found]) for m in METHODS[1:]}


def to_closest(ours: Looks, theirs: Looks, is_edited_M: Any = None) -> tuple[Distances, Any]:
    """Distances of each of N pictures to the closest of M by each method; which of M is closest by both together.

    `is_edited_M`: which are edited copies. As in the stages, a hash by itself is held against the others alone.
    """
    ours_ND, theirs_MD = (_units(side.vectors_ND) for side in (ours, theirs))
    is_picture_M = np.full(len(theirs_MD), True) if is_edited_M is None else ~is_edited_M
    least, nearest = [], []
    for start in range(0, len(ours_ND), BLOCK_ROWS):
        some = slice(start, start + BLOCK_ROWS)
        bits_BM = np.bitwise_count(ours.hashes_N[some, None] ^ theirs.hashes_N[None])
        apart_BM = np.maximum(np.round(1 - ours_ND[some] @ theirs_MD.T, 6), 0)
        joint_BM = OF_VECTOR * apart_BM + (1 - OF_VECTOR) * bits_BM / 32
        least.append([side_BM.min(axis=1) for side_BM in (bits_BM[:, is_picture_M], apart_BM, joint_BM)])
        nearest.append(joint_BM.argmin(axis=1))
    return dict(zip(METHODS, map(np.concatenate, zip(*least, strict=True)), strict=True)), np.concatenate(nearest)


def _units(vectors_ND: Any) -> Any:
    units_ND = vectors_ND.astype(np.float32)
    return units_ND / np.maximum(np.linalg.norm(units_ND, axis=1, keepdims=True), 1e-12)


def flagged(found: Distances, limits: Mapping[str, float]) -> dict[str, Any]:
    """Method -> which pictures it flags, none by a method without a limit; `any`: those that one of them flags."""
    by = {method: found[method] <= limits.get(method, -1.0) for method in METHODS}
    return by | {ANY: np.logical_or.reduce(list(by.values()))}


def shares(found: Distances, limits: Mapping[str, float]) -> dict[str, float]:
    """Method or `any` -> the share of pictures that it flags."""
    return {method: float(is_flagged.mean()) for method, is_flagged in flagged(found, limits).items()}


def costs(copies: Sequence[Distances], pool: Distances) -> list[Cost]:
    """The largest thresholds of each method that flag at most each of SHARES: whole bits, and hundredths.

    `copies`: of each edit, the pictures to their own originals. `pool`: to the closest original.
    """
    found: dict[tuple[str, float], Cost] = {}
    for method in METHODS:
        for share in SHARES:
            limit = largest_threshold(pool[method], share, is_whole=method == "phash")
            finds = float(np.mean([(edited[method] <= limit).mean() for edited in copies]))
            if limit >= 0:
                found[method, limit] = Cost(method, limit, float((pool[method] <= limit).mean()), finds)
    return list(found.values())


def largest_threshold(least_N: Any, share: float, *, is_whole: bool) -> float:
    """That flags at most a share of N pictures, by the distance of each to the closest: whole, or in hundredths.

    Below 0: even 0 flags more.
    """
    steps, in_order = 1 if is_whole else 100, np.sort(least_N)
    first_too_many = float(in_order[min(int(share * len(in_order)), len(in_order) - 1)])
    return (math.ceil(round(first_too_many * steps, 4)) - 1) / steps
