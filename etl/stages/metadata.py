"""Metadata parquet (DataComp, LAION, img2dataset), column by column: no row passes through Python by itself.

Of a file on an object store the footer and the wanted columns are read, each by range. A file that does not parse is a
reason in the ledger, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.shards import ShardSummary
from etl.storage import open_ranges
from etl.uids import uid_of

KNOWN_NAMES = {
    "uid": "uid",
    "url": "url",
    "text": "text",
    "caption": "text",
    "sha256": "sha256",
    "original_width": "width_px",
    "original_height": "height_px",
    "width": "width_px",
    "height": "height_px",
}
"""Column of a release, in lower case -> ours."""
UID = "^[0-9a-f]{32}$"
BATCH_ROWS = 10_000
"""Rows handed on at a time: those before a damage are whole, and stay."""
DAMAGE = (OSError, pa.ArrowException, ValueError, KeyError)
"""What a file that is not as it should be raises: cut, no parquet, a column of another type or there twice."""


def rename(columns: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """Our column -> the file's: by the user's mapping first, then by known names, whatever their case."""
    found: dict[str, str] = {}
    for column in columns:
        kind = own.get(column) or KNOWN_NAMES.get(column.lower())
        if kind and (kind not in found or column in own):
            found[kind] = column
    return found


def scan_metadata(
    uri: str, *, columns: Mapping[str, str], source_default: str
) -> Iterator[pa.RecordBatch | ShardSummary]:
    """Batches of uid, url, text, source, status and what else the file has of `pairs`; then its summary, always."""
    num_rows, size = 0, 0
    try:
        with _opened(uri) as parquet:
            named = rename(parquet.schema_arrow.names, columns)
            if not {"text", "url"} & named.keys():
                reason = f"wanted a text or url column; found {', '.join(parquet.schema_arrow.names)[:150]}"
                yield ShardSummary(uri, size, "bad_parquet", reason, 0)
                return
            for batch in _batches(parquet, named.values()):
                found = {kind: _values(batch.column(column), kind) for kind, column in named.items()}
                found |= {"uid": uids_of(found, len(batch)), "source": pa.repeat(source_default, len(batch))}
                found["status"] = pa.repeat("metadata_only", len(batch))
                num_rows += len(batch)
                yield pa.record_batch(found)
    except DAMAGE as error:
        # Rows read before the damage are whole: they stay, and the file says why there are no more.
        yield ShardSummary(uri, size, "bad_parquet", _one_line(error), num_rows)
        return
    yield ShardSummary(uri, size, "ok", None, num_rows)


def scan_captions(uri: str, *, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """(uid, given_text, given_url) of one file in its order, as far as it can be read; nothing where it has no uid."""
    with suppress(*DAMAGE), _opened(uri) as parquet:  # `scan_metadata` says so in the ledger
        named = {k: c for k, c in rename(parquet.schema_arrow.names, columns).items() if k in ("uid", "text", "url")}
        for batch in _batches(parquet, named.values()) if "uid" in named else ():
            found = {kind: _values(batch.column(column), kind) for kind, column in named.items()}
            absent = pa.nulls(len(batch), pa.string())
            given = {f"given_{kind}": found.get(kind, absent) for kind in ("text", "url")}
            yield pa.record_batch({"uid": found["uid"], **given})


def scan_uids(uri: str, *, columns: Mapping[str, str]) -> tuple[pa.Array, str | None]:
    """The uids of one file in its order, as `scan_metadata` makes them, and why there are no more of them."""
    uids: list[pa.Array] = []
    damage = None
    try:
        with _opened(uri) as parquet:
            uids += [made for made, _ in _with_uids(parquet, columns)]
    except DAMAGE as error:
        damage = _one_line(error)
    return pa.concat_arrays([pa.array([], pa.string()), *uids]), damage


def scan_column(
    uri: str, column: str, kind: pa.DataType, *, columns: Mapping[str, str]
) -> Iterator[tuple[pa.Array, pa.Array]]:
    """(uids, values of a column as `kind`) of one file in its order, as far as both can be read.

    Nothing where the file has no such column, or one of another type. Uids are those of `scan_metadata`.
    """
    with suppress(*DAMAGE), _opened(uri) as parquet:  # what is damaged is in the ledger of ingest
        if column in parquet.schema_arrow.names:
            for uids, batch in _with_uids(parquet, columns, (column,)):
                yield uids, batch.column(column).cast(kind, safe=False)


def uids_of(found: Mapping[str, pa.Array], num_rows: int) -> pa.Array:
    """The release's own where it is one, else the md5 of url and text."""
    absent = pa.nulls(num_rows, pa.string())
    given, is_one = _given(found.get("uid", absent))
    lacking = pc.invert(is_one)
    pairs = zip(*(found.get(kind, absent).filter(lacking).to_pylist() for kind in ("url", "text")), strict=True)
    made = pa.array([uid_of(url, text) for url, text in pairs], pa.string())
    return pc.replace_with_mask(given, lacking, made) if len(made) else given


def _given(uids: pa.Array) -> tuple[pa.Array, pa.Array]:
    """In lower case; and which are 32 hex digits."""
    lower = pc.ascii_lower(uids)
    return lower, pc.fill_null(pc.match_substring_regex(lower, UID), False)


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    with open_ranges(uri) as file:
        # Columns that lie side by side come in one range.
        yield pq.ParquetFile(file, pre_buffer=True)


def _batches(parquet: pq.ParquetFile, names: Iterable[str], group: int | None = None) -> Iterator[pa.RecordBatch]:
    """Row group by row group (or one of them), so that no more than one is held."""
    for number in range(parquet.num_row_groups) if group is None else (group,):
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[number], columns=list(dict.fromkeys(names)))


def _with_uids(
    parquet: pq.ParquetFile, columns: Mapping[str, str], more: tuple[str, ...] = ()
) -> Iterator[tuple[pa.Array, pa.RecordBatch]]:
    """Uids, and the batch that they are of. Captions are read of a row group only in which a row has no uid."""
    named = rename(parquet.schema_arrow.names, columns)
    wanted = {kind: named[kind] for kind in ("uid", "url", "text") if kind in named}
    for group in range(parquet.num_row_groups):
        num_done, lacks = 0, "uid" not in named
        for batch in () if lacks else _batches(parquet, (named["uid"], *more), group):
            uids, is_one = _given(_values(batch.column(named["uid"]), "uid"))
            if lacks := not pc.all(is_one, min_count=0).as_py():
                break
            num_done += 1
            yield uids, batch
        for number, batch in enumerate(_batches(parquet, (*wanted.values(), *more), group) if lacks else ()):
            if number >= num_done:
                found = {str(kind): _values(batch.column(column), kind) for kind, column in wanted.items()}
                yield uids_of(found, len(batch)), batch


def _values(column: pa.Array, kind: str) -> pa.Array:
    """Strings; for sizes whole numbers, NULL where what is there is none."""
    if not kind.endswith("_px"):
        strings = column.cast(pa.string())
        strings.validate(full=True)  # what is not UTF-8
        return strings
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return pa.nulls(len(column), pa.int32())
    is_one = pc.and_(pc.greater_equal(column, 0), pc.less(column, 1 << 31))
    return pc.if_else(is_one, column, None).cast(pa.int32(), safe=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
