"""Connected components of edges: who is in one group by any chain of links. Touches the frames that it is given.

Our own, since GraphFrames wants a jar that Connect has no API for. Many edges are contracted in rounds (Bögeholz, Brand
and Todor 2020, "In-database connected component analysis", arXiv 1802.09478: randomised contraction), each of which
leaves at most three quarters of the nodes, as expected over the draws; a chain of a thousand links takes about eight.
What is left, once it is few, is finished in one task by scipy. Groups follow from the edges alone, whatever was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from etl.dedup.skew import MANY, spread_join

FEW = 1_000_000
"""Edges that one task takes: about 200 MB in its Python worker."""
LABELLED = "uid string, label string"


def components(edges: DataFrame, *, few: int = FEW) -> DataFrame:
    """(uid, group_uid) of every uid that has an edge; group_uid is the smallest uid of its group.

    Runs jobs; collects nothing but counts. Edges of a uid with itself, or with NULL, are none.

    Args:
        edges: (uid_a, uid_b), in any direction, any number of times.
        few: of so many edges one task finds the groups.
    """
    edges = _proper(edges).localCheckpoint()
    rounds: list[DataFrame] = []
    while edges.limit(few + 1).count() > few:
        # The plan of a round must not hold those before it: each is computed once, and its lineage cut.
        rounds.append(_choices(edges, len(rounds)).localCheckpoint())
        edges = _contracted(edges, rounds[-1]).localCheckpoint()
    # Python: a graph is walked by no SQL.
    labels = edges.repartition(1).mapInArrow(in_one_task, LABELLED)
    if not rounds:
        return labels.withColumnRenamed("label", "group_uid")
    for choices in reversed(rounds):
        labels = _undone(choices, labels.localCheckpoint())
    return _by_smallest(labels.localCheckpoint())


def _proper(edges: DataFrame) -> DataFrame:
    """Each edge once, from the smaller to the larger uid."""
    ordered = edges.where("uid_a != uid_b").select(
        F.least("uid_a", "uid_b").alias("uid_a"), F.greatest("uid_a", "uid_b").alias("uid_b")
    )
    return ordered.distinct()


def _choices(edges: DataFrame, number: int) -> DataFrame:
    """(uid, chosen, num_edges): of itself and its neighbours each node chooses the first in this round's order."""

    def order(uid: str) -> Column:
        return F.xxhash64(F.col(uid), F.lit(number))

    both = edges.unionByName(edges.select(F.col("uid_b").alias("uid_a"), F.col("uid_a").alias("uid_b")))
    nodes = both.groupBy(F.col("uid_a").alias("uid")).agg(
        F.min_by("uid_b", order("uid_b")).alias("other"), F.min(order("uid_b")).alias("first"),
        F.count(F.lit(1)).alias("num_edges"),
    )  # fmt: skip
    chosen = F.when(F.col("first") < order("uid"), F.col("other")).otherwise(F.col("uid"))
    return nodes.select("uid", chosen.alias("chosen"), "num_edges")


def _contracted(edges: DataFrame, choices: DataFrame) -> DataFrame:
    """The edges between what their ends chose."""
    for end in ("uid_a", "uid_b"):
        ends = choices.select(F.col("uid").alias(end), "chosen", "num_edges")
        joined = spread_join(edges, ends.drop("num_edges"), end, ends.where(F.col("num_edges") > MANY))
        edges = joined.drop(end).withColumnRenamed("chosen", end)
    return _proper(edges)


def _undone(choices: DataFrame, labels: DataFrame) -> DataFrame:
    """(uid, label) before a contraction, from those after it. A node without edges after it is its own label."""
    of_chosen = labels.select(F.col("uid").alias("chosen"), "label")
    # No more than a node's neighbours, and itself, choose it. One that is left without edges has no label to spread.
    heavy = choices.where(F.col("num_edges") > MANY).select(F.col("uid").alias("chosen"))
    heavy = heavy.join(of_chosen, on="chosen", how="left_semi")
    joined = spread_join(choices, of_chosen, "chosen", heavy, how="left")
    return joined.select("uid", F.coalesce("label", "chosen").alias("label"))


def _by_smallest(labels: DataFrame) -> DataFrame:
    """(uid, group_uid) of (uid, label)."""
    sizes = labels.groupBy("label").agg(F.min("uid").alias("group_uid"), F.count(F.lit(1)).alias("size"))
    sizes = sizes.localCheckpoint()
    joined = spread_join(labels, sizes.drop("size"), "label", sizes.where(F.col("size") > MANY))
    return joined.select("uid", "group_uid")


def in_one_task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """All edges to (uid, label), the label being the smallest uid of the group."""
    frames = [batch.to_pandas() for batch in batches if len(batch)]
    if not frames:
        return
    edges = pd.concat(frames)
    # Sorted: the smallest number of a group is its smallest uid.
    numbers, uids = pd.factorize(np.concatenate([edges["uid_a"], edges["uid_b"]]), sort=True)
    ends_a, ends_b = np.split(numbers, 2)
    graph = coo_array((np.ones(len(ends_a), np.int8), (ends_a, ends_b)), shape=(len(uids), len(uids)))
    _, groups = connected_components(graph, directed=False)
    smallest = np.full(len(uids), len(uids))
    np.minimum.at(smallest, groups, np.arange(len(uids)))
    yield pa.record_batch([pa.array(uids), pa.array(uids[smallest[groups]])], names=["uid", "label"])
