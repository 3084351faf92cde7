"""The formats of lists: parquet, CSV, TSV, JSON lines. Reads files; no Spark, no network of its own.

A format is a class in FORMATS: the names of its columns, and their batches. Every one may be cut or damaged anywhere;
then the rows before the damage come, and one of DAMAGE is raised.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from etl.storage import open_ranges

BATCH_ROWS = 10_000
"""Rows handed on at a time: those before a damage are whole, and stay."""
MAX_LINE_CHARS = 16 << 20
DAMAGE = (OSError, EOFError, pa.ArrowException, ValueError, KeyError, RecursionError, csv.Error)
"""What a file that is not as it should be raises: cut, no parquet, a column of another type or there twice."""


class Rows(Protocol):
    """An opened list."""

    names: Sequence[str]

    def batches(self, columns: Iterable[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns, at most so many rows at a time."""


class ParquetRows:
    """Row group by row group, so that no more than one is held; of an object store the wanted columns, by range."""

    def __init__(self, file: IO[bytes]) -> None:
        # Columns that lie side by side come in one range.
        self.parquet = pq.ParquetFile(file, pre_buffer=True)
        self.names = self.parquet.schema_arrow.names

    def batches(
        self, columns: Iterable[str], num_rows: int = BATCH_ROWS, group: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """`group`: of this row group alone."""
        wanted = list(dict.fromkeys(columns))
        for number in range(self.parquet.num_row_groups) if group is None else (group,):
            yield from self.parquet.iter_batches(batch_size=num_rows, row_groups=[number], columns=wanted)


class CsvRows:
    """UTF-8 with a header. Quotes as Python's csv has them; a row of another length than the header is a damage."""

    delimiter = ","

    def __init__(self, file: IO[bytes]) -> None:
        self._rows = csv.reader(_lines(file), delimiter=self.delimiter, strict=True)
        self.names = next(self._rows, [])

    def batches(self, columns: Iterable[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        places = {name: self.names.index(name) for name in columns}
        while True:
            rows, damage = list[list[str]](), None
            try:
                for row in islice(self._rows, num_rows):
                    if row and len(row) != len(self.names):
                        raise ValueError(f"line {self._rows.line_num}: {len(row)} of {len(self.names)} columns")
                    rows += [row] if row else []
            except DAMAGE as error:
                damage = error
            if rows:
                found = {name: pa.array([row[at] or None for row in rows], pa.string()) for name, at in places.items()}
                yield pa.record_batch(found)
            if damage:
                raise damage
            if not rows:
                return


class TsvRows(CsvRows):
    delimiter = "\t"


class JsonRows:
    """An object a line. Columns are those of the first batch of lines; a row may lack some, and have more."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines = enumerate(_lines(file), start=1)
        self._first, self._damage = self._read(BATCH_ROWS)
        if self._damage and not self._first:
            raise self._damage
        self.names = list(dict.fromkeys(name for _, row in self._first for name in row))

    def _read(self, num_rows: int) -> tuple[list[tuple[int, dict[str, Any]]], Exception | None]:
        """Numbered rows, and what ended them."""
        rows = list[tuple[int, dict[str, Any]]]()
        try:
            for number, line in islice(self._lines, num_rows):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    rows.append((number, row))
        except DAMAGE as error:
            return rows, error
        return rows, None

    def batches(self, columns: Iterable[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        names, rows, damage = list(columns), self._first, self._damage
        while rows:
            for start in range(0, len(rows), num_rows):
                part = rows[start : start + num_rows]
                found = {name: pa.array([_plain(row.get(name), at) for at, row in part], pa.string()) for name in names}
                yield pa.record_batch(found)
            if damage:
                break
            rows, damage = self._read(num_rows)
        if damage:
            raise damage


def _plain(value: Any, line: int) -> str | None:
    """A JSON value as text; None of a string that UTF-8 cannot hold. Raises ValueError for one that is nested."""
    if isinstance(value, dict | list):
        raise ValueError(f"line {line}: wanted text; found a nested value")
    if value is None or (isinstance(value, str) and re.search("[\ud800-\udfff]", value)):
        return None
    return str(value)


def _lines(file: IO[bytes]) -> Iterator[str]:
    """Raises ValueError for a line above the cap, and for what is not UTF-8."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    while line := text.readline(MAX_LINE_CHARS):
        if len(line) == MAX_LINE_CHARS:
            raise ValueError(f"a line of more than {MAX_LINE_CHARS} characters")
        yield line


FORMATS: Mapping[str, type[Any]] = {
    "parquet": ParquetRows, "csv": CsvRows, "tsv": TsvRows, "jsonl": JsonRows, "ndjson": JsonRows,
}  # fmt: skip
"""Extension -> its `Rows`, made of an opened file. All but parquet may be packed: .gz, .bz2, .xz, .zst."""


def format_of(uri: str) -> str | None:
    """A key of FORMATS."""
    match = re.search(rf"\.({'|'.join(FORMATS)})(?:\.(?:gz|bz2|xz|zst))?$", uri, re.IGNORECASE)
    return match[1].lower() if match else None


@contextmanager
def open_rows(uri: str) -> Iterator[Rows]:
    """Raises some of DAMAGE."""
    kind = format_of(uri)
    if kind is None:
        raise ValueError(f"wanted a list ({', '.join(FORMATS)}); found {uri.rpartition('/')[2]}")
    with open_ranges(uri) if kind == "parquet" else fsspec.open(uri, "rb", compression="infer") as file:
        yield FORMATS[kind](file)
