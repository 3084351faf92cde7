"""Image-text pairs where they lie: pointers into tar shards, memory-mapped, and any pair's bytes by its number.

A pointer file is Arrow IPC, one row a pair:

    uid (binary of 16), shard (string: a path or fsspec URL), offset_bytes, size_bytes (int64), sha256 (binary of 32, of
    the image; NULL: not checked), text (string)

Two ways to get one: `etl` writes it from a selection, over the pool's own shards and without an export;
`models.exported` writes it from exported shards, once their every byte has been held against the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from models.data import UID_DTYPE, Indices, Uids

MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [("uid", pa.binary(16)), ("shard", pa.string()), ("offset_bytes", pa.int64()), ("size_bytes", pa.int64()),
     ("sha256", pa.binary(32)), ("text", pa.string())]
)  # fmt: skip


class DataError(Exception):
    """Training data that is not what it is said to be; says where, and how to mend it."""


class Pointer(NamedTuple):
    """A pair: where its image is, and its caption."""

    uid: str
    shard: str
    offset_bytes: int
    size_bytes: int
    sha256: bytes | None
    text: str

    def read(self) -> bytes:
        """The image's bytes, by one ranged request.

        Raises:
            DataError: the shard cannot be read, or ends before.
        """
        files, path = url_to_fs(self.shard)
        try:
            data: bytes = files.cat_file(path, start=self.offset_bytes, end=self.offset_bytes + self.size_bytes)
        except OSError as error:
            raise DataError(f"wanted {self.shard}; found {type(error).__name__}; fix: give the shards back") from error
        if len(data) != self.size_bytes:
            raise DataError(
                f"wanted {self.size_bytes} bytes at {self.offset_bytes} of {self.shard}; found {len(data)}; "
                "fix: the shard was cut: give it back whole"
            )
        return data


class Pairs:
    """Pointers ordered by uid, whatever their order in the files; a uid that is there twice is two samples."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self._batches = batches
        self._starts = np.cumsum([0] + [len(batch) for batch in batches[:-1]])
        uids_N = np.concatenate([_uids(batch) for batch in batches])
        self._rows_N: Indices = np.lexsort((uids_N["f1"], uids_N["f0"]))

    @classmethod
    def open(cls, path: Path) -> Self:
        """A pointer file, or a folder of `part-*.arrow` with the manifest that says how many rows they hold.

        Raises:
            DataError: no such file, no rows, other columns, or other rows than the manifest says.
        """
        parts = sorted(path.glob("part-*.arrow")) if path.is_dir() else [path]
        try:
            batches = [batch for part in parts for batch in _mapped(part) if len(batch)]
            wanted = json.loads((path / MANIFEST).read_bytes())["num_rows"] if path.is_dir() else None
        except (OSError, ValueError, KeyError) as error:  # pyarrow's are ValueErrors
            raise DataError(f"wanted pointers in {path}; found {type(error).__name__}: {error}") from None
        num_rows = sum(len(batch) for batch in batches)
        if not num_rows or (wanted is not None and num_rows != wanted):
            raise DataError(
                f"wanted {wanted or 'some'} pairs in {path}; found {num_rows}; fix: write the pointers again"
            )
        return cls(batches)

    def __len__(self) -> int:
        return len(self._rows_N)

    def __getitem__(self, number: int) -> Pointer:
        row = self._rows_N[number]
        i = int(np.searchsorted(self._starts, row, side="right") - 1)
        values = [column[int(row - self._starts[i])].as_py() for column in self._batches[i].columns]
        return Pointer(values[0].hex(), *values[1:])

    @property
    def content(self) -> str:
        """What names the samples, wherever their shards are: 16 hex digits over uids, offsets and sizes in order."""
        digest = hashlib.sha256()
        digest.update(np.concatenate([_uids(batch) for batch in self._batches])[self._rows_N].tobytes())
        for name in ("offset_bytes", "size_bytes"):
            values_N = np.concatenate([batch.column(name).to_numpy() for batch in self._batches])
            digest.update(values_N[self._rows_N].tobytes())
        return digest.hexdigest()[:16]


def _mapped(part: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(part)) as source:
        table = pa.ipc.open_file(source).read_all()
    if table.schema != SCHEMA:
        raise ValueError(f"wanted columns {SCHEMA.names}; found {table.schema.names}")
    yield from table.to_batches()


def _uids(batch: pa.RecordBatch) -> Uids:
    """dtype UID_DTYPE, a copy: the file has them as bytes, highest first."""
    uids = batch.column("uid")
    digits: NDArray[np.uint64] = np.frombuffer(uids.buffers()[1], ">u8", 2 * len(uids), 16 * uids.offset)
    return digits.astype("<u8").view(UID_DTYPE)


def write_pointers(path: Path, columns: Mapping[str, Any]) -> None:
    """One pointer file. `columns`: those of SCHEMA, each a sequence of the same length."""
    write_tables(path, [pa.table(dict(columns), schema=SCHEMA)])


def write_tables(path: Path, tables: Iterable[pa.Table]) -> int:
    """A pointer file of tables with SCHEMA, one of them in memory at a time. Returns the number of rows."""
    num_rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
            num_rows += len(table)
    return num_rows
