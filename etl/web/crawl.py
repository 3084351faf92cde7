"""WARC and WAT files to rows of candidates, whole or damaged. Reads files; no Spark, no network of its own.

fastwarc reads the records. It takes the end of a file for the end of its records, wherever that is, and stops at the
first damage: so what follows the last record is walked here, and reading goes on at the next record that can be found.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecordType

from etl.storage import open_ranges
from etl.tar import cause
from etl.web.html import Page, images_of_html, images_of_wat
from models.images import one_line

PIECE = 1 << 20
MAX_RESTARTS = 1000
"""Of one file, after a damage each."""
WAT_TIMES_PAGE = 4
"""A WAT record may be so many times as long as a page: it cannot be read in part."""
GZIP, PLAIN = b"\x1f\x8b\x08", b"WARC/1."
HTML_TYPES = ("text/html", "application/xhtml+xml")
KINDS = WarcRecordType.response | WarcRecordType.metadata


class Caps(NamedTuple):
    page_bytes: int = 2 << 20
    """What is read of one page; images after that are not seen."""
    images_per_page: int = 1000
    records: int = 1_000_000
    """Of one file."""


@dataclass
class CrawlFile:
    """The ledger's line on one file."""

    uri: str
    status: str = "ok"
    """ok; cut, bad_record, not_a_crawl_file, unreadable: what is whole was taken."""
    reason: str | None = None
    images: Counter[str] = field(default_factory=Counter)
    """Status -> img elements; ok: those that were yielded."""
    pages: Counter[str] = field(default_factory=Counter)
    """Status -> records that answer a request."""

    def damaged(self, status: str, reason: str) -> None:
        """The first damage names the file's status."""
        if self.status == "ok":
            self.status, self.reason = status, one_line(reason)


class Found(NamedTuple):
    """A page with images."""

    page_url: str
    page: Page


def scan_crawl(uri: str, *, caps: Caps = Caps(), agent: str = "") -> Iterator[Found | CrawlFile]:  # noqa: B008
    """The pages of one file, in order, and last, always, its line in the ledger. Never raises."""
    file = CrawlFile(uri)
    try:
        with open_ranges(uri, ahead_bytes=8 << 20) as stream:
            for record in _records(stream, file, caps):
                found = _page(record, file, caps, agent)
                if found is not None:
                    file.images.update(found.page.skipped)
                    file.images["ok"] += len(found.page.images)
                    yield found
    except Exception as error:  # each remote file system raises its own kinds
        file.damaged("unreadable", cause(error))
    yield file


def _records(stream: IO[bytes], file: CrawlFile, caps: Caps) -> Iterator[Any]:
    """Every record that can be read, also those after a damage."""
    start, num_records = 0, 0
    for _ in range(MAX_RESTARTS):
        last: int | None = None
        damage = ""
        stream.seek(start)
        try:
            for record in ArchiveIterator(stream, record_types=KINDS, parse_http=False):
                last = record.stream_pos
                if num_records >= caps.records:
                    file.damaged("too_large", f"more than {caps.records} records")
                    return
                num_records += 1
                yield record
        except OSError as error:
            damage = cause(error)
        at = start if last is None else last
        problem = _rest(stream, at)
        if not problem and not damage:
            return
        file.damaged("bad_record" if damage else "cut", f"{damage or problem}, in or after the record at {at}")
        following = _next(stream, at + 1)
        if following is None:
            if not num_records:
                file.status = "not_a_crawl_file" if start == 0 and last is None and damage else file.status
            return
        start = following


def _rest(stream: IO[bytes], start: int) -> str:
    """What is wrong with the records from `start` to the end of the file; '' where all are whole."""
    size = stream.seek(0, 2)
    if start >= size:  # of a file that is one gzip member, positions are those of its end
        start = 0
    stream.seek(start)
    head = stream.read(len(PLAIN))
    stream.seek(start)
    if not head.startswith((GZIP, PLAIN)):
        return "" if not head else "no record"
    pieces = _inflated(stream) if head.startswith(GZIP) else iter(lambda: stream.read(PIECE), b"")
    try:
        return _walk(pieces)
    except (zlib.error, EOFError) as error:
        return str(error)


def _inflated(stream: IO[bytes]) -> Iterator[bytes]:
    """The content of gzip members, in pieces. Raises EOFError where the last one is cut, zlib.error for damage."""
    member, data = zlib.decompressobj(31), b""
    is_fresh = True
    while True:
        data = data or stream.read(PIECE)
        if not data:
            if is_fresh:
                return
            raise EOFError("the file ends within a record")
        is_fresh = False
        if piece := member.decompress(data, PIECE):
            yield piece
        data = member.unused_data if member.eof else member.unconsumed_tail
        if member.eof:
            member, is_fresh = zlib.decompressobj(31), True


