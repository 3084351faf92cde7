"""Planted noise: the pairs of the base pool under a seed, with images and captions of other rows. No Spark.

A pair keeps its uid. Nothing that ranks or trains sees what was planted: the truth is a file beside, of which precision
is computed and nothing else.

Dimensions: N pairs of the pool, M rows of the stock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from etl.evidence.config import PoolConfig
from models.data import Indices

TINY_PX, BANNER_RATIO, SCREENSHOT_PX = 32, 4.0, 300
DOCUMENTATION = "documentation"


@dataclass(frozen=True)
class Banks:
    """Rows of the stock that pools are made of; indices in uid order."""

    pool_N: Indices
    boilerplate: Indices
    foreign: Indices
    pictures: tuple[Indices, ...]
    """Blank, tiny, banner, screenshot."""

    @staticmethod
    def of(facts: pd.DataFrame, base: str) -> Banks:
        """`facts`: of the stock, in uid order."""
        is_pool = facts["dataset"] == base
        is_page = is_pool & (facts["source"] == DOCUMENTATION)
        shorter, longer = facts[["width_px", "height_px"]].min(axis=1), facts[["width_px", "height_px"]].max(axis=1)
        masks = [
            facts["source"].str.startswith("noise_"),
            is_page & (shorter < TINY_PX),
            is_page & (longer >= BANNER_RATIO * shorter) & (shorter >= TINY_PX),
            is_page & (shorter >= SCREENSHOT_PX) & (longer < BANNER_RATIO * shorter),
        ]
        kinds = [facts["source"] == f"noise_{name}" for name in ("boilerplate", "foreign")]
        boilerplate, foreign = (np.flatnonzero(mask) for mask in kinds)
        return Banks(np.flatnonzero(is_pool), boilerplate, foreign, tuple(np.flatnonzero(mask) for mask in masks))


@dataclass(frozen=True)
class Pool:
    """The pool under one seed."""

    rows_N: Indices
    """Of the stock, rising: whose uid the pair has."""
    images_N: Indices
    texts_N: Indices
    """Rows of the stock whose image and caption it has."""

    def __len__(self) -> int:
        return len(self.rows_N)


def noise(config: PoolConfig, banks: Banks, seed: int) -> tuple[Pool, NDArray[Any]]:
    """The pool with exactly round(share x N) pairs of each kind of noise, and the kind of each pair ('' for none).

    Raises:
        ValueError: a kind whose bank is empty.
    """
    rows_N = banks.pool_N
    generator, num_pairs = np.random.default_rng([seed, 1]), len(rows_N)
    order_N = generator.permutation(num_pairs)
    images_N, texts_N, kinds_N = rows_N.copy(), rows_N.copy(), np.full(num_pairs, "", "U12")
    start = 0
    for kind, share in config.shares.items():
        chosen = np.sort(order_N[start : start + round(share * num_pairs)])
        start += len(chosen)
        kinds_N[chosen] = kind
        if kind == "permuted":
            shuffled = generator.permutation(chosen)
            texts_N[shuffled] = rows_N[np.roll(shuffled, 1)]
        elif kind == "pictures":
            for part, bank in zip(np.array_split(generator.permutation(chosen), 4), banks.pictures, strict=True):
                images_N[part] = _drawn(bank, len(part), kind, generator)
        else:
            bank = banks.boilerplate if kind == "boilerplate" else banks.foreign
            texts_N[chosen] = _drawn(bank, len(chosen), kind, generator)
    return Pool(rows_N, images_N, texts_N), kinds_N


def _drawn(bank: Indices, number: int, kind: str, generator: np.random.Generator) -> Indices:
    if not len(bank):
        raise ValueError(f"wanted rows for noise of kind {kind}; found none; fix: another pool, or evidence.noise")
    return generator.choice(bank, size=number)


def truth(pool: Pool, kinds_N: NDArray[Any], captions: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pairs are as they were: those without noise, and those that were given an equal caption.

    Args:
        captions: of the stock's rows.
    """
    is_equal_N = (captions[pool.texts_N] == captions[pool.rows_N]) & (pool.images_N == pool.rows_N)
    return np.asarray((kinds_N == "") | is_equal_N)
