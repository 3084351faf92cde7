"""Which values are near one another: perceptual hashes by bits, captions by shingles. Touches the frames it is given.

Both give edges between values by bands: near values agree on a band, so only those that share one are compared, and of
those only pairs of which at least one is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.dedup.parts import Numbers, links_within_parts, sliced, slices
from etl.stage import for_join, series_udf

Places = npt.NDArray[np.int64]
IsClose = Callable[[Places, Places], npt.NDArray[np.bool_]]
"""Of pairs of entries, by their places: whether they are worth a look at the values themselves."""
ALL_PAIRS = 100
"""Captions of a bucket that are compared all with all. Of a larger one each is compared with the smallest id and with
the ALL_PAIRS next ones by id, so that a template of a million captions costs linear work. What is not compared in this
bucket can be missed, unless another band that the two share is smaller: a cap on recall, within large buckets only."""


def phash_links(values: DataFrame, max_bits: int) -> DataFrame:
    """(id_a, id_b): links that join just what pairs within `max_bits` bits join; every such pair with a new one counts.

    `values`: (value, is_new), 64-bit hashes, computed before, or cheap; the new ones are distinct, and no old ones.
    """
    num_slices = slices(values.count())

    def scatter(rows: pa.Table) -> Iterator[tuple[int, Numbers]]:
        from models import hamming  # numba: where executors run

        hashes_N = rows.column("value").to_numpy().view(np.uint64)
        for band, mask in enumerate(hamming.bands(max_bits)):
            for number, members in _by_slice(sliced(hashes_N & np.uint64(mask), num_slices)):
                yield band * num_slices + number, hashes_N[None, members]

    def find(part: int, hashes_1N: Numbers, num_new: int) -> tuple[Numbers, Numbers]:
        from models import hamming

        distinct = np.concatenate([hashes_1N[0, :num_new], np.unique(hashes_1N[0, num_new:])])
        return hamming.forest(distinct, max_bits, hamming.bands(max_bits)[part // num_slices], num_new)

    return links_within_parts(values.select("value", "is_new"), scatter, find, (max_bits + 1) * num_slices)


def phash_edges(values: DataFrame, max_bits: int) -> DataFrame:
    """(uid_a, uid_b) of hashes (value, rep, is_new) that pairs within `max_bits` bits join."""
    edges = phash_links(values, max_bits).localCheckpoint()
    reps = _linked(values.select(F.col("value").alias("id"), "rep"), edges).localCheckpoint()
    for end in ("a", "b"):
        edges = edges.join(reps.toDF(f"id_{end}", f"uid_{end}"), on=f"id_{end}", how="inner")
    return edges.select("uid_a", "uid_b")


def _linked(values: DataFrame, links: DataFrame) -> DataFrame:
    """The values (id, ..., rep) that links (id_a, id_b) name, each once: of rows that share one the smallest rep."""
    ids = links.select(F.col("id_a").alias("id")).union(links.select("id_b")).distinct()
    named = values.join(for_join(ids), on="id", how="left_semi")
    return named.groupBy(*[c for c in values.columns if c != "rep"]).agg(F.min("rep").alias("rep"))


def caption_pairs(values: DataFrame, min_jaccard: float) -> DataFrame:
    """(id_a, id_b): candidates, those that share a band, are compared (see ALL_PAIRS), and whose sketches are close.

    `values`: (value, id, is_new): captions, computed before, or cheap; ids may collide, since candidates are verified.
    """
    num_slices = slices(values.count())

    def scatter(rows: pa.Table) -> Iterator[tuple[int, Numbers]]:
        from models import minhash  # numba: where executors run

        texts_N, ids_N = rows.column("value").chunk(0), rows.column("id").to_numpy().view(np.uint64)
        keys_NB, sketches_NW, is_some_N = minhash.band_keys(texts_N, minhash.banding(min_jaccard))
        same_CN = np.column_stack([ids_N, sketches_NW])[is_some_N].T.copy()
        for band, keys_N in enumerate(np.ascontiguousarray(keys_NB[is_some_N].T)):
            for number, members in _by_slice(sliced(keys_N, num_slices)):
                yield band * num_slices + number, np.vstack([keys_N[members], same_CN[:, members]])

    def find(part: int, entries_CN: Numbers, num_new: int) -> tuple[Numbers, Numbers]:
        from models import minhash

        keys_N, ids_N, *sketches_WN = entries_CN
        most = minhash.NUM_HASHES - minhash.min_bits(min_jaccard)

        def is_close(firsts: Places, seconds: Places) -> npt.NDArray[np.bool_]:
            differing = sum(np.bitwise_count(word_N[firsts] ^ word_N[seconds]) for word_N in sketches_WN)
            return np.asarray(differing) <= most

        return bucket_pairs(keys_N, ids_N, num_new, is_close)

    num_bands = _num_bands(min_jaccard)
    return links_within_parts(values.select("value", "id", "is_new"), scatter, find, num_bands * num_slices).distinct()


def _num_bands(min_jaccard: float) -> int:
    from models import minhash

    return minhash.banding(min_jaccard).num_bands


def _by_slice(slices_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(slice, places of its members)."""
    order = np.argsort(slices_N.astype(np.uint16), kind="stable")  # so few bits are sorted without comparing
    numbers, starts = np.unique(slices_N[order], return_index=True)
    yield from zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)


