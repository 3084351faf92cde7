"""Lists of URLs with captions to candidates: a row for each row of a list, with a status where it is none.

Captions stay as they are. A row's uid is that of the list, else the md5 of URL and caption as the list has them, which
is what ingest would give it: of the extra `web`, whose URLs these are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from etl.intake.lists import scan_list, uids_of
from etl.shards import ShardSummary
from etl.web.html import MAX_TEXT_CHARS, absolute

KINDS = ("uid", "url", "text", "sha256")
NEEDS = (("url",), ("text",))


def scan_urls(uri: str, *, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch | ShardSummary]:
    """Rows of a list; last its summary."""
    return scan_list(uri, columns=columns, kinds=KINDS, needs=NEEDS)


def candidates_of(rows: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """{uid, url, text, sha256, status} of each row. status: ok, missing_text, too_large, unsupported_url."""
    absent = pa.nulls(len(rows), pa.string())
    column = {name: rows.column(name) for name in rows.schema.names}
    uids = uids_of(column, len(rows))
    parts = (column.get(name, absent).to_pylist() for name in ("url", "text", "sha256"))
    for uid, given, text, sha256 in zip(uids.to_pylist(), *parts, strict=True):
        url = absolute("", given or "")
        status = "ok" if url else "unsupported_url"
        if not (text or "").strip():
            status = "missing_text"
        elif len(text) > MAX_TEXT_CHARS:
            status = "too_large"
        known = sha256 if re.fullmatch("[0-9a-fA-F]{64}", sha256 or "") else None
        yield {"uid": uid, "url": url, "text": text, "sha256": known, "status": status}
