"""Pillow's resize, bit for bit: any size and content, and the perceptual hash that follows from it."""

import io

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.images import inspect
from models.shrink import shrink

LANCZOS = Image.Resampling.LANCZOS


def rows_first(grey: Image.Image, size_px: int) -> Image.Image:
    """By Pillow, in two steps: it chooses the order of a single step by its version and the picture's shape."""
    return grey.resize((size_px, grey.height), LANCZOS).resize((size_px, size_px), LANCZOS)


def grey(width: int, height: int, kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width), dtype=np.uint8)
    if kind == "black and white":  # overshoots on both sides
        return ((rng.random((height, width)) < 0.5) * 255).astype(np.uint8)
    return np.full((height, width), seed % 256, np.uint8)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 700), st.integers(1, 700), st.sampled_from(["noise", "black and white", "flat"]),
    st.integers(0, 1000), st.sampled_from([32, 9]),
)  # fmt: skip
def test_a_picture_is_shrunk_as_pillow_does(width, height, kind, seed, size_px):
    pixels_HW = grey(width, height, kind, seed)
    wanted = np.asarray(rows_first(Image.fromarray(pixels_HW), size_px))
    np.testing.assert_array_equal(shrink(pixels_HW, size_px), wanted)


@pytest.mark.parametrize("size", [(1, 1), (9000, 3), (3, 9000), (32, 32), (32, 500), (500, 32), (31, 33), (4000, 3000)])
def test_odd_sizes(size):
    pixels_HW = grey(*size, "noise", 1)
    wanted = np.asarray(rows_first(Image.fromarray(pixels_HW), 32))
    np.testing.assert_array_equal(shrink(pixels_HW, 32), wanted)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (200, 900), (33, 31), (512, 512)])
def test_the_perceptual_hash_is_imagehashs_of_the_rows_first(size):
    noise = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photo.save(file, "PNG")
    wanted = str(imagehash.phash(rows_first(photo.convert("L"), 32)))
    assert f"{inspect(file.getvalue()).phash % 2**64:016x}" == wanted
