"""Read tars that anybody may have written: where members lie, which are unsafe, is it whole; and ranges of their bytes.

tarfile parses each header block (checksum, octal and base-256 numbers). The walk is ours, because tarfile's own takes a
cut tar for a whole one, reads extended headers of any size into memory, and in some versions loops on a negative size.
Import from `etl.shards`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, NamedTuple, Self

from fsspec.core import url_to_fs

from etl.storage import open_ranges
from models.images import StatusError, one_line

MAX_MEMBER_BYTES = 64 << 20
"""Default cap on what is read of one member."""
GAP_BYTES = 1 << 20
"""Payloads at most this far apart are read in one go: a request to an object store costs more than a megabyte."""
RANGE_BYTES = 8 << 20
"""The most that is read in one go, unless one payload is larger."""

Pointer = tuple[str, int, int]
"""shard, offset_bytes, size_bytes."""

_BLOCK = tarfile.BLOCKSIZE
_MAX_EXTENDED_BYTES = 1 << 20  # an extended header holds a name and a few numbers
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_HEADER_TYPES = (*_PAX_TYPES, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_SPARSE_FLAG, _SPARSE_FLAG_CONTINUED = 482, 504
_KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


class ShardError(StatusError):
    """`not_a_tar` or `cut` from a walk, `read_error` from a range."""


class Member(NamedTuple):
    """A file in a tar. Its payload lies at `offset_bytes`, and may be read if `status` is ok."""

    name: str
    offset_bytes: int
    size_bytes: int
    status: str = "ok"
    """ok; `unsafe_member`: a link, a device, a sparse file, an absolute path or one with '..'; `too_large`; `cut`."""


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension, WebDataset's rule: the first dot of the base name parts them; the extension in lower case.

    None where there is no dot, or nothing before it: such members belong to no sample.
    """
    match = _KEY_AND_EXTENSION.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def index(file: IO[bytes], *, max_member_bytes: int = MAX_MEMBER_BYTES) -> Iterator[Member]:
    """The members of a seekable tar, in order, directories left out. Holds one header block and one name in memory.

    Between two members the caller may seek and read as it likes. Payloads are not read.

    Raises ShardError: `not_a_tar` if there is no header at the start (a gzip is not unpacked); after all that is there,
    `cut` if a payload is longer than the file, a header is damaged, or the two zero blocks at the end are missing.
    """
    end_bytes = file.seek(0, os.SEEK_END)
    offset, extended = 0, dict[str, str]()
    while (header := _read_header(file, offset)) is not None:
        offset += _BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            offset = _end_of_sparse_map(file, offset)
        size = _payload_bytes(header, extended)
        is_whole = 0 <= size <= end_bytes - offset
        if not header.isdir() and header.type not in _HEADER_TYPES:
            name = extended.get("GNU.sparse.name") or extended.get("path") or header.name
            status = _status(header, name, extended, size > max_member_bytes) if is_whole else "cut"
            yield Member(name, offset, size, status)
        if not is_whole:
            raise ShardError("cut", f"a payload of {size} bytes at {offset}, in a file of {end_bytes}")
        extended = extended | _read_extended(file, header, offset) if header.type in _HEADER_TYPES else {}
        offset += -(-size // _BLOCK) * _BLOCK


def _read_header(file: IO[bytes], offset: int) -> tarfile.TarInfo | None:
    """The header at `offset`; None at the end of the archive."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if len(block) == _BLOCK and not any(block):
        if file.read(_BLOCK) != block:
            raise ShardError("cut", f"the second of the two zero blocks is missing at {offset + _BLOCK}")
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if offset == 0:
            raise ShardError("not_a_tar", f"{error}; it starts with {block[:8].hex() or 'nothing'}") from error
        what = f"{error} at {offset}" if block else f"ends at {offset} without the two zero blocks"
        raise ShardError("cut", what) from error


def _end_of_sparse_map(file: IO[bytes], offset: int) -> int:
    """Old GNU sparse headers go on in further blocks, for as long as a flag says so. `offset`: end of the first."""
    file.seek(offset - _BLOCK)
    block, flag = file.read(_BLOCK), _SPARSE_FLAG
    while len(block) == _BLOCK and block[flag]:
        block, flag = file.read(_BLOCK), _SPARSE_FLAG_CONTINUED
        offset += _BLOCK
    return offset


def _payload_bytes(header: tarfile.TarInfo, extended: Mapping[str, str]) -> int:
    """Links, devices and directories have no payload, whatever their size says. -1 where the size does not parse."""
    if header.type in _HEADER_TYPES:
        return header.size
    if not header.isreg() and header.type in tarfile.SUPPORTED_TYPES:
        return 0
    size = extended.get("size", str(header.size))
    return int(size) if re.fullmatch(r"[0-9]{1,19}", size) else -1


def _read_extended(file: IO[bytes], header: tarfile.TarInfo, offset: int) -> dict[str, str]:
    """What a pax or GNU long-name header says of the member after it: path, size, sparse. {} for other headers."""
    if header.size > _MAX_EXTENDED_BYTES:
        raise ShardError("cut", f"an extended header of {header.size} bytes at {offset}")
    file.seek(offset)
    data = file.read(header.size)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    records, start = dict[str, str](), 0
    while header.type in _PAX_TYPES and (match := _PAX_RECORD.match(data, start)):
        start += int(match[1])
        if start <= match.end():
            break
        keyword, value = match[2], data[match.end() : start - 1]
        records[keyword.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return records


def _status(header: tarfile.TarInfo, name: str, extended: Mapping[str, str], is_too_large: bool) -> str:
    is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in extended)
    path = name.replace("\\", "/")
    if not header.isreg() or is_sparse or path.startswith("/") or ".." in path.split("/"):
        return "unsafe_member"
    return "too_large" if is_too_large else "ok"


def open_shard(uri: str) -> IO[bytes]:
    """A seekable file, for reading. Raises what its file system raises."""
    files, path = url_to_fs(uri)
    opened: IO[bytes] = files.open(path, "rb")
    return opened


def cause(error: Exception) -> str:
    """What failed, without a message that may hold a signed URL."""
    return one_line(f"{type(error).__name__}: {getattr(error, 'strerror', None) or ''}").rstrip(": ")


class RangeReader:
    """Payloads by pointer. Keeps the last shard open and no other. One per thread; close it, or use it in a `with`."""

    def __init__(self) -> None:
        self._shard: str | None = None
        self._file: IO[bytes] | None = None
        self._size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._shard = self._file = None

    def read(self, shard: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Exactly `size_bytes` bytes. Raises ShardError `read_error`: no such file, or it ends before."""
        (payload,) = self.read_many([(shard, offset_bytes, size_bytes)])
        return payload

    def read_many(self, pointers: Iterable[Pointer]) -> Iterator[bytes]:
        """One payload per pointer, in their order; neighbours are read in one go, so sort by shard and offset.

        Raises ShardError `read_error` at the first pointer that cannot be read, after all those before it.
        """
        for run in _runs(pointers):
            shard, start, _ = run[0]
            end = max(offset + size for _, offset, size in run)
            data = self._read_up_to(shard, start, end - start)
            for _, offset, size in run:
                payload = data[offset - start : offset - start + size]
                if len(payload) != size:
                    raise ShardError("read_error", f"{len(payload)} of {size} bytes at {offset}")
                yield payload

    def _read_up_to(self, shard: str, offset: int, size: int) -> bytes:
        """Fewer bytes where the shard ends before."""
        try:
            if self._file is None or shard != self._shard:
                self.close()
                self._file, self._shard = open_ranges(shard), shard
                self._size_bytes = self._file.seek(0, os.SEEK_END)
            self._file.seek(offset)
            return self._file.read(max(0, min(size, self._size_bytes - offset)))
        except Exception as error:  # each remote file system raises its own kinds
            self.close()
            raise ShardError("read_error", cause(error)) from error


def _runs(pointers: Iterable[Pointer]) -> Iterator[list[Pointer]]:
    """Neighbours: pointers into one shard, at most GAP_BYTES after those before, together at most RANGE_BYTES."""
    run: list[Pointer] = []
    end = 0
    for shard, offset, size in pointers:
        if run:
            first_shard, start, _ = run[0]
            is_near = shard == first_shard and start <= offset <= end + GAP_BYTES
            if not is_near or offset + size - start > RANGE_BYTES:
                yield run
                run, end = [], 0
        run.append((shard, offset, size))
        end = max(end, offset + size)
    if run:
        yield run
