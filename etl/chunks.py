"""What is committed together and what is left to do: functions of the rows alone. Reads frames, writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.stage import content_hash, fold_hash
from etl.statuses import WAITS

WITHOUT_PIXELS = (WAITS, "no_vectors")
"""What stages write of rows whose pixels have not come. It holds until they do."""
IS_OUTDATED = f"(_said = '{WAITS}' AND status != '{WAITS}' OR _said = 'no_vectors' AND status = 'ok')"
"""A SQL condition: what a stage said by its status no longer holds for a row that has this status now."""


@dataclass(frozen=True)
class Chunk:
    """Rows committed together: whole groups (shards, files) of the driving input, a function of the input only."""

    id: str
    groups: tuple[str, ...]
    num_rows: int


def group_of(frame: DataFrame) -> Column:
    """What a chunk never splits: a shard, a file, or the rows whose uid starts alike."""
    if "chunk_group" in frame.columns:
        return F.col("chunk_group")
    if "shard" in frame.columns:
        return F.coalesce(F.col("shard"), F.concat(F.lit("uid "), F.substring("uid", 1, 2)))
    return F.substring("uid", 1, 2)


def grouped(frame: DataFrame, row_key: str) -> DataFrame:
    """`frame` with `_group`, and `_name`: what a row is to its chunk. That is its key, or another while it waits."""
    name = F.col(row_key)
    if "status" in frame.columns:
        name = F.when(F.col("status") == WAITS, F.concat(name, F.lit(f" {WAITS}"))).otherwise(name)
    return frame.withColumn("_group", group_of(frame)).withColumn("_name", name)


def plan(rows: DataFrame, chunk_rows: int) -> list[Chunk]:
    """Chunks of about `chunk_rows` grouped rows: groups in order of name, so that a growing pool keeps its earlier
    chunks."""
    sizes = _sizes(rows).orderBy("_group").collect()
    chunks: list[Chunk] = []
    part: list[Any] = []
    for row in sizes:
        if part and sum(r["n"] for r in part) + row["n"] > chunk_rows:
            chunks.append(_chunk(part))
            part = []
        part.append(row)
    return [*chunks, _chunk(part)] if part else chunks


def _chunk(part: list[Any]) -> Chunk:
    content = fold_hash(sum(int(r["hash_high"]) for r in part), sum(int(r["hash_low"]) for r in part))
    return Chunk(content, tuple(r["_group"] for r in part), sum(r["n"] for r in part))


def left(rows: DataFrame, written: DataFrame, row_key: str, chunks: list[Chunk]) -> dict[str, tuple[str, int]]:
    """chunk id -> (content hash, number) of its grouped rows that are not yet written."""
    of_group = {group: chunk.id for chunk in chunks for group in chunk.groups}
    wanted = rows.where(F.col("_group").isin(list(of_group)))
    found: dict[str, list[Any]] = {}
    for row in _sizes(unwritten(wanted, written, row_key)).collect():
        found.setdefault(of_group[row["_group"]], []).append(row)
    return {id_: (_chunk(some).id, _chunk(some).num_rows) for id_, some in found.items()}


def _sizes(rows: DataFrame) -> DataFrame:
    return rows.groupBy("_group").agg(F.count(F.lit(1)).alias("n"), *content_hash("_name"))


def unwritten(rows: DataFrame, written: DataFrame, row_key: str) -> DataFrame:
    """`rows` of which nothing stands written, or only what was said before their pixels came."""
    if not can_wait(rows, written):
        return rows.join(written.select(row_key), row_key, "left_anti")
    said = written.select(F.col(row_key).alias("_key"), F.col("status").alias("_said"))
    return rows.join(said, F.expr(f"{row_key} = _key AND NOT {IS_OUTDATED}"), "left_anti")


def outdated(rows: DataFrame, written: DataFrame, row_key: str) -> DataFrame:
    """Of `written`, what was said of `rows` before their pixels came; its status is called `_said`."""
    said = written.withColumnRenamed("status", "_said")
    now = rows.select(F.col(row_key).alias("_key"), "status")
    return said.join(now, F.expr(f"{row_key} = _key AND {IS_OUTDATED}"), "left_semi")


def can_wait(rows: DataFrame, written: DataFrame) -> bool:
    return "status" in rows.columns and "status" in written.columns
