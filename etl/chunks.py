"""What is committed together and what is left to do: functions of the rows alone. Reads frames, writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.stage import content_hash, fold_hash


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


def plan(grouped: DataFrame, row_key: str, chunk_rows: int) -> list[Chunk]:
    """Chunks of about `chunk_rows` rows: groups in order of name, so that a growing pool keeps its earlier chunks."""
    sizes = (
        grouped.groupBy("_group").agg(F.count(F.lit(1)).alias("n"), *content_hash(row_key)).orderBy("_group").collect()
    )
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


def left(grouped: DataFrame, written: DataFrame, row_key: str, chunks: list[Chunk]) -> dict[str, tuple[str, int]]:
    """chunk id -> (content hash, number) of its rows that are not yet written."""
    of_group = {group: chunk.id for chunk in chunks for group in chunk.groups}
    wanted = grouped.where(F.col("_group").isin(list(of_group)))
    missing = wanted.join(written.select(row_key), row_key, "left_anti")
    found: dict[str, list[Any]] = {}
    for row in missing.groupBy("_group").agg(F.count(F.lit(1)).alias("n"), *content_hash(row_key)).collect():
        found.setdefault(of_group[row["_group"]], []).append(row)
    return {id_: (_chunk(rows).id, _chunk(rows).num_rows) for id_, rows in found.items()}