def bucket_pairs(keys_N: Numbers, ids_N: Numbers, num_new: int, is_close: IsClose) -> tuple[Numbers, Numbers]:
    """Pairs of ids of entries with one key that are close, one of which at least is among the first `num_new`; of large
    buckets those that ALL_PAIRS says."""
    if not len(keys_N):
        return ids_N, ids_N
    order = np.argsort(keys_N)
    is_repeat = keys_N[order][1:] == keys_N[order][:-1]
    order = order[np.concatenate([is_repeat, [False]]) | np.concatenate([[False], is_repeat])]  # few are left
    if num_new < len(keys_N):
        order = order[np.isin(keys_N[order], keys_N[order[order < num_new]])]
    order = order[np.lexsort((order, ids_N[order], keys_N[order]))]
    is_again = (keys_N[order][1:] == keys_N[order][:-1]) & (ids_N[order][1:] == ids_N[order][:-1])
    order = order[np.concatenate([[True], ~is_again])[: len(order)]]  # rows of the old pool may share a caption
    keys_N = keys_N[order]
    is_start = np.concatenate([[True], keys_N[1:] != keys_N[:-1]])[: len(keys_N)]
    places = np.arange(len(keys_N)) - np.flatnonzero(is_start)[np.cumsum(is_start) - 1]
    found: list[tuple[Places, Places]] = []

    def look_at(firsts: Places, seconds: Places) -> None:
        firsts, seconds = order[firsts], order[seconds]
        is_pair = ((firsts < num_new) | (seconds < num_new)) & is_close(firsts, seconds)
        found.append((firsts[is_pair], seconds[is_pair]))

    far = np.flatnonzero(places > ALL_PAIRS)
    look_at(far - places[far], far)  # with the smallest of the bucket
    for step in range(1, min(ALL_PAIRS, places.max(initial=0)) + 1):
        later = np.flatnonzero(places >= step)
        look_at(later - step, later)
    firsts, seconds = (np.concatenate(ends) for ends in zip(*found, strict=True))
    return ids_N[firsts], ids_N[seconds]


def caption_edges(values: DataFrame, min_jaccard: float) -> DataFrame:
    """(uid_a, uid_b) of captions (value, rep, id, is_new), those of the candidates with at least `min_jaccard`."""
    pairs = caption_pairs(values, min_jaccard).localCheckpoint()
    members = _linked(values.select("id", "value", "rep"), pairs).localCheckpoint()
    for end in ("a", "b"):
        pairs = pairs.join(members.toDF(f"id_{end}", f"value_{end}", f"uid_{end}"), on=f"id_{end}", how="inner")
    # Compared with a margin, since the limit's binary form can be above the ratio that is meant.
    is_near = jaccard("value_a", "value_b") >= min_jaccard - 1e-9
    return pairs.where(is_near).select("uid_a", "uid_b")


def jaccard(one: str, other: str) -> Column:
    """Of two columns of captions: shared shingles over all of both, double."""

    def compared(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        from models import minhash

        for texts_N, others_N in batches:
            yield pd.Series(minhash.jaccard(pa.array(texts_N, pa.string()), pa.array(others_N, pa.string())))

    # Python: SQL would build two arrays of strings for each pair.
    return series_udf(compared, "double")(F.col(one), F.col(other))
