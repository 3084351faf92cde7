"""Which pairs a page shows, and their pictures. Reads tables and ranges of shards; a bounded number of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.config import folder_of
from etl.project import Project
from etl.report.pictures import PairShown, thumbnail
from etl.report.subject import Subject
from etl.selection.judging import draw
from etl.shards import RangeReader, ShardError
from etl.tables import PAIRS

SHOWN = 10
"""Pairs of a group."""
SIZE_PX = 192
MAX_SOURCE_BYTES = 32 << 20
"""A picture that is larger is not read for a page."""
TEXT_SHOWN = 1000
"""Characters of a caption that come to the driver; a page shows fewer."""


@dataclass(frozen=True)
class Group:
    """Pairs to take from `frame` (uid, score): the first `SHOWN` in an order."""

    frame: DataFrame
    order: Sequence[Column]
    skip: int = 0
    limit: int = SHOWN


def groups_of(subject: Subject) -> dict[str, Group]:
    """Top, around the cut, just below it, bottom and random, of a selection that scores ranked; else random ones."""
    safe = subject.judged.where("NOT is_flagged").select("uid", F.col("rank").alias("score"), "verdict", "is_kept")
    kept, left = safe.where("is_kept"), safe.where("NOT is_kept AND verdict IN ('eligible', 'not_known')")
    high, low, lot = F.col("score").desc(), F.col("score"), draw(0)
    found: dict[str, Group] = {}
    if subject.ranking:
        ranked = left.where("score IS NOT NULL")
        found["top"] = Group(kept, (high, F.col("uid")))
        found["last to be kept"] = Group(kept, (low, F.col("uid").desc()), limit=SHOWN // 2)
        found["first to be left out"] = Group(ranked, (high, F.col("uid")), limit=SHOWN // 2)
        found["just below the threshold"] = Group(ranked, (high, F.col("uid")), skip=SHOWN // 2)
        found["bottom"] = Group(ranked, (low, F.col("uid")))
    found["random, of those kept"] = Group(kept, (lot, F.col("uid")))
    if not subject.ranking:
        found["random, of those left out"] = Group(left, (lot, F.col("uid")))
    return found


def shown(project: Project, pool: str, groups: Mapping[str, Group]) -> dict[str, list[PairShown]]:
    """Group -> its pairs with thumbnails, by score. All come by one query: at most `SHOWN` rows a group.

    `frame` of a group holds no pair that is flagged: this looks at nothing but its order.
    """
    if not groups:
        return {}
    taken = [
        group.frame.orderBy(*group.order).offset(group.skip).limit(group.limit)
        .select(F.lit(name).alias("group"), "uid", F.col("score").cast("double").alias("score"))
        for name, group in groups.items()
    ]  # fmt: skip
    pairs = project.store.read(pool, PAIRS).select(
        "uid", F.left("text", F.lit(TEXT_SHOWN)).alias("text"), "shard", "offset_bytes", "size_bytes"
    )
    rows = pairs.join(F.broadcast(reduce(DataFrame.unionAll, taken)), on="uid", how="inner").collect()
    rows = sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0.0), row["uid"]))
    truth, found = project.truth(pool), dict[str, list[PairShown]]()
    pictures = _pictures(project, pool, rows)
    for name in groups:
        found[name] = [
            PairShown(r["uid"], r["text"] or "", r["score"], pictures.get(r["uid"]), truth.get(r["uid"]))
            for r in rows
            if r["group"] == name
        ]
    return found


def _pictures(project: Project, pool: str, rows: Sequence[Any]) -> dict[str, bytes | None]:
    """uid -> its thumbnail; None where it cannot be made."""
    shards = project.sources[pool].shards
    root, found = folder_of(shards) if shards else "", dict[str, bytes | None]()
    wanted = {row["uid"]: row for row in rows if row["shard"] and row["size_bytes"] <= MAX_SOURCE_BYTES}
    with RangeReader() as reader:
        for uid, row in sorted(wanted.items(), key=lambda item: (item[1]["shard"], item[1]["offset_bytes"])):
            try:
                data = reader.read(f"{root}/{row['shard']}", row["offset_bytes"], row["size_bytes"])
            except ShardError:
                continue
            found[uid] = thumbnail(data, SIZE_PX)
    return found
