"""Joins in which one value may be that of a third of all rows. Touches the frames that it is given."""

from __future__ import annotations

from typing import Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

MANY = 10_000
"""Rows of one value from which on they are not sent to one task. Of 10^9 rows at most 10^5 values have so many, and
these go to every task."""


def spread_join(
    rows: DataFrame, marks: DataFrame, on: str, heavy: DataFrame, how: Literal["inner", "left"] = "inner"
) -> DataFrame:
    """`rows` joined with `marks`, rows of heavy values where they lie: no task gets all rows of one value.

    Spark's own handling of skew begins at partitions of 256 MB, and splits no value within an aggregate's output.

    Args:
        rows: read twice: computed before, or cheap.
        marks: one row for each value of `on`; computed before, or cheap.
        on: a column of both.
        heavy: values of `on` that have more than MANY rows, each once, all of them in `marks`.
    """
    if heavy.isEmpty():
        return rows.join(marks, on=on, how=how)
    heavy = heavy.select(on)
    theirs = rows.join(F.broadcast(marks.join(F.broadcast(heavy), on=on, how="left_semi")), on=on, how="inner")
    others = rows.join(F.broadcast(heavy), on=on, how="left_anti").join(marks, on=on, how=how)
    return theirs.unionByName(others)
