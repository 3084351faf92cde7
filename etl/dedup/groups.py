"""Groups of duplicates from the values of rows: equal ones, or near ones too. Touches the frames that it is given.

Equal values are collapsed first, whatever is asked for: a value that a third of all rows have is one value to compare,
and its rows are marked where they lie.
"""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.dedup.components import components
from etl.dedup.skew import MANY, spread_join
from etl.stage import for_join

Edges = Callable[[DataFrame], DataFrame]
"""Of (value, rep, id, is_new): (uid_a, uid_b), edges between reps of which one is new. `id`: 64 bits of the value, that
may collide: who uses it verifies what it finds."""

Distance = Callable[[str, str], Column]
"""Of two columns of values."""


def equal_groups(rows: DataFrame) -> DataFrame:
    """(uid, group_uid, distance) of the rows whose value another row has. `rows`: (uid, value), no NULL."""
    shared = collapsed(rows).where("num_rows > 1").withColumn("group_uid", F.col("rep"))
    return _members(rows, shared.withColumn("distance", F.lit(0.0)))


def near_groups(rows: DataFrame, edges: Edges, distance: Distance) -> DataFrame:
    """The same, of rows that any chain of equal or near values joins.

    Args:
        rows: (uid, value), no NULL.
        edges: which values are near.
        distance: of a row's value and that of the pair that names its group. In a chain it can be
            more than what makes an edge.
    """
    values = collapsed(rows).localCheckpoint()
    groups = components(edges(with_id(values, is_new=True))).withColumnRenamed("uid", "rep").localCheckpoint()
    named = values.join(groups, on="rep", how="left").where("num_rows > 1 OR group_uid IS NOT NULL")
    named = named.withColumn("group_uid", F.coalesce("group_uid", "rep")).localCheckpoint()
    sizes = named.groupBy("group_uid").agg(F.count(F.lit(1)).alias("size")).localCheckpoint()
    is_centre = F.col("rep") == F.col("group_uid")  # its own, and the only one whose distance nobody has to measure
    centres = named.where(is_centre).select("group_uid", F.col("value").alias("group_value"))
    others = spread_join(named.where(~is_centre), centres, "group_uid", sizes.where(F.col("size") > MANY))
    others = others.withColumn("distance", distance("value", "group_value")).drop("group_value")
    return _members(rows, others.unionByName(named.where(is_centre).withColumn("distance", F.lit(0.0))))


def with_id(values: DataFrame, *, is_new: bool) -> DataFrame:
    """(value, rep) as `Edges` wants them."""
    return values.select("value", "rep", F.xxhash64("value").alias("id"), F.lit(is_new).alias("is_new"))


def collapsed(rows: DataFrame) -> DataFrame:
    """(value, rep, num_rows): the smallest uid stands for all rows of a value."""
    return rows.groupBy("value").agg(F.min("uid").alias("rep"), F.count(F.lit(1)).alias("num_rows"))


def _members(rows: DataFrame, named: DataFrame) -> DataFrame:
    """The rows of (value, rep, num_rows, group_uid, distance): a value of one row is that of its rep."""
    named = named.withColumn("distance", F.col("distance").cast("float")).localCheckpoint()
    several = for_join(named.where("num_rows > 1").select("value", "num_rows", "group_uid", "distance"))
    joined = spread_join(rows, several.drop("num_rows"), "value", several.where(F.col("num_rows") > MANY))
    single = named.where("num_rows = 1").withColumnRenamed("rep", "uid")
    return joined.select("uid", "group_uid", "distance").unionByName(single.select("uid", "group_uid", "distance"))
