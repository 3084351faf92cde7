"""Lists of uids as DataComp and DFN publish selections: sorted `.npy` of dtype `u8,u8`. Written and read by executors.

The folder must be one that executors and driver both see. Touches that folder; a repeat is a uid that comes again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from etl.shard_writer import Sink, publish, temporary_name
from etl.stage import UserError
from etl.store import Store
from etl.tables import SELECTIONS
from models.data import UID_DTYPE, read_uids

LIST_ROWS = 1 << 20
"""Uids of a list that a task reads, or sorts and writes, at a time: 16 MB."""


class UidList(NamedTuple):
    """A published list."""

    num_entries: int
    size_bytes: int
    sha256: str


def uid_list(store: Store, dataset: str, selection_id: str, path: Path, *, rows_per_part: int = LIST_ROWS) -> UidList:
    """A selection as DataComp publishes one: sorted, each pair as often as it is repeated.

    Executors sort a range of uids each and write it; the driver joins the parts as a stream of bytes, and holds a row
    for each. Counted, and scanned twice however long: once to find the ranges.
    """
    chosen = store.read(dataset, SELECTIONS, where={"selection_id": selection_id})
    uids = chosen.select(F.unhex("uid").alias("uid"), "num_repeats")
    path.parent.mkdir(parents=True, exist_ok=True)
    num_parts = max(1, -(-chosen.count() // rows_per_part))
    ranges = uids.repartitionByRange(num_parts, "uid").sortWithinPartitions("uid")
    write = _part_writer(str(path))
    # Python: npy is numpy's format.
    parts = ranges.mapInArrow(write, "temporary string, first binary, num_entries bigint").collect()
    ordered = [path.parent / row["temporary"] for row in sorted(parts, key=lambda row: bytes(row["first"]))]
    made = _joined(path, ordered, sum(row["num_entries"] for row in parts))
    for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # the parts, and what other attempts left behind
        left_over.unlink()
    return made


def _part_writer(path: str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        name, first, size = temporary_name(Path(path).name), None, 0
        with (Path(path).parent / name).open("wb") as file:
            for batch in (batch for batch in batches if batch.num_rows):
                joined = b"".join(batch.column("uid").to_pylist())
                halves = np.frombuffer(joined, ">u8").reshape(-1, 2)
                first = first or joined[:16]
                repeated = np.repeat(halves, batch.column("num_repeats").to_numpy(), axis=0)
                file.write(repeated.astype("<u8").tobytes())
                size += len(repeated)
        if first is not None:
            yield pa.record_batch({"temporary": [name], "first": [first], "num_entries": [size]})

    return write


def _joined(path: Path, parts: list[Path], size: int) -> UidList:
    """The parts after one header, under the final name."""
    temporary = path.parent / temporary_name(path.name)
    with temporary.open("wb") as file:
        sink = Sink(file)
        header = {"descr": np.lib.format.dtype_to_descr(UID_DTYPE), "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(sink, header)
        for part in parts:
            with part.open("rb") as data:
                shutil.copyfileobj(data, sink, 1 << 20)
    publish(str(path.parent), temporary.name, path.name)
    return UidList(size, sink.size_bytes, sink.sha256.hexdigest())


def num_entries(path: Path, option: str) -> int:
    """Of the list at `path`. Raises UserError, which names the `option` that gave it, for what is no such list."""
    try:
        return len(read_uids(path))
    except ValueError as error:
        raise UserError(f"{option}: {error}; fix: name a list of dtype u8,u8") from None


def read_list(spark: SparkSession, path: Path, option: str = "--against") -> DataFrame:
    """(uid, num_repeats) of a list, read by executors in ranges. Raises UserError, as `num_entries`."""
    blocks = spark.range(max(1, -(-num_entries(path, option) // LIST_ROWS)))
    # Python: npy is numpy's format.
    uids = blocks.mapInArrow(_list_reader(str(path.absolute())), "uid binary")
    counted = uids.groupBy("uid").agg(F.count(F.lit(1)).cast("int").alias("num_repeats"))
    return counted.select(F.lower(F.hex("uid")).alias("uid"), "num_repeats")


def _list_reader(path: str) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        listed = read_uids(Path(path))
        for number in (n for batch in batches for n in batch.column("id").to_pylist()):
            block = listed[number * LIST_ROWS : (number + 1) * LIST_ROWS]
            data = np.ascontiguousarray(block).view("<u8").astype(">u8").tobytes()
            uids = pa.Array.from_buffers(pa.binary(16), len(block), [None, pa.py_buffer(data)])
            yield pa.record_batch({"uid": uids.cast(pa.binary())})

    return read
