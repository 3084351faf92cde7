"""Tar shards: list them, scan them into rows, read ranges of them, write and verify them. Local paths and fsspec URLs.

The door to `etl/tar.py` (the walk, ranges) and `etl/shard_writer.py` (write, verify); samples become rows here. A
sample is a run of members with one key. Of these the first image, the `.txt` and the `.json` are read; nothing is ever
unpacked onto a disk, and no link is followed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from etl.intake.uids import uid_of_bytes
from etl.shard_writer import ShardWriter, ShardWritten, publish, temporary_name, verify, write_manifest
from etl.tar import MAX_MEMBER_BYTES, Member, Pointer, RangeReader, ShardError, cause, index, open_shard, split_name
from models.images import MAX_PIXELS, ImageError, inspect, sha256_hex, sniff

__all__ = [
    "IMAGE_EXTENSIONS", "MAX_MEMBER_BYTES", "MAX_PIXELS", "Member", "Pointer", "RangeReader", "Row", "ShardError",
    "ShardFile", "ShardSummary", "ShardWriter", "ShardWritten", "index", "list_shards", "open_shard", "publish", "scan",
    "split_name", "temporary_name", "verify", "write_manifest",
]  # fmt: skip

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "img"})

Row = dict[str, Any]
"""uid, url, text, source, shard, offset_bytes, size_bytes, sha256, phash, image_format, width_px, height_px, status and
status_reason: the columns of `pairs`."""


class ShardFile(NamedTuple):
    """A shard as it was listed."""

    uri: str
    size_bytes: int
    etag: str
    """What tells its content without reading it: the store's ETag, else modification time and size."""


class ShardSummary(NamedTuple):
    """The ledger's line on one file. `status`: ok, cut, not_a_tar, unreadable; `num_members`: rows yielded before."""

    uri: str
    size_bytes: int | None
    status: str
    status_reason: str | None
    """Why; of a file that is ok: how many members were not read, by status."""
    num_members: int


class _Part(NamedTuple):
    member: Member
    payload: bytes


@dataclass
class _Sample:
    """What is read of the members with one key: at most an image, a txt and a json."""

    key: str
    parts: dict[str, _Part] = field(default_factory=dict)
    extensions: set[str] = field(default_factory=set)


def list_shards(pattern: str) -> list[ShardFile]:
    """The files that match a glob, by uri; local ones as absolute paths. Empty where nothing matches."""
    files, _ = url_to_fs(pattern)
    files.invalidate_cache()  # what an earlier listing in this process found
    found = files.glob(pattern, detail=True).values()
    shards = [shard_file(files, info) for info in found if info["type"] == "file" or _links_to_file(info)]
    return sorted(shards, key=lambda shard: shard.uri)


def _links_to_file(info: Mapping[str, Any]) -> bool:
    """Whether it is a symbolic link to a file, or to nothing: that one is listed too, so that its ledger line says so.

    Not to a folder, nor to a pipe, on which a reader would wait for ever.
    """
    path = Path(info["name"])
    return bool(info.get("islink")) and (path.is_file() or not path.exists())


def shard_file(files: Any, info: Mapping[str, Any]) -> ShardFile:
    name, size_bytes = str(info["name"]), int(info["size"])
    if isinstance(files, LocalFileSystem):
        path = Path(name)
        modified = path.stat() if path.exists() else path.lstat()
        return ShardFile(name, size_bytes, f"{modified.st_mtime_ns}-{size_bytes}")
    tags = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created"))
    tag = next((tag for tag in tags if tag), "")
    return ShardFile(str(files.unstrip_protocol(name)), size_bytes, f"{tag}-{size_bytes}")


def scan(
    uri: str,
    *,
    max_pixels: int = MAX_PIXELS,
    max_member_bytes: int = MAX_MEMBER_BYTES,
    source_default: str | None = None,
) -> Iterator[Row | ShardSummary]:
    """One row per sample of a shard, in order, and last, always, one ShardSummary. Reads the file once; never raises.

    Of a cut shard, the sample at the cut is left out: without what followed, its uid and caption cannot be trusted.
    A duplicate uid is yielded like any other.
    """
    size_bytes, num_rows, not_read = None, 0, Counter[str]()
    status, reason = "ok", None
    try:
        with open_shard(uri) as file:
            size_bytes = file.seek(0, os.SEEK_END)
            for sample in _samples(file, max_member_bytes, not_read):
                num_rows += 1
                yield _row(uri, sample, max_pixels, source_default)
        reason = ", ".join(f"{count} {kind}" for kind, count in sorted(not_read.items())) or None
    except ShardError as error:
        status, reason = error.status, error.reason
    except Exception as error:  # each remote file system raises its own kinds
        status, reason = "unreadable", cause(error)
    yield ShardSummary(uri, size_bytes, status, reason, num_rows)


