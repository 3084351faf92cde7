"""Bytes of an image -> what a tower takes: decoded, resized, uint8. The hot path of the encode pass; touches no file.

JPEGs of the usual kind are decoded by torchvision, straight into a tensor; what it refuses, and every other format, by
Pillow through `models.images`, whose caps and conversions hold for both. Resizing is torch's antialiased one, at a
third of the cost of Pillow's. On photos 99.4-99.6 % of its bytes are Pillow's and the rest off by one or two; where an
image shrinks much in height alone, 83 %, and up to 8 off.

Dimensions: C channels (R, G, B), H height, W width, S side of the tower's input.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from models.images import MAX_PIXELS, MAX_SIDE_PX, UPRIGHT, ImageError, decode_rgb, orientation
from models.records import Preprocessing

Pixels = NDArray[np.uint8]
"""A preprocessed image: shape CSS, contiguous."""

LONGEST_WHOLE = 4
"""A side up to this many times the shorter one is resized whole and then cut, as open_clip does; of longer ones only
what the cut keeps is resized: of a strip of 1 x 65,535 pixels the whole would be 10 GB."""

_SOF, _SOS, _APP1 = {0xC0, 0xC1, 0xC2}, 0xDA, 0xE1
_RESAMPLE = {"bicubic": torch.ops.aten._upsample_bicubic2d_aa, "bilinear": torch.ops.aten._upsample_bilinear2d_aa}
_SUPPORT = {"bicubic": 2, "bilinear": 1}


class JpegHeader(NamedTuple):
    """What the markers before the first scan say."""

    width_px: int
    height_px: int
    num_components: int
    has_app1: bool
    """EXIF or XMP, which may hold an orientation."""


def preprocess(data: bytes, config: Preprocessing, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The bytes of a file at the tower's size. Raises ImageError, and nothing else."""
    return resize(decode(data, max_pixels=max_pixels, smallest_px=_smallest(config)), config)


def _smallest(config: Preprocessing) -> int | None:
    return config.size_px if config.decode == "scaled" else None


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, smallest_px: int | None = None) -> Tensor:
    """The image upright, on white: uint8, shape CHW, channels last in memory.

    Args:
        smallest_px: a JPEG at least twice as large is decoded at 1/2, 1/4 or 1/8 of its size, no side below this.
            Faster, and other pixels: an encoder's record names it (`decode: scaled`). None: exact.

    Raises:
        ImageError: see `models.images`; nothing else.
    """
    header = read_jpeg_header(data) if smallest_px is None else None
    if header is not None and _fits(header, max_pixels):
        turn = UPRIGHT.get(orientation(data)) if header.has_app1 else None
        try:
            image_CHW = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        except RuntimeError:  # torchvision's verdict is not the row's: Pillow's is, which says why
            pass
        else:
            return image_CHW if turn is None else _turned(image_CHW, turn)
    return from_pil(decode_rgb(data, max_pixels=max_pixels, smallest_px=smallest_px))


def from_pil(image: Image.Image) -> Tensor:
    """An RGB image as `decode` gives it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Read without a decoder. None unless it is a JPEG of 8 bits, 1 or 3 components, baseline or progressive."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, has_app1 = 2, False
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SOF:
            height_px, width_px = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            is_usual = data[at + 4] == 8 and data[at + 9] in (1, 3)
            return JpegHeader(width_px, height_px, data[at + 9], has_app1) if is_usual else None
        if marker == _SOS:
            return None
        has_app1 |= marker == _APP1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _fits(header: JpegHeader, max_pixels: int) -> bool:
    num_pixels = header.width_px * header.height_px
    return 0 < num_pixels <= min(max_pixels, MAX_PIXELS) and max(header.width_px, header.height_px) <= MAX_SIDE_PX


def _turned(image_CHW: Tensor, turn: Image.Transpose) -> Tensor:
    return from_pil(Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).transpose(turn))


def resize(image_CHW: Tensor, config: Preprocessing) -> Pixels:
    """An image at the tower's size: uint8, shape CSS, contiguous.

    shortest has open_clip's geometry: the shorter side to S, the longer one to int(S x long / short), then the centre.
    """
    size, (height, width) = config.size_px, image_CHW.shape[1:]
    if config.resize == "squash":
        return _resampled(image_CHW, config, (size, size), (0, 0))
    shorter = min(height, width)
    if max(height, width) > LONGEST_WHOLE * shorter:
        return _resize_box(image_CHW, config)
    scaled = (int(size * height / shorter), int(size * width / shorter))
    top, left = (round((side - size) / 2) for side in scaled)
    return _resampled(image_CHW, config, scaled, (top, left))


def _resampled(image_CHW: Tensor, config: Preprocessing, scaled: tuple[int, int], corner: tuple[int, int]) -> Pixels:
    """S x S from `corner` of the image resized to `scaled`. What lies below and right of that is not computed."""
    size, sides = config.size_px, image_CHW.shape[1:]
    ends = [min(side, at + size) for side, at in zip(scaled, corner, strict=True)]
    if scaled != tuple(sides):
        reach = [_SUPPORT[config.interpolation] * max(1, side / to) + 2 for side, to in zip(sides, scaled, strict=True)]
        needed = [
            min(side, int(end * side / to + more))
            for side, to, end, more in zip(sides, scaled, ends, reach, strict=True)
        ]
        scales = [to / side for side, to in zip(sides, scaled, strict=True)]
        part_1CHW = image_CHW[None, :, : needed[0], : needed[1]]
        image_CHW = _RESAMPLE[config.interpolation](part_1CHW, ends, False, *scales)[0]
    cut_CHW = image_CHW[:, corner[0] : ends[0], corner[1] : ends[1]]
    return np.ascontiguousarray(cut_CHW.numpy())  # torch resizes into planes: this copies rows, and transposes nothing


def _resize_box(image_CHW: Tensor, config: Preprocessing) -> Pixels:
    """The centre square of a strip, by one resize from a box: a few grey levels from open_clip's at most."""
    size, sides = config.size_px, tuple(image_CHW.shape[1:])
    scaled = [int(size * side / min(sides)) for side in sides]
    corner = [round((side - size) / 2) for side in scaled]
    y, x = (side / to for side, to in zip(sides, scaled, strict=True))
    box = (corner[1] * x, corner[0] * y, (corner[1] + size) * x, (corner[0] + size) * y)
    image = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
    resized = image.resize((size, size), Image.Resampling[config.interpolation.upper()], box=box)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


__all__ = ["ImageError", "JpegHeader", "Pixels", "decode", "from_pil", "preprocess", "read_jpeg_header", "resize"]
