"""Bytes -> checked RGB image, or one error that says why not. Touches no file, knows no Spark.

Two promises: bytes reach a decoder only if their first bytes say that they belong to it, whatever the file is called;
and nothing is decoded before its header has been held against the caps. How pixels become RGB is part of every
encoder's record:

| pixels                              | become                                                                       |
|-------------------------------------|------------------------------------------------------------------------------|
| transparency, of any kind           | composited on white                                                          |
| 1-bit, grey, palette, YCbCr         | Pillow's conversion                                                          |
| CMYK                                | Pillow's conversion; in a JPEG the inks are inverted, as Adobe writes them   |
| 16 bits a channel                   | scaled to 8: grey by rounding, colour by its high byte                       |
| 32-bit integer and float, grey      | scaled from the smallest of [0, 1], [0, 255], [0, 65535] that holds them all,|
|                                     | else from their own minimum and maximum; not a number is black               |
| LAB                                 | Pillow's conversion, by littleCMS to sRGB                                    |
| EXIF (or XMP) orientation           | applied; one that does not parse counts as upright                           |
| animation, several pages            | the first frame                                                              |
| colour profiles                     | not applied, as in open_clip                                                 |
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image

FORMATS = frozenset({"jpeg", "png", "webp", "gif", "bmp", "tiff"})
"""The allow-list: what may be decoded at all."""

MAX_PIXELS = 89_478_485
"""Default cap on width x height: Pillow's own, a quarter of a GiB at three bytes a pixel."""

MAX_SIDE_PX = 65_535
"""Cap on either side, the most that a JPEG can declare. A strip of 1 x 50M pixels passes any cap on the product."""

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Of an object, as Python shows one."""

# Process-wide, because `warnings.catch_warnings` is not safe in threads, and prefetching decodes in threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

_IMAGES = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "gif": rb"GIF8[79]a",
    "webp": rb"RIFF.{4}WEBP",
    "cr2": rb"II\*\0.{4}CR",
    "tiff": rb"II[*+]\0|MM\0[*+]",
    "bmp": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "avif": rb".{4}ftypavi[fs]",
    "heic": rb".{4}ftyp(?:he[iv][cmsx]|mif1|msf1)",
    "jpeg2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "jxl": rb"\0\0\0\x0cJXL |\xff\x0a",
    "ico": rb"\0\0[\x01\x02]\0",
    "psd": rb"8BPS",
    "qoi": rb"qoif",
    "dds": rb"DDS ",
    "exr": rb"\x76\x2f\x31\x01",
    "pnm": rb"P[1-7]\s",
}
_PROLOGUE = rb"(?i)(?:\xef\xbb\xbf)?\s*(?:<(?:\?xml|!--|!doctype svg)[^>]*>\s*)*"
_OTHERS = {
    "pdf": rb"%PDF-",
    "postscript": rb"%!PS",
    "mp4": rb".{4}ftyp",
    "webm": rb"\x1a\x45\xdf\xa3",
    "avi": rb"RIFF.{4}AVI ",
    "mpeg": rb"\0\0\x01[\xb3\xba]",
    "flv": rb"FLV\x01",
    "ogg": rb"OggS",
    "gzip": rb"\x1f\x8b",
    "zip": rb"PK\x03\x04",
    "svg": _PROLOGUE + rb"<svg[\s>]",
    "html": _PROLOGUE + rb"<(?:!doctype html|html|head|body|title|script|meta|div|p)\b",
    "xml": rb"(?:\xef\xbb\xbf)?\s*<\?xml",
    "json": rb"(?:\xef\xbb\xbf)?\s*[{\[]\s*[\"{\[\]}\d\-tfn]",
}
_MAGIC = {kind: re.compile(pattern, re.DOTALL) for kind, pattern in (_IMAGES | _OTHERS).items()}

_ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

SIDEWAYS = {UPRIGHT[turn] for turn in (5, 6, 7, 8)}
"""Those that swap width and height."""

HASHED_PX = 96
"""No side of a JPEG is decoded to less than this for its perceptual hash, which looks at 32 x 32."""


class StatusError(Exception):
    """Why a row has no result: `status` is one of `etl.tables.STATUSES`, `reason` is one printable line."""

    def __init__(self, status: str, reason: str) -> None:
        self.status, self.reason = status, one_line(reason)
        super().__init__(self.status, self.reason)

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


class ImageError(StatusError):
    """`empty_file`, `not_an_image`, `unsupported_format`, `too_many_pixels` or `decode_error`."""


class ImageFacts(NamedTuple):
    """What ingest keeps of an image."""

    format: str
    width_px: int
    height_px: int
    """Width and height as seen: after orientation."""
    phash: int
    """See `models/phash.py`."""


def one_line(text: str, limit: int = 200) -> str:
    """`text` as a reason: at most `limit` characters; what does not print (line ends, control, bidi) is a space, and
    where an object was in memory is left out, so that the same bytes have the same reason."""
    return "".join(char if char.isprintable() else " " for char in ADDRESS.sub("", text)[:limit]).strip()


def sha256_hex(data: bytes) -> str:
    """64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sniff(data: bytes) -> str:
    """What the first kilobyte says the bytes are: one of FORMATS, another kind ('avif', 'svg', 'mp4'…) or 'unknown'."""
    head = data[:1024]
    return next((kind for kind, magic in _MAGIC.items() if magic.match(head)), "unknown")


