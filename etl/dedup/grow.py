"""Groups of duplicates brought up to date when rows came: as from scratch, without comparing the pool with itself
again. Touches the frames that it is given.

Of the old pool each step reads (uid, value) once, without a shuffle where what came is few: the rows with a value that
came, the sort into bands, the rows that are near, members of groups that changed. Only pairs with a new value are
compared. What is written stays, but for groups that are joined or get another name. Where rows went, all is done anew:
see `Store.apart`.
"""

from __future__ import annotations

from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.dedup.components import components
from etl.dedup.groups import Distance, Edges, collapsed, with_id
from etl.dedup.skew import MANY, spread_join
from etl.stage import for_join


def grown_groups(
    earlier: DataFrame, added: DataFrame, written: DataFrame, edges: Edges | None, distance: Distance | None
) -> DataFrame:  # fmt: skip
    """(uid, group_uid, distance) of all rows, earlier and added.

    Args:
        earlier, added: (uid, value), no NULL; no uid in both.
        written: (uid, group_uid, distance), the groups of `earlier`.
        edges, distance: as for `near_groups`; None where only equal values are duplicates.
    """
    changed = regrouped(written, _links(earlier, added, edges)).localCheckpoint()
    kept = written.join(for_join(changed.select("uid")), on="uid", how="left_anti")
    if distance is None:
        return kept.unionByName(changed.withColumn("distance", F.lit(0.0).cast("float")))
    values = earlier.unionByName(added)
    members = values.join(for_join(changed), on="uid", how="inner").localCheckpoint()
    names = for_join(changed.select(F.col("group_uid").alias("uid")).distinct())
    centres = values.join(names, on="uid", how="left_semi").toDF("group_uid", "group_value").localCheckpoint()
    heavy = changed.groupBy("group_uid").count().where(F.col("count") > MANY)
    both = spread_join(members, centres, "group_uid", heavy)
    apart = distance("value", "group_value").cast("float").alias("distance")
    return kept.unionByName(both.select("uid", "group_uid", apart))


def _links(earlier: DataFrame, added: DataFrame, edges: Edges | None) -> DataFrame:
    """(uid_a, uid_b): of each added row to one with its value, and between rows whose values are near."""
    values = collapsed(added).localCheckpoint()
    known = earlier.join(for_join(values.select("value")), on="value", how="left_semi")
    known = collapsed(known).select("value", F.col("rep").alias("uid_b")).localCheckpoint()
    copies = spread_join(added, values.select("value", "rep"), "value", values.where(F.col("num_rows") > MANY))
    found = [copies.select("uid", "rep"), values.join(known, on="value", how="inner").select("rep", "uid_b")]
    if edges:
        fresh = values.join(known, on="value", how="left_anti")
        old = earlier.select("value", F.col("uid").alias("rep"))
        found.append(edges(with_id(fresh, is_new=True).unionByName(with_id(old, is_new=False))))
    return reduce(DataFrame.union, found).toDF("uid_a", "uid_b").localCheckpoint()


def regrouped(written: DataFrame, links: DataFrame) -> DataFrame:
    """(uid, group_uid) of every uid whose group is another than in `written`, when links (uid_a, uid_b) join more.

    A group that is touched is a link of one member to the one that it is named after: its others go where that goes.
    """
    ends = links.where("uid_a != uid_b")
    ends = ends.select(F.col("uid_a").alias("uid")).union(ends.select("uid_b")).distinct()
    ties = written.join(for_join(ends), on="uid", how="left_semi").select("uid", "group_uid").localCheckpoint()
    labels = components(links.unionByName(ties.toDF("uid_a", "uid_b"))).localCheckpoint()
    renamed = labels.where("uid != group_uid").toDF("group_uid", "new_name")
    touched = ties.select("group_uid").distinct()
    renamed = renamed.join(touched, on="group_uid", how="left_semi")
    moved = written.join(for_join(renamed), on="group_uid", how="inner").select(
        "uid", F.col("new_name").alias("group_uid")
    )
    grouped = ties.select("uid").union(touched)
    return moved.unionByName(labels.join(grouped, on="uid", how="left_anti"))
