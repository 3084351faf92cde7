"""What ranks the pairs of a pool: filters by the functions of the score stage, and rivals. No Spark; touches nothing.

Dimensions: N pairs of the pool, G good pairs.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from etl.evidence.pools import BANNER_RATIO, TINY_PX, Pool
from etl.evidence.selecting import draw
from models import formulas
from models.data import Indices, Vectors
from models.filters import Filter
from models.fit import linear_probe
from models.formulas import Formula
from models.records import FilterRecord, VectorsRecord

Scores = NDArray[np.float32]
AT_ONCE = 4096
"""Pairs scored together: a multiple of the filters' blocks, so that bits do not depend on it."""
BATCHES, BATCH_PAIRS = 5, 1024
"""Of reference pairs, for s-CLIPLoss."""
FILE_NAME = re.compile(r"\.\w{3,4}$|\d{4,}|^[\d\W_]+$")
"""A caption that is a file's name, holds a long number, or has no letter."""
BOILERPLATE_TIMES = 10
CONFIDENT = 0.5


def by_filter(filter_: Filter, vectors: Vectors) -> Scores:
    """The filter's score of each pair, shape N; NaN where a vector is unusable."""
    blocks = [np.arange(start, min(start + AT_ONCE, len(vectors))) for start in range(0, len(vectors), AT_ONCE)]
    return np.concatenate([filter_.score(vectors.images(rows), vectors.texts(rows)) for rows in blocks])


def heuristics(facts: pd.DataFrame, pool: Pool) -> Scores:
    """1 where nothing speaks against a pair, else 0. What speaks against one: a caption of fewer than 3 characters,
    that is a file's name or a number, that ten pairs or more share, or that is confidently of another language than
    English; a picture of less than 32 px or longer than 4 times its width.

    `facts`: of the stock's rows; see `etl.evidence.base`.
    """
    texts, pictures = facts.iloc[pool.texts_N], facts.iloc[pool.images_N]
    captions = texts["text"].str.strip()
    times = Counter(captions.str.casefold())
    is_foreign = (texts["language"] != "en") & (texts["language_confidence"] >= CONFIDENT)
    sides = pictures[["width_px", "height_px"]]
    shorter, longer = sides.min(axis=1).to_numpy(), sides.max(axis=1).to_numpy()
    against = [
        captions.str.len().to_numpy() < 3,
        captions.str.contains(FILE_NAME).to_numpy(),
        np.array([times[caption.casefold()] >= BOILERPLATE_TIMES for caption in captions]),
        is_foreign.to_numpy(),
        shorter < TINY_PX,
        longer > BANNER_RATIO * shorter,
    ]
    passes_N: Scores = (~np.any(against, axis=0)).astype(np.float32)
    return passes_N


def binary(record: VectorsRecord, good: Vectors, vectors: Vectors, reads: Any, seed: int) -> Scores:
    """A linear probe on the encoder's own unit vectors: good pairs against as many of the pool."""
    space = own_space(record)
    other = vectors.take(drawn(vectors, len(good), seed))
    sides = [[space.project_images(v.image_NI), space.project_texts(v.text_NT)] for v in (good, other)]
    features = [side[0] if reads == "image" else np.concatenate(side, axis=1) for side in sides]
    weight_D, bias = linear_probe(*features)
    return by_filter(Filter(space.record, None, formulas.Binary(weight_D, bias, reads)), vectors)


def s_clip_loss(base: Filter, vectors: Vectors, seed: int, *, temperature: float = 0.01) -> Scores:
    """`models.formulas.SClipLoss` in the space of a filter, against reference pairs of the pool."""
    size = min(BATCH_PAIRS, len(vectors) // BATCHES)
    rows, shape = drawn(vectors, size * BATCHES, seed), (BATCHES, size)
    images_MI, texts_MT = vectors.images(rows), vectors.texts(rows)
    formula = formulas.SClipLoss(
        base.project_images(images_MI).reshape(*shape, -1), base.project_texts(texts_MT).reshape(*shape, -1),
        formulas.pair_keys(images_MI, texts_MT).reshape(shape), temperature,
    )  # fmt: skip
    return by_filter(_with(base, formula), vectors)


def norm_sim(base: Filter, good: Vectors, vectors: Vectors) -> Scores:
    """`models.formulas.NormSimInf` in the space of a filter: how like the nearest good image."""
    return by_filter(_with(base, formulas.NormSimInf(base.project_images(good.image_NI))), vectors)


def fused(first_N: Scores, second_N: Scores) -> Scores:
    """The mean of both places by rank, as the stage `fusion` has it: (pairs below + half of the equals) / pairs."""
    places = [(stats.rankdata(scores_N) - 0.5) / len(scores_N) for scores_N in (first_N, second_N)]
    means_N: Scores = np.mean(places, axis=0).astype(np.float32)
    return means_N


def drawn(vectors: Vectors, number: int, seed: int) -> Indices:
    """Rising positions of the pairs with the smallest hash of seed and uid; all, where there are fewer."""
    return np.sort(np.argsort(draw(vectors.uids_u8, seed), kind="stable")[:number])


def own_space(record: VectorsRecord) -> Filter:
    """The encoder's own vectors, without heads."""
    made = FilterRecord(name="own", encoder_name=record.name, encoder_version=record.version,
                        image_dim=record.image_dim, text_dim=record.text_dim, embed_dim=None,
                        weights_sha256=None)  # fmt: skip
    return Filter(made, None)


def _with(base: Filter, formula: Formula) -> Filter:
    return Filter(base.record, base.heads, formula)
