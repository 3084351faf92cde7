"""Metadata of pairs without their pixels (DataComp, LAION, img2dataset), column by column: no row passes through Python
by itself.

Of a parquet file on an object store the footer and the wanted columns are read, each by range. What else is published
with it (vectors, scores, boxes) is read by place, or by column, beside uids made as ingest makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import pyarrow as pa
import pyarrow.compute as pc

from etl.intake.list_formats import DAMAGE, ParquetRows
from etl.intake.lists import given_uids, reason_of, rename, scan_list, uids_of, values
from etl.shards import ShardSummary
from etl.statuses import WAITS
from etl.storage import open_ranges

KINDS = ("uid", "url", "text", "sha256", "width_px", "height_px")


def scan_metadata(
    uri: str, *, columns: Mapping[str, str], source_default: str
) -> Iterator[pa.RecordBatch | ShardSummary]:
    """Batches of uid, url, text, source, status and what else the list has of `pairs`; then its summary, always."""
    for item in scan_list(uri, columns=columns, kinds=KINDS, needs=[("text", "url")]):
        if isinstance(item, ShardSummary):
            yield item
            continue
        found = {name: item.column(name) for name in item.schema.names}
        found |= {"uid": uids_of(found, len(item)), "source": pa.repeat(source_default, len(item))}
        yield pa.record_batch(found | {"status": pa.repeat(WAITS, len(item))})


def scan_captions(uri: str, *, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """(uid, given_text, given_url) of one list in its order, as far as it can be read; nothing where it has no uid."""
    for item in scan_list(uri, columns=columns, kinds=("uid", "text", "url"), needs=[("uid",)]):
        if not isinstance(item, ShardSummary):  # `scan_metadata` says what is wrong in the ledger
            found = {name: item.column(name) for name in item.schema.names}
            absent = pa.nulls(len(item), pa.string())
            given = {f"given_{kind}": found.get(kind, absent) for kind in ("text", "url")}
            yield pa.record_batch({"uid": found["uid"], **given})


def scan_uids(uri: str, *, columns: Mapping[str, str]) -> tuple[pa.Array, str | None]:
    """The uids of a parquet file in its order, as `scan_metadata` makes them, and why there are no more of them."""
    uids: list[pa.Array] = []
    damage = None
    try:
        with _opened(uri) as rows:
            uids += [made for made, _ in _with_uids(rows, columns)]
    except DAMAGE as error:
        damage = reason_of(error)
    return pa.concat_arrays([pa.array([], pa.string()), *uids]), damage


def scan_column(
    uri: str, column: str, kind: pa.DataType, *, columns: Mapping[str, str]
) -> Iterator[tuple[pa.Array, pa.Array]]:
    """(uids, values of a column as `kind`) of a parquet file in its order, as far as both can be read.

    Nothing where the file has no such column, or one of another type. Uids are those of `scan_metadata`.
    """
    with suppress(*DAMAGE), _opened(uri) as rows:  # what is damaged is in the ledger of ingest
        if column in rows.names:
            for uids, batch in _with_uids(rows, columns, (column,)):
                yield uids, batch.column(column).cast(kind, safe=False)


@contextmanager
def _opened(uri: str) -> Iterator[ParquetRows]:
    with open_ranges(uri) as file:
        yield ParquetRows(file)


def _with_uids(
    rows: ParquetRows, columns: Mapping[str, str], more: tuple[str, ...] = ()
) -> Iterator[tuple[pa.Array, pa.RecordBatch]]:
    """Uids, and the batch that they are of. Captions are read of a row group only in which a row has no uid."""
    named = rename(rows.names, columns)
    wanted = {kind: named[kind] for kind in ("uid", "url", "text") if kind in named}
    for group in range(rows.parquet.num_row_groups):
        num_done, lacks = 0, "uid" not in named
        for batch in () if lacks else rows.batches((named["uid"], *more), group=group):
            uids, is_one = given_uids(values(batch.column(named["uid"]), "uid"))
            if lacks := not pc.all(is_one, min_count=0).as_py():
                break
            num_done += 1
            yield uids, batch
        for number, batch in enumerate(rows.batches((*wanted.values(), *more), group=group) if lacks else ()):
            if number >= num_done:
                found = {str(kind): values(batch.column(column), kind) for kind, column in wanted.items()}
                yield uids_of(found, len(batch)), batch
