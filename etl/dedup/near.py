"""Which values are near one another: perceptual hashes by bits, captions by shingles. Touches the frames it is given.

Both give edges between values by bands: near values agree on a band, so only those that share one are compared, and of
those only pairs of which at least one is new.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.dedup.parts import Numbers, links_within_parts, scattered, slices
from etl.stage import for_join, series_udf


def phash_links(values: DataFrame, max_bits: int) -> DataFrame:
    """(id_a, id_b): links that join just what pairs within `max_bits` bits join; every such pair with a new one counts.

    `values`: (value, is_new), 64-bit hashes, computed before, or cheap; the new ones are distinct, and no old ones.
    """
    num_slices = slices(values.count())

    def scatter(rows: pa.Table) -> Iterator[tuple[int, Numbers]]:
        from models import buckets, hamming  # numba: where executors run

        hashes_N = rows.column("value").to_numpy().view(np.uint64)
        for band, mask in enumerate(hamming.bands(max_bits)):
            for number, entries_1N in buckets.into_slices(hashes_N & np.uint64(mask), hashes_N[None], num_slices):
                yield band * num_slices + number, entries_1N

    def find(part: int, hashes_1N: Numbers, num_new: int) -> tuple[Numbers, Numbers]:
        from models import hamming

        old_N = np.sort(hashes_1N[0, num_new:])  # numpy's own `unique` counts by a table, in ten times the time
        distinct = np.concatenate([hashes_1N[0, :num_new], old_N[:1], old_N[1:][old_N[1:] != old_N[:-1]]])
        return hamming.forest(distinct, max_bits, hamming.bands(max_bits)[part // num_slices], num_new)

    entries = scattered(values.select("value", "is_new"), scatter)
    return links_within_parts(entries, find, (max_bits + 1) * num_slices)


def phash_edges(values: DataFrame, max_bits: int) -> DataFrame:
    """(uid_a, uid_b) of hashes (value, rep, is_new) that pairs within `max_bits` bits join."""
    edges = phash_links(values, max_bits).localCheckpoint()
    return _with_ends(edges, values.select(F.col("value").alias("id"), "rep", "is_new")).select("uid_a", "uid_b")


def _with_ends(links: DataFrame, values: DataFrame) -> DataFrame:
    """Links (id_a, id_b) with what `values` (id, rep, is_new, ...) hold of both ends, the rep as uid; each old value
    once, by the smallest rep of the rows that share it. Both are computed before, or cheap."""
    members, old = (values.where(is_new).drop("is_new") for is_new in ("is_new", "NOT is_new"))
    if not old.isEmpty():
        ids = links.select(F.col("id_a").alias("id")).union(links.select("id_b")).distinct()
        linked = old.join(for_join(ids), on="id", how="left_semi")
        linked = linked.groupBy(*[c for c in old.columns if c != "rep"]).agg(F.min("rep").alias("rep"))
        members = members.unionByName(linked.localCheckpoint())
    members = members.withColumnRenamed("rep", "uid")
    for end in ("a", "b"):
        links = links.join(members.toDF(*[f"{c}_{end}" for c in members.columns]), on=f"id_{end}", how="inner")
    return links


def caption_pairs(values: DataFrame, min_jaccard: float) -> DataFrame:
    """(id_a, id_b): candidates, those that share a band, are compared (see `models/buckets.py`), and whose sketches are
    close.

    `values`: (value, id, is_new): captions, computed before, or cheap; ids may collide, since candidates are verified.
    """

    def find(part: int, entries_CN: Numbers, num_new: int) -> tuple[Numbers, Numbers]:
        from models import buckets, minhash

        return buckets.close_pairs(entries_CN, num_new, minhash.NUM_HASHES - minhash.min_bits(min_jaccard))

    num_slices = slices(values.count())
    entries = caption_entries(values, min_jaccard, num_slices)
    return links_within_parts(entries, find, _num_bands(min_jaccard) * num_slices).distinct()


def caption_entries(values: DataFrame, min_jaccard: float, num_slices: int) -> DataFrame:
    """Keys, ids and sketches of captions (value, id, is_new), for each slice of each band together: see `scattered`."""

    def scatter(rows: pa.Table) -> Iterator[tuple[int, Numbers]]:
        from models import buckets, minhash  # numba: where executors run

        keys_NB, sketches_NW, is_some_N = minhash.band_keys(rows.column("value").chunk(0), minhash.banding(min_jaccard))
        ids_N = rows.column("id").to_numpy().view(np.uint64)
        entries_CN = np.vstack([ids_N, ids_N, sketches_NW.T])[:, is_some_N]
        for band, keys_N in enumerate(np.ascontiguousarray(keys_NB[is_some_N].T)):
            entries_CN[0] = keys_N
            for number, entries_Cn in buckets.into_slices(keys_N, entries_CN, num_slices):
                yield band * num_slices + number, entries_Cn

    return scattered(values.select("value", "id", "is_new"), scatter)


def _num_bands(min_jaccard: float) -> int:
    from models import minhash

    return minhash.banding(min_jaccard).num_bands


def caption_edges(values: DataFrame, min_jaccard: float) -> DataFrame:
    """(uid_a, uid_b) of captions (value, rep, id, is_new), those of the candidates with at least `min_jaccard`."""

    def near(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from models import minhash

        for batch in batches:
            # Compared with a margin, since the limit's binary form can be above the ratio that is meant.
            is_near = minhash.jaccard(batch["value_a"], batch["value_b"]) >= min_jaccard - 1e-9
            yield batch.select(["uid_a", "uid_b"]).filter(pa.array(is_near))

    pairs = caption_pairs(values, min_jaccard).localCheckpoint()
    ends = _with_ends(pairs, values.select("id", "value", "rep", "is_new"))
    # Python: SQL would build two arrays of strings for each pair.
    return ends.select("value_a", "value_b", "uid_a", "uid_b").mapInArrow(near, "uid_a string, uid_b string")


def jaccard(one: str, other: str) -> Column:
    """Of two columns of captions: shared shingles over all of both, double."""

    def compared(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        from models import minhash

        for texts_N, others_N in batches:
            yield pd.Series(minhash.jaccard(pa.array(texts_N, pa.string()), pa.array(others_N, pa.string())))

    # Python: SQL would build two arrays of strings for each pair.
    return series_udf(compared, "double")(F.col(one), F.col(other))
