"""Tables of others as lists of pairs: their data files are the inputs, so that of an append the new rows are taken.

`table:NAME`, by catalog or path, with the version that a run pinned (`table:NAME@7`). Reads them through the store.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from etl import store
from etl.intake.lists import lacking, rename
from etl.stage import UserError

TABLE = "table:"
TABLE_NAME = re.compile(r"table:([\w-]+(\.[\w-]+){0,2}|[^`@]*/[^`@]*)(@\d+)?")
GROUP = "table"
"""Of all files of a table: they are read in one go, for Delta reads the whole table to give the rows of a few files."""
TYPES = {"image": "binary", "width_px": "int", "height_px": "int"}
"""What else is a string."""


def is_table(source: str | None) -> bool:
    return bool(source) and str(source).startswith(TABLE)


def pin_table(spark: SparkSession, table: str) -> str:
    """The table at its newest version, or at the one that its name has. Raises UserError."""
    return TABLE + store.pin_table(spark, table.removeprefix(TABLE))


def list_table(pinned: str) -> list[tuple[str, int | None, str]]:
    """(uri, size_bytes, etag) of the data files of a version; a file of a table never changes."""
    spark = SparkSession.getActiveSession()
    if spark is None:
        raise RuntimeError("a table is listed where there is a session")
    return sorted((uri, None, "") for uri in store.read_pinned(spark, pinned.removeprefix(TABLE)).inputFiles())


def table_rows(
    files: DataFrame, pinned: str, columns: Mapping[str, str], kinds: Collection[str], needs: Sequence[Collection[str]]
) -> DataFrame:
    """(uri, start, and the columns of these kinds) of the rows in some data files. Raises UserError.

    `start`: of the block of its file that a row is read in. Nothing is shuffled, so that `numbered` can count.
    """
    rows = store.read_pinned(files.sparkSession, pinned.removeprefix(TABLE))
    named = {kind: name for kind, name in rename(rows.columns, columns).items() if kind in kinds}
    if why := lacking(named, rows.columns, columns, needs):
        raise UserError(f"{pinned}: {why}; fix: columns, in the dataset's config")
    types = dict(rows.dtypes)
    if "image" in named and not re.match(r"binary|struct<.*\bbytes:binary", types[named["image"]]):
        raise UserError(f"{pinned}: wanted an image column of type BINARY; found {types[named['image']]}; fix: columns")
    by_name = F.broadcast(files.select("uri", _file_name("uri").alias("_file_name")))
    placed = rows.select(
        "*", F.col("_metadata.file_name").alias("_file_name"), F.col("_metadata.file_block_start").alias("start")
    )
    what = [_column(name, kind, types[name]).alias(kind) for kind, name in named.items()]
    return placed.join(by_name, on="_file_name", how="inner").select("uri", "start", *what)


def numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """`number` in place of `start`: the place of a row in its file. A block has fewer rows than bytes."""
    seen = Counter[tuple[str, int]]()
    for batch in batches:
        numbers = list[int]()
        for place in zip(batch.column("uri").to_pylist(), batch.column("start").to_pylist(), strict=True):
            numbers.append(place[1] + seen[place])
            seen[place] += 1
        yield batch.drop_columns(["start"]).append_column("number", pa.array(numbers, pa.int64()))


def _column(name: str, kind: str, type_: str) -> Column:
    if kind == "image" and type_.startswith("struct"):  # as Hugging Face's datasets have it: {bytes, path}
        return F.col(f"`{name}`.bytes")
    return F.col(f"`{name}`").cast(TYPES.get(kind, "string"))


def _file_name(uri: str) -> Column:
    return F.regexp_extract(uri, "([^/]*)$", 1)
