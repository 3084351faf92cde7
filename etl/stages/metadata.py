"""Metadata parquet (DataComp, LAION, img2dataset) to rows with status `metadata_only`. Reads one file at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from etl.shards import ShardSummary

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
UID = re.compile(r"[0-9a-f]{32}")
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
) -> Iterator[dict[str, Any] | ShardSummary]:
    """Rows of one parquet file, then its summary. A file that does not parse is a reason in it, never an error."""
    num_rows, size = 0, 0
    try:
        with fsspec.open(uri, "rb") as file:
            parquet = pq.ParquetFile(file)
            named = rename(parquet.schema_arrow.names, columns)
            if not {"text", "url"} & named.keys():
                reason = f"wanted a text or url column; found {', '.join(parquet.schema_arrow.names)[:150]}"
                yield ShardSummary(uri, size, "bad_parquet", reason, 0)
                return
            for batch in parquet.iter_batches(batch_size=10_000, columns=list(named.values())):
                values = {kind: _values(batch.column(column), kind) for kind, column in named.items()}
                for row in zip(*values.values(), strict=True):
                    num_rows += 1
                    yield _row(dict(zip(values, row, strict=True)), source_default)
    except DAMAGE as error:
        # Rows read before the damage are whole: they stay, and the file says why there are no more.
        yield ShardSummary(uri, size, "bad_parquet", " ".join(str(error).split())[:200], num_rows)
        return
    yield ShardSummary(uri, size, "ok", None, num_rows)


def scan_captions(uri: str, *, columns: Mapping[str, str]) -> Iterator[pd.DataFrame]:
    """(uid, given_text, given_url) of one file in its order, as far as it can be read; nothing where it has no uid."""
    try:
        with fsspec.open(uri, "rb") as file:
            parquet = pq.ParquetFile(file)
            named = {
                k: c for k, c in rename(parquet.schema_arrow.names, columns).items() if k in ("uid", "text", "url")
            }
            for batch in parquet.iter_batches(columns=list(named.values())) if "uid" in named else ():
                strings = {kind: batch.column(column).cast(pa.string()) for kind, column in named.items()}
                given = {
                    f"given_{kind}": strings.get(kind, pa.nulls(len(batch), pa.string())) for kind in ("text", "url")
                }
                yield pa.table({"uid": strings["uid"], **given}).to_pandas()
    except DAMAGE:
        return  # `scan_metadata` says so in the ledger


def scan_uids(uri: str, *, columns: Mapping[str, str]) -> tuple[list[str], str | None]:
    """The uids of one file in its order, as `scan_metadata` makes them, and why there are no more of them."""
    uids: list[str] = []
    try:
        with fsspec.open(uri, "rb") as file:
            parquet = pq.ParquetFile(file)
            named = rename(parquet.schema_arrow.names, columns)
            wanted = {kind: named[kind] for kind in ("uid", "url", "text") if kind in named}
            for batch in parquet.iter_batches(batch_size=10_000, columns=list(wanted.values())):
                found = {kind: _values(batch.column(column), kind) for kind, column in wanted.items()}
                absent = [None] * len(batch)
                uids += map(_uid, *(found.get(kind, absent) for kind in ("uid", "url", "text")))
    except DAMAGE as error:
        return uids, " ".join(str(error).split())[:200]
    return uids, None


def _uid(given: str | None, url: str | None, text: str | None) -> str:
    """The release's own where it is one, else the md5 of url and text."""
    uid = (given or "").lower()
    if UID.fullmatch(uid):
        return uid
    content = f"{url or ''}\0{text or ''}".encode("utf-8", "surrogatepass")
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _values(column: Any, kind: str) -> list[Any]:
    """Strings; for sizes whole numbers, None where what is there is none."""
    if not kind.endswith("_px"):
        return list(column.cast(pa.string()).to_pylist())
    return [
        int(value) if isinstance(value, int | float) and 0 <= value < 1 << 31 else None for value in column.to_pylist()
    ]


def _row(found: dict[str, Any], source: str) -> dict[str, Any]:
    text, url = found.get("text"), found.get("url")
    return {
        "uid": _uid(found.get("uid"), url, text),
        "url": url,
        "text": text,
        "source": source,
        "sha256": found.get("sha256"),
        "width_px": found.get("width_px"),
        "height_px": found.get("height_px"),
        "status": "metadata_only",
    }