def decode_rgb(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: frozenset[str] = FORMATS,
    smallest_px: int | None = None,
) -> Image.Image:
    """The first frame, whole, upright, mode RGB, on white. `formats`: those of FORMATS that are allowed.

    `max_pixels` can lower Pillow's cap, not raise it. Decoding takes at most 20 bytes a pixel: 1.8 GB at the default.
    `smallest_px`: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as no side gets below this.

    Raises ImageError, and nothing else.
    """
    with _opened(data, max_pixels, formats) as image:
        if smallest_px is not None and image.format == "JPEG":
            image.draft(None, (smallest_px, smallest_px))
        image.load()  # not verify(): that passes a cut JPEG
        turn = UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def inspect(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Format, size and perceptual hash, from one decode, which is also the check that the file is whole.

    The hash is of `decode_rgb`'s pixels in grey; of a JPEG, of those that `draft("L", (96, 96))` decodes: its luma, at
    1/2, 1/4 or 1/8 of the size. All of the file is read for that, in less than half of the time. Raises ImageError.
    """
    from models.phash import phash  # numba: where pixels are read

    with _opened(data, max_pixels, FORMATS) as image:
        size_px = image.size
        if image.format == "JPEG":
            image.draft("L", (HASHED_PX, HASHED_PX))
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        seen = image if image.mode == "L" and not image.has_transparency_data else _to_rgb(image)
        if turn is not None:
            seen = seen.transpose(turn)
            size_px = size_px[::-1] if turn in SIDEWAYS else size_px
        return ImageFacts(sniff(data), *size_px, phash(seen))


def measure(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int]:
    """Format, width and height as the header has them, held against the caps; nothing is decoded. Raises ImageError."""
    with _opened(data, max_pixels, FORMATS) as image:
        return sniff(data), image.width, image.height


def orientation(data: bytes) -> int:
    """The turn that `decode_rgb` applies: EXIF's 1 (none) to 8. A PNG without EXIF may be decoded to find it.

    Raises ImageError where even the header does not parse.
    """
    with _opened(data, MAX_PIXELS, FORMATS) as image:
        return _orientation(image)


@contextmanager
def _opened(data: bytes, max_pixels: int, formats: frozenset[str]) -> Iterator[Image.Image]:
    """`_open`, with whatever goes wrong inside as an ImageError."""
    try:
        with _open(data, max_pixels, formats) as image:
            yield image
    except ImageError:
        raise
    except Exception as error:  # damaged data makes Pillow raise nearly anything
        raise ImageError("decode_error", f"{type(error).__name__}: {error}") from error


def _open(data: bytes, max_pixels: int, formats: frozenset[str]) -> Image.Image:
    """Header read by the one decoder that the magic bytes name, and held against the caps; no pixel decoded yet."""
    kind = sniff(data)
    if not data:
        raise ImageError("empty_file", "zero bytes")
    if kind not in FORMATS & formats:
        raise ImageError("unsupported_format" if kind in _IMAGES else "not_an_image", f"the bytes are {kind}")
    try:
        image = Image.open(io.BytesIO(data), formats=[kind.upper()])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError("too_many_pixels", str(error)) from error
    width_px, height_px = image.size
    if width_px * height_px > max_pixels or max(image.size) > MAX_SIDE_PX:
        caps = f"{max_pixels} pixels and {MAX_SIDE_PX} a side"
        raise ImageError("too_many_pixels", f"{width_px} x {height_px} pixels; the caps are {caps}")
    if not width_px * height_px:
        raise ImageError("decode_error", f"{width_px} x {height_px} pixels")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # as many kinds as there are ways to damage EXIF
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, by the table at the top of this file."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba)
    return rgb


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or float -> 8 bits; its transparent value becomes white."""
    values_HW = np.asarray(image).astype(np.float32)
    np.nan_to_num(values_HW, copy=False, posinf=0, neginf=0)
    is_clear_HW = values_HW == image.info.get("transparency", np.nan)
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _span(values_HW)
    values_HW -= low
    values_HW *= 255 / (high - low)
    values_HW += 0.5
    grey_HW = values_HW.astype(np.uint8)
    grey_HW[is_clear_HW] = 255
    return Image.fromarray(grey_HW)


def _span(values_HW: np.ndarray) -> tuple[float, float]:
    low, high = float(values_HW.min()), float(values_HW.max())
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return 0.0, top
    return low, high if high > low else low + 1
