"""Groups of duplicates from the values of rows: equal ones, or near ones too. Touches the frames that it is given.

Equal values are collapsed first, whatever is asked for: a value that a third of all rows have is one value to compare,
and its rows are marked where they lie.
"""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.components import components
from etl.skew import MANY, spread_join

Edges = Callable[[DataFrame], DataFrame]
"""Of (value, rep, num_rows, id), distinct values: (uid_a, uid_b), edges between reps."""


def equal_groups(rows: DataFrame) -> DataFrame:
    """(uid, group_uid, distance) of the rows whose value another row has. `rows`: (uid, value), no NULL."""
    shared = _collapsed(rows).where("num_rows > 1").withColumnRenamed("rep", "group_uid")
    return _members(rows, shared.withColumn("distance", F.lit(0.0)))


def near_groups(rows: DataFrame, edges: Edges, distance: Callable[[str, str], Column]) -> DataFrame:
    """The same, of rows that any chain of equal or near values joins.

    Args:
        rows: (uid, value), no NULL.
        edges: which values are near.
        distance: of two columns of values: of a row's and that of the pair that names its group. In a chain it can be
            more than what makes an edge.
    """
    # An id that may collide: who uses it verifies what it finds.
    values = _collapsed(rows).withColumn("id", F.xxhash64("value")).localCheckpoint()
    groups = components(edges(values)).withColumnRenamed("uid", "rep").localCheckpoint()
    named = values.join(groups, on="rep", how="left").where("num_rows > 1 OR group_uid IS NOT NULL")
    named = named.select("value", "num_rows", F.coalesce("group_uid", "rep").alias("group_uid")).localCheckpoint()
    sizes = named.groupBy("group_uid").agg(F.count(F.lit(1)).alias("size")).localCheckpoint()
    centres = values.select(F.col("rep").alias("group_uid"), F.col("value").alias("group_value"))
    named = spread_join(named, centres, "group_uid", sizes.where(F.col("size") > MANY))
    return _members(rows, named.withColumn("distance", distance("value", "group_value")))


def _collapsed(rows: DataFrame) -> DataFrame:
    """(value, rep, num_rows): the smallest uid stands for all rows of a value."""
    return rows.groupBy("value").agg(F.min("uid").alias("rep"), F.count(F.lit(1)).alias("num_rows"))


def _members(rows: DataFrame, named: DataFrame) -> DataFrame:
    """The rows of (value, num_rows, group_uid, distance)."""
    named = named.select("value", "num_rows", "group_uid", F.col("distance").cast("float")).localCheckpoint()
    joined = spread_join(rows, named.drop("num_rows"), "value", named.where(F.col("num_rows") > MANY))
    return joined.select("uid", "group_uid", "distance")
