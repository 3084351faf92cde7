"""The pairs that a page shows, and thumbnails of their pictures. Touches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000
MAX_THUMBNAIL_BYTES = 64 << 10
"""Of 60 thumbnails on a page: 5 MB, as base64."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # and no others: an EPS would start Ghostscript


@dataclass(frozen=True)
class PairShown:
    uid: str
    caption: str
    score: float | None
    thumbnail_png: bytes | None
    is_true: bool | None
    """Planted truth: does the caption belong to the picture? None when unknown."""


def thumbnail(data: bytes, size_px: int = 96, max_bytes: int = MAX_THUMBNAIL_BYTES) -> bytes | None:
    """A small PNG, composited on white; None for what Pillow refuses, a format not listed, or over 50 Mpx.

    Smaller than `size_px` where it would else be larger than `max_bytes`.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            opened.draft("RGB", (2 * size_px, 2 * size_px))  # JPEG only: decodes at a fraction of the size
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = image.point(lambda value: value / 256).convert("L")
            image = image.convert("RGBA")
        while len(png := _png(image, size_px)) > max_bytes:
            size_px = size_px * 2 // 3
    except Exception:  # Pillow's plugins raise exceptions of every kind on broken bytes
        return None
    return png


def _png(image: Image.Image, size_px: int) -> bytes:
    small = image.copy()
    small.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
    canvas = Image.new("RGB", small.size, "white")  # a new image, so that no metadata comes along
    canvas.paste(small, mask=small)
    canvas.save(out := BytesIO(), "PNG", optimize=True)
    return out.getvalue()