def _walk(pieces: Iterator[bytes]) -> str:
    """Goes from record to record by their lengths. What is wrong, or ''."""
    held = b""
    while True:
        while b"\r\n\r\n" not in held:
            piece = next(pieces, b"")
            held += piece
            if not piece:
                return "the file ends within a record" if held.strip() else ""
            if len(held) > 2 * PIECE:
                return "no end of a record's header"
        head, _, held = held.partition(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length:\s*(\d{1,15})\s*$", head)
        if not head.lstrip().startswith(PLAIN) or length is None:
            return "no record"
        left = int(length[1]) + 4  # two line ends
        while left > len(held):
            left -= len(held)
            held = next(pieces, b"")
            if not held:
                return "the file ends within a record"
        held = held[left:]


def _next(stream: IO[bytes], start: int) -> int | None:
    """Where the next record may begin: a gzip member, or the first line of a record after an empty one."""
    stream.seek(start)
    held, at = b"", start
    while piece := stream.read(PIECE):
        held += piece
        if found := re.search(rb"\x1f\x8b\x08[\0-\x1f]|\r\n\r\nWARC/1\.", held):
            return at + found.start() + (4 if held[found.start()] == 13 else 0)
        at, held = at + max(0, len(held) - 16), held[-16:]
    return None


def _page(record: Any, file: CrawlFile, caps: Caps, agent: str) -> Found | None:
    """The page of one record, counted; None of one that is none."""
    if record.record_type == WarcRecordType.metadata:
        return _wat(record, file, caps, agent)
    try:
        declared = record.content_length
        record.parse_http()
        headers = record.http_headers
        data = record.reader.read(caps.page_bytes + 1)
    except OSError as error:
        file.pages["bad_record"] += 1
        file.damaged("bad_record", cause(error))
        return None
    if headers is None or headers.status_code is None:
        file.pages["cut" if declared else "bad_record"] += 1
        return None
    if headers.status_code != 200 or record.http_content_type not in HTML_TYPES:
        file.pages["not_html"] += 1
        return None
    body = _body(data[: caps.page_bytes], headers, caps.page_bytes)
    is_cut = len(data) < record.content_length or len(body or b"") >= caps.page_bytes
    file.pages["bad_record" if body is None else "cut" if is_cut else "ok"] += 1
    if body is None:
        return None
    url = str(record.headers.get("WARC-Target-URI") or "").strip("<>")
    return Found(
        url,
        images_of_html(
            body, url, charset=record.http_charset, headers=headers.items(), agent=agent,
            max_images=caps.images_per_page,
        ),
    )  # fmt: skip


def _wat(record: Any, file: CrawlFile, caps: Caps, agent: str) -> Found | None:
    if "json" not in (record.headers.get("Content-Type") or ""):
        return None
    max_bytes = WAT_TIMES_PAGE * caps.page_bytes
    data = record.reader.read(max_bytes + 1) if record.content_length <= max_bytes else b""
    if record.content_length > max_bytes:
        file.pages["too_large"] += 1
        return None
    if len(data) < record.content_length:
        file.pages["cut"] += 1
        return None
    found = images_of_wat(data, agent=agent, max_images=caps.images_per_page)
    file.pages["ok" if found else "not_html" if data[:1] == b"{" else "bad_record"] += 1
    return Found(*found) if found else None


def _body(data: bytes, headers: Any, max_bytes: int) -> bytes | None:
    """Without chunks and gzip, at most `max_bytes`; None where the encoding is another, or damaged."""
    if "chunked" in (headers.get("Transfer-Encoding") or "").lower():
        data = _without_chunks(data)
    encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding in ("identity", "") or (encoding in ("gzip", "x-gzip") and not data.startswith(GZIP[:2])):
        return data  # crawlers keep the header and drop the encoding
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    try:
        return zlib.decompressobj(-15 if encoding == "deflate" and data[:1] != b"x" else 47).decompress(data, max_bytes)
    except zlib.error:
        return None


def _without_chunks(data: bytes) -> bytes:
    """As it is, where it does not begin with a chunk: crawlers keep the header and drop the chunks."""
    parts, at = [], 0
    while size := re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r\n").match(data, at):
        length = int(size[1], 16)
        if not length:
            break
        parts.append(data[size.end() : size.end() + length])
        at = size.end() + length + 2
    return b"".join(parts) if parts else data
