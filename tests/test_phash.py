"""Pillow's grey and its resize, bit for bit: any size and content, and the perceptual hash that follows from it."""

import io

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.images import inspect
from models.phash import shrink

LANCZOS = Image.Resampling.LANCZOS


def rows_first(image: Image.Image, size_px: int) -> Image.Image:
    """By Pillow, in two steps: it chooses the order of a single step by its version and the picture's shape."""
    return image.convert("L").resize((size_px, image.height), LANCZOS).resize((size_px, size_px), LANCZOS)


def picture(width: int, height: int, kind: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if kind == "black and white":  # overshoots on both sides
        return Image.fromarray(((rng.random((height, width)) < 0.5) * 255).astype(np.uint8)).convert("RGB")
    return Image.new("RGB", (width, height), (seed % 256, seed * 7 % 256, seed * 31 % 256))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 700), st.integers(1, 700), st.sampled_from(["noise", "black and white", "flat"]),
    st.integers(0, 1000), st.sampled_from([32, 9]),
)  # fmt: skip
def test_a_picture_is_shrunk_as_pillow_does(width, height, kind, seed, size_px):
    image = picture(width, height, kind, seed)
    np.testing.assert_array_equal(shrink(image, size_px), np.asarray(rows_first(image, size_px)))


@pytest.mark.parametrize("size", [(1, 1), (9000, 3), (3, 9000), (32, 32), (32, 500), (500, 32), (31, 33), (4000, 3000)])
def test_odd_sizes(size):
    image = picture(*size, "noise", 1)
    np.testing.assert_array_equal(shrink(image, 32), np.asarray(rows_first(image, 32)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_a_picture_that_is_not_of_rgb_is_made_so(mode):
    image = picture(70, 50, "noise", 1).convert(mode)
    np.testing.assert_array_equal(shrink(image, 32), np.asarray(rows_first(image.convert("RGB"), 32)))


def test_every_colour_is_turned_to_grey_as_pillow_does():
    """Where the picture has the size wanted, nothing else is done."""
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    colours_N3 = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    for start in range(0, len(colours_N3) - 1024, 1024):
        image = Image.fromarray(colours_N3[start : start + 1024].reshape(32, 32, 3))
        np.testing.assert_array_equal(shrink(image, 32), np.asarray(image.convert("L")))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (200, 900), (33, 31), (512, 512)])
def test_the_perceptual_hash_is_imagehashs_of_the_rows_first(size):
    noise = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    photo.save(file, "PNG")
    wanted = str(imagehash.phash(rows_first(photo, 32)))
    assert f"{inspect(file.getvalue()).phash % 2**64:016x}" == wanted
