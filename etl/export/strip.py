"""Strip metadata (EXIF with its GPS, XMP, comments, thumbnails, what follows the end) from JPEG, PNG and WebP bytes.

Nothing is compressed again: decoded pixels stay the same, and so does the orientation, as an EXIF of one entry. Colour
profiles stay. Stripping twice gives the same bytes.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from models.images import ImageError, orientation, sniff

_JPEG_MARKER_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and RSTn: markers without a length
_JPEG_APP0, _JPEG_APP1, _JPEG_APP2, _JPEG_APP14, _JPEG_APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
_JPEG_EOI, _JPEG_SOS, _JPEG_COM = 0xD9, 0xDA, 0xFE
_JPEG_KEPT = {_JPEG_APP0: b"JFIF\0", _JPEG_APP2: b"ICC_PROFILE\0", _JPEG_APP14: b"Adobe"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_DROPPED = frozenset({b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"})
_WEBP_DROPPED = frozenset({b"EXIF", b"XMP "})
_WEBP_EXIF_FLAG, _WEBP_XMP_FLAG = 0x08, 0x04


class Stripped(NamedTuple):
    """What `strip_metadata` gives back."""

    data: bytes
    is_stripped: bool
    """False: another format, or a structure that was not understood; `data` is then the input."""


class _NotUnderstoodError(Exception):
    """The bytes do not follow their format."""


def strip_metadata(data: bytes) -> Stripped:
    """JPEG, PNG or WebP bytes without metadata. Never raises: what is damaged or another format comes back as it is."""
    try:
        if (strip := _STRIPPERS.get(sniff(data))) is None:
            return Stripped(data, False)
        return Stripped(strip(data), True)
    except (_NotUnderstoodError, ImageError, struct.error, IndexError):
        return Stripped(data, False)


def _exif(turn: int) -> bytes:
    """A TIFF of one directory with one entry: orientation, a SHORT."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, turn, 0, 0)


def _strip_jpeg(data: bytes) -> bytes:
    head, body, has_dropped = [b"\xff\xd8"], list[bytes](), False
    for marker, segment in _jpeg_segments(data):
        kept_if = _JPEG_KEPT.get(marker)
        is_metadata = _JPEG_APP0 <= marker <= _JPEG_APP15 or marker == _JPEG_COM
        if is_metadata and (kept_if is None or segment[4 : 4 + len(kept_if)] != kept_if):
            has_dropped = True
        else:
            (head if marker == _JPEG_APP0 else body).append(segment)
    if has_dropped and (turn := orientation(data)) != 1:
        payload = b"Exif\0\0" + _exif(turn)
        head.append(struct.pack(">BBH", 0xFF, _JPEG_APP1, len(payload) + 2) + payload)
    return b"".join(head + body)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, its bytes) from after SOI to EOI; with a start of scan comes its coded data. Fill bytes are left out."""
    start = 2
    while True:
        while data[start : start + 2] == b"\xff\xff":
            start += 1
        if len(data) < start + 2 or data[start] != 0xFF:
            raise _NotUnderstoodError
        marker = data[start + 1]
        if marker == _JPEG_EOI:
            yield marker, b"\xff\xd9"
            return
        length = 0 if marker in _JPEG_BARE else int.from_bytes(data[start + 2 : start + 4], "big")
        end = start + 2 + length
        if marker == _JPEG_SOS:
            following = _JPEG_MARKER_AFTER_SCAN.search(data, end)
            end = following.start() if following else len(data)
        yield marker, data[start:end]
        start = end


def _strip_png(data: bytes) -> bytes:
    chunks, has_dropped = list[bytes](), False
    for kind, chunk in _png_chunks(data):
        if kind in _PNG_DROPPED:
            has_dropped = True
        else:
            chunks.append(chunk)
    if has_dropped and (turn := orientation(data)) != 1:
        content = b"eXIf" + _exif(turn)
        length, crc = struct.pack(">I", len(content) - 4), struct.pack(">I", zlib.crc32(content))
        chunks.insert(1, length + content + crc)
    return _PNG_SIGNATURE + b"".join(chunks)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, its bytes) from IHDR to IEND."""
    start = len(_PNG_SIGNATURE)
    if data[start + 4 : start + 8] != b"IHDR":
        raise _NotUnderstoodError
    while True:
        (length,) = struct.unpack_from(">I", data, start)
        kind, end = data[start + 4 : start + 8], start + 12 + length
        if end > len(data):
            raise _NotUnderstoodError
        yield kind, data[start:end]
        if kind == b"IEND":
            return
        start = end


def _strip_webp(data: bytes) -> bytes:
    chunks, has_dropped = list[bytes](), False
    for kind, chunk in _webp_chunks(data):
        if kind in _WEBP_DROPPED:
            has_dropped = True
        else:
            chunks.append(chunk)
    turn = orientation(data) if has_dropped else 1
    if chunks[0][:4] == b"VP8X":
        flags = chunks[0][8] & ~(_WEBP_EXIF_FLAG | _WEBP_XMP_FLAG) | (_WEBP_EXIF_FLAG if turn != 1 else 0)
        chunks[0] = chunks[0][:8] + bytes([flags]) + chunks[0][9:]
    elif turn != 1:
        raise _NotUnderstoodError
    if turn != 1:
        chunks.append(b"EXIF" + struct.pack("<I", len(_exif(turn))) + _exif(turn))
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, its bytes with the padding) of all that the RIFF header spans."""
    (size,) = struct.unpack_from("<I", data, 4)
    start, stop = 12, 8 + size
    if stop > len(data):
        raise _NotUnderstoodError
    while start < stop:
        kind, (length,) = data[start : start + 4], struct.unpack_from("<I", data, start + 4)
        end = start + 8 + length + length % 2
        if end > stop:
            raise _NotUnderstoodError
        yield kind, data[start:end]
        start = end


_STRIPPERS = {"jpeg": _strip_jpeg, "png": _strip_png, "webp": _strip_webp}
