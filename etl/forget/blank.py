"""Members of a tar blanked in place: same length, payload of zeros, another name, a header whose checksum is right. No
offset moves, and the tar reads as before. Touches local tars, and the manifest beside them.

The new name has no dot, so that no reader takes the member for a part of a sample. The image of a sample goes last: a
killed run finds it again by its offset.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from etl.shard_writer import MANIFEST, count_samples, publish_json
from etl.shards import IMAGE_EXTENSIONS
from etl.tar import Member, index, split_name
from models.records import sha256_file

BLOCK = tarfile.BLOCKSIZE
NAME = b"forgotten"
NAME_BYTES, CHECKSUM, TYPE, PREFIX = 100, slice(148, 156), 156, slice(345, 500)
"""Of a ustar header: how long its name is, and where the rest is."""
CHUNK = 1 << 20
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
EXTENDED = (*LONG_NAMES, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
RECORD = re.compile(rb"(\d+) ([^=]+)=")


def blank(path: Path, is_named: Callable[[Member], bool]) -> int:
    """Blanks every sample with a member that `is_named`, whole; returns how many members there were to blank.

    Raises ShardError for a tar that cannot be walked, OSError for one that cannot be written.
    """
    with path.open("rb") as file:
        members = list(index(file))
    ends = [0, *(_end(member) for member in members)]
    spans = {member.offset_bytes: (ends[number], member) for number, member in enumerate(members)}
    doomed = [member for sample in _samples(members) if any(map(is_named, sample)) for member in sample]
    if doomed:
        with path.open("r+b") as file:
            for member in doomed:
                start, _ = spans[member.offset_bytes]
                _blank_member(file, start, member)
            os.fsync(file.fileno())
    return len(doomed)


def _samples(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Runs of members with one key, images last in each; what is blanked already is passed over."""
    sample, key = list[Member](), None
    for member in members:
        its_key, _ = split_name(member.name) or (None, "")
        if its_key is None:
            continue
        if its_key != key:
            yield sorted(sample, key=_is_image)
            sample, key = [], its_key
        sample.append(member)
    yield sorted(sample, key=_is_image)


def _is_image(member: Member) -> bool:
    return (split_name(member.name) or ("", ""))[1] in IMAGE_EXTENSIONS


def _end(member: Member) -> int:
    return member.offset_bytes + -(-member.size_bytes // BLOCK) * BLOCK


def _blank_member(file: IO[bytes], start: int, member: Member) -> None:
    """`start`: where the member before ends; from there to the payload are its headers."""
    file.seek(member.offset_bytes)
    left = member.size_bytes
    while left:
        left -= file.write(bytes(min(CHUNK, left)))
    file.seek(start)
    headers = bytearray(file.read(member.offset_bytes - start))
    _rename(headers)
    file.seek(start)
    file.write(headers)


def _rename(headers: bytearray) -> None:
    """All headers of a member: extended ones, whose payload is a name, and its own."""
    at = 0
    while at < len(headers):
        kind = bytes(headers[at + TYPE : at + TYPE + 1])
        header = tarfile.TarInfo.frombuf(bytes(headers[at : at + BLOCK]), "utf-8", "surrogateescape")
        _rename_header(headers, at)
        at += BLOCK
        if kind == tarfile.GNUTYPE_SPARSE:  # what follows is a map of its holes
            return
        if kind in EXTENDED:
            payload = slice(at, at + header.size)
            text = bytes(headers[payload])
            headers[payload] = _filler(len(text) - 1) + b"\0" if kind in LONG_NAMES else _records(text)
            at += -(-header.size // BLOCK) * BLOCK


def _rename_header(headers: bytearray, at: int) -> None:
    headers[at : at + NAME_BYTES] = NAME.ljust(NAME_BYTES, b"\0")
    if headers[at + 257 : at + 263] == b"ustar\0":
        headers[at + PREFIX.start : at + PREFIX.stop] = bytes(PREFIX.stop - PREFIX.start)
    headers[at + CHECKSUM.start : at + CHECKSUM.stop] = b" " * 8
    checksum = sum(headers[at : at + BLOCK])
    headers[at + CHECKSUM.start : at + CHECKSUM.stop] = b"%06o\0 " % checksum


def _filler(length: int) -> bytes:
    return NAME.ljust(length, b"_")[:length]


def _records(payload: bytes) -> bytes:
    """The records of a pax header with fillers in place of texts: numbers (sizes, times) stay."""
    made, at = bytearray(payload), 0
    while match := RECORD.match(payload, at):
        end = at + int(match[1])
        if end <= match.end():
            break
        if not re.fullmatch(rb"[\d.+-]*", payload[match.end() : end - 1]):
            made[match.end() : end - 1] = _filler(end - 1 - match.end())
        at = end
    return bytes(made)


def renew_manifest(folder: Path, shards: Collection[str]) -> dict[str, dict[str, Any]]:
    """The entries of these shards as they are now, in the folder's manifest too, where it has one that names them."""
    path = folder / MANIFEST
    manifest: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        manifest = json.loads(path.read_text())
    entries = {entry["shard"]: entry for entry in manifest.get("shards", ()) if entry["shard"] in shards}
    for name, entry in entries.items():
        shard = folder / name
        with shard.open("rb") as file:
            entry |= {"num_samples": count_samples(file), "size_bytes": shard.stat().st_size}
        entry["sha256"] = sha256_file(shard)
    if entries:
        publish_json(path, manifest)
    return entries


def renew_file_entry(folder: Path, name: str) -> None:
    """The entry of another file that the manifest of a folder lists."""
    path = folder / MANIFEST
    with suppress(OSError, ValueError):
        manifest = json.loads(path.read_text())
        for entry in manifest.get("files", ()):
            if entry["file"] == name:
                file = folder / name
                entry |= {"size_bytes": file.stat().st_size, "sha256": sha256_file(file)}
                publish_json(path, manifest)
