"""Many small keys shuffled as few rows: each task sorts its keys into parts, and a part is found in one place again.

Spark spends about a microsecond on a row that it shuffles; dedup has a row for each band of each hash. So a row here is
the keys that one task has for one part, as bytes. Touches the frames that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import tasks

Numbers = npt.NDArray[np.uint64]
Scatter = Callable[[pa.Table], Iterator[tuple[int, Numbers]]]
"""Rows -> (part, values_CN): N entries of C numbers each, copied before the next is asked for."""
Find = Callable[[int, Numbers, int], tuple[Numbers, Numbers]]
"""(part, values_CN of all rows, how many of them, at the start, are new) -> links (from, to), each with a new end."""
SCATTER_ROWS = 200_000
"""Rows that a task sorts into parts at a time."""
PART_ENTRIES = 2_000_000
"""Entries of a part, about: 16 to 32 MB, and as much again to sort them."""
PARTS_PER_TASK = 8
PARTS = "part int, is_new boolean, num_columns int, entries binary"
LINKS = "id_a bigint, id_b bigint"


def slices(num_rows: int) -> int:
    """Into how many parts a band of so many rows is cut."""
    return -(-num_rows // PART_ENTRIES) or 1


def scattered(rows: DataFrame, scatter: Scatter) -> DataFrame:
    """(part, is_new, num_columns, entries): what `scatter` makes of the rows. `rows`: with a column is_new."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table in _tables(batches):
            for is_new, some in _by_age(table):
                made = [(part, is_new, len(values_CN), values_CN.tobytes()) for part, values_CN in scatter(some)]
                columns = zip(*made, strict=True) if made else ((),) * 4
                kinds = (pa.int32(), pa.bool_(), pa.int32(), pa.binary())
                yield pa.record_batch([pa.array(c, k) for c, k in zip(columns, kinds, strict=True)],
                                      names=["part", "is_new", "num_columns", "entries"])  # fmt: skip

    # Python: bytes are sorted by numpy, a hundred times as fast as rows.
    return rows.mapInArrow(run, PARTS)


def links_within_parts(entries: DataFrame, find: Find, num_parts: int) -> DataFrame:
    """(id_a, id_b): what `find` finds in each part of what was scattered.

    A task holds one part at a time, and the parts are spread by a hash of their number.
    """
    num_tasks = max(tasks(None, entries), -(-num_parts // PARTS_PER_TASK))
    placed = entries.repartition(num_tasks, "part").sortWithinPartitions("part", F.desc("is_new"))
    # Python: candidates are compared by a kernel over arrays.
    return placed.mapInArrow(_found(find), LINKS)


def _by_age(table: pa.Table) -> Iterator[tuple[bool, pa.Table]]:
    """(is_new, the rows that are so), of one chunk each."""
    is_new = table.column("is_new").to_numpy()
    for age in (True, False):
        if (is_new == age).all():
            yield age, table
        elif (is_new == age).any():
            yield age, table.filter(pa.array(is_new == age)).combine_chunks()


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches put together to SCATTER_ROWS rows or more."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if not len(batch):
            continue
        waiting.append(batch)
        if sum(map(len, waiting)) >= SCATTER_ROWS:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _found(find: Find) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for part, rows in groupby(_rows(batches), key=lambda row: row["part"]):
            pieces = [(row["is_new"], np.frombuffer(row["entries"], np.uint64).reshape(row["num_columns"], -1))
                      for row in rows]  # fmt: skip
            num_new = sum(piece.shape[1] for is_new, piece in pieces if is_new)
            if not num_new:
                continue
            ends = find(part, np.concatenate([piece for _, piece in pieces], axis=1), num_new)
            yield pa.record_batch([pa.array(end.view(np.int64)) for end in ends], names=["id_a", "id_b"])

    return run


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()
