"""Which shard each repeat of each pair goes to: dealt like cards, in the order of a hash of the uid. Touches nothing.

All samples stand in one line: pairs by md5(uid), the repeats of a pair side by side. The sample at position p goes to
shard p * stride mod N, N shards, with a stride that shares no factor with N. So any N positions in a row meet every
shard once, from which follows, exactly:

- shards differ by at most one sample;
- the repeats of a pair are in different shards, and only where a pair has more than N of them in some twice: then the
  numbers of its repeats differ by at most one between shards;
- where a sample is follows from the uids and their repeats alone, whatever partitions and order.

Every shard is a random sample of the selection, so its bytes vary as a mean of independent sizes does: by the standard
deviation of one image's size over the square root of the samples in a shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, count
from math import gcd
from typing import Any, TypeVar

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from etl.stage import content_hash, fold_hash

T = TypeVar("T")
PREFIX_DIGITS = 4
"""Of the hash, in hex: the line is cut into 65,536 parts, which are sorted apart; their sizes fit on the driver."""
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Line:
    """How long the line of all samples is, and where in it each part begins."""

    num_samples: int
    content: str
    """Names the samples: an order-free hash of uids, repeats and sha256 of the images."""
    starts: pa.Table
    """prefix (of the hash), start (position of the first sample of that part)."""


def shard_at(position: Any, num_shards: int) -> Any:
    """The shard of a sample, from its position in the line: both ints, numpy arrays or Spark columns."""
    return position % num_shards * stride(num_shards) % num_shards


def stride(num_shards: int) -> int:
    """About .618 of the shards, so that repeats stand far apart, and without a factor in common with them."""
    return next(step for step in count(max(1, round(GOLDEN * num_shards))) if gcd(step, num_shards) == 1)


def apart(groups: Sequence[Sequence[T]]) -> list[T]:
    """All members of all groups, no two of one group side by side, where no group has more than half of them.

    The largest group first into every other place, the rest after it, then into the places between.
    """
    ordered = [member for group in sorted(groups, key=len, reverse=True) for member in group]
    found = ordered.copy()
    half = -(-len(ordered) // 2)
    found[0::2], found[1::2] = ordered[:half], ordered[half:]
    return found


def line_of(samples: DataFrame) -> Line:
    """`samples`: (uid, num_repeats, sha256). One pass; no sort, and no more than 65,536 rows reach the driver."""
    sums = [F.sum("num_repeats").alias("size"), *content_hash("uid", "num_repeats", "sha256")]
    parts = samples.groupBy(_prefix().alias("prefix")).agg(*sums).toArrow().sort_by("prefix")
    ends = list(accumulate(parts["size"].to_pylist(), initial=0))
    halves = (sum(parts[half].to_pylist(), Decimal(0)) for half in ("hash_high", "hash_low"))
    starts = pa.table({"prefix": parts["prefix"], "start": pa.array(ends[:-1], pa.int64())})
    return Line(ends[-1], fold_hash(*halves), starts)


def dealt(samples: DataFrame, line: Line, num_shards: int) -> DataFrame:
    """`samples` with a row for each repeat: + `number` of its shard, + `repeat`, from 0.

    Every part of the line is sorted by itself, wherever it is.
    """
    starts = samples.sparkSession.createDataFrame(line.starts)
    before = Window.partitionBy("prefix").orderBy("order", "uid").rowsBetween(Window.unboundedPreceding, -1)
    first = F.col("start") + F.coalesce(F.sum("num_repeats").over(before), F.lit(0))
    repeat = F.explode(F.sequence(F.lit(0), F.col("num_repeats") - 1))
    hashed = samples.withColumns({"order": F.md5("uid"), "prefix": _prefix()})
    placed = hashed.join(F.broadcast(starts), on="prefix", how="inner").withColumn("first", first)
    number = shard_at(F.col("first") + F.col("repeat"), num_shards)
    repeated = placed.select(*samples.columns, "first", repeat.alias("repeat"))
    return repeated.select(*samples.columns, "repeat", number.alias("number"))


def _prefix() -> Column:
    return F.substring(F.md5("uid"), 1, PREFIX_DIGITS)