def _samples(file: IO[bytes], max_member_bytes: int, not_read: Counter[str]) -> Iterator[_Sample]:
    """Runs of members with one key. An extension that comes again starts another sample. Raises ShardError."""
    sample = None
    for member in index(file, max_member_bytes=max_member_bytes):
        if member.status != "ok":
            not_read[member.status] += 1
        key, extension = split_name(member.name) or (None, "")
        if key is None:
            continue
        if sample is None or sample.key != key or extension in sample.extensions:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        part = "image" if extension in IMAGE_EXTENSIONS else extension
        if part in ("image", "txt", "json"):
            sample.extensions.add(extension)
            if part not in sample.parts:
                sample.parts[part] = _Part(member, _payload(file, member) if member.status == "ok" else b"")
    if sample is not None:
        yield sample


def _payload(file: IO[bytes], member: Member) -> bytes:
    file.seek(member.offset_bytes)
    payload = file.read(member.size_bytes)
    if len(payload) != member.size_bytes:
        raise ShardError("cut", f"{len(payload)} of {member.size_bytes} bytes at {member.offset_bytes}")
    return payload


def _row(uri: str, sample: _Sample, max_pixels: int, source_default: str | None) -> Row:
    document = _document(sample.parts.get("json"))
    caption, text, status, reason = _caption(sample.parts.get("txt"), document)
    url = _string(document, "url")
    uid = _string(document, "uid") or ""
    if not re.fullmatch("[0-9a-fA-F]{32}", uid):
        uid = uid_of_bytes(url or f"{uri.rpartition('/')[2]}/{sample.key}", caption)
    row: Row = {"uid": uid.lower(), "url": url, "text": text}
    row |= {"source": _string(document, "source") or source_default, "shard": uri}
    row |= dict.fromkeys(("offset_bytes", "size_bytes", "sha256", "phash", "image_format", "width_px", "height_px"))
    row |= {"status": status, "status_reason": reason}
    return row | _image_columns(sample.parts.get("image"), max_pixels)


def _image_columns(part: _Part | None, max_pixels: int) -> Row:
    """What the image says of its row; with a status only if it is bad, for then it wins over that of the caption."""
    if part is None:
        return {"status": "missing_partner", "status_reason": "no image among its members"}
    member, data = part
    row: Row = {"offset_bytes": member.offset_bytes, "size_bytes": member.size_bytes}
    if member.status != "ok":
        return row | {"status": member.status, "status_reason": "the image was not read"}
    row |= {"sha256": sha256_hex(data), "image_format": sniff(data) if data else None}
    try:
        facts = inspect(data, max_pixels=max_pixels)
    except ImageError as error:
        return row | {"status": error.status, "status_reason": error.reason}
    return row | {"phash": facts.phash, "width_px": facts.width_px, "height_px": facts.height_px}


def _caption(part: _Part | None, document: Mapping[str, Any]) -> tuple[bytes, str | None, str, str | None]:
    """Its raw bytes, text, status and reason. Control characters and NUL stay."""
    if part is not None and part.member.status != "ok":
        return b"", None, part.member.status, "the caption was not read"
    if part is not None:
        raw = part.payload
    elif isinstance(document.get("caption"), str):
        raw = document["caption"].encode("utf-8", "surrogatepass")
    else:
        return b"", None, "missing_text", "no .txt and no caption in a .json"
    try:
        return raw, raw.decode(), "ok", None
    except UnicodeDecodeError as error:
        return raw, None, "invalid_text", f"not UTF-8 at byte {error.start}"


def _document(part: _Part | None) -> dict[str, Any]:
    """The json of a sample; {} where there is none that parses. Bytes that are not UTF-8 become lone surrogates."""
    try:
        document = json.loads(part.payload.decode("utf-8-sig", "surrogateescape")) if part else {}
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _string(document: Mapping[str, Any], name: str) -> str | None:
    """None unless it is a string that UTF-8 can hold."""
    value = document.get(name)
    if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
        return None
    return value
