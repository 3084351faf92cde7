"""Edits of pictures: what each does to known pixels, and that none fails on odd sizes."""

import io

import numpy as np
import pytest
from PIL import Image

from models.edits import EDITS, VARIANTS

ALL = {f"{kind} {strength}": edit for kind, some in EDITS.items() for strength, edit in some.items()} | VARIANTS


def made(name: str, image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(ALL[name](image)))


def test_there_are_ten_kinds_of_edit_and_thirty_edits():
    assert len(EDITS) == 10 and len(ALL) - len(VARIANTS) == 30


def quarters() -> Image.Image:
    """100 x 80: black, red, green and blue, row by row."""
    pixels_HW3 = np.zeros((80, 100, 3), np.uint8)
    for colour, (y, x) in enumerate(((0, 50), (40, 0), (40, 50))):
        pixels_HW3[y : y + 40, x : x + 50, colour] = 255
    return Image.fromarray(pixels_HW3)


def near(colour: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 30


BLACK, WHITE, RED, GREEN, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(("name", "size", "corners"), [
    ("recompress png", (100, 80), (BLACK, RED, GREEN, BLUE)),
    ("recompress jpeg 20", (100, 80), (BLACK, RED, GREEN, BLUE)),
    ("resize x 0.5", (50, 40), (BLACK, RED, GREEN, BLUE)),
    ("crop 20%", (80, 64), (BLACK, RED, GREEN, BLUE)),
    ("flip left-right", (100, 80), (RED, BLACK, BLUE, GREEN)),
    ("flip upside down", (100, 80), (GREEN, BLUE, BLACK, RED)),
    ("grey all", (100, 80), (BLACK, (76,) * 3, (150,) * 3, (29,) * 3)),
    ("border 10% white", (120, 100), (WHITE, WHITE, WHITE, WHITE)),
    ("border 10% black", (120, 100), (BLACK, BLACK, BLACK, BLACK)),
    ("text 20% high", (100, 80), (BLACK, RED, GREEN, BLUE)),
    ("rotate 90 degrees", (80, 100), (RED, BLUE, BLACK, GREEN)),
    ("recompressed", (100, 80), (BLACK, RED, GREEN, BLUE)),
    ("mirrored", (100, 80), (RED, BLACK, BLUE, GREEN)),
    ("upside down", (100, 80), (GREEN, BLUE, BLACK, RED)),
    ("turned left", (80, 100), (RED, BLUE, BLACK, GREEN)),
    ("turned right", (80, 100), (GREEN, BLACK, BLUE, RED)),
    ("tilted", (112, 94), (WHITE, WHITE, WHITE, WHITE)),
    ("cropped", (84, 68), (BLACK, RED, GREEN, BLUE)),
    ("white border", (110, 90), (WHITE, WHITE, WHITE, WHITE)),
    ("black border", (110, 90), (BLACK, BLACK, BLACK, BLACK)),
    ("brightness x 0.4", (100, 80), (BLACK, (102, 0, 0), (0, 102, 0), (0, 0, 102))),
])  # fmt: skip
def test_an_edit_does_what_it_says(name, size, corners):
    image = made(name, quarters())
    width, height = image.size
    seen = [image.convert("RGB").getpixel((x, y)) for y in (3, height - 4) for x in (3, width - 4)]
    assert image.size == size and all(map(near, seen, corners)), seen


def test_text_lies_across_the_middle_and_blur_takes_edges_away():
    pixels_HW3 = np.asarray(made("text 20% high", Image.new("RGB", (100, 80), "red")))
    middle = pixels_HW3[32:48]
    assert (middle < 60).all(axis=-1).any() and (middle > 200).all(axis=-1).any()
    assert (pixels_HW3[:28] == [254, 0, 0]).all()
    rows = [np.asarray(made(f"blur {r} px", quarters()))[60, :, 1].astype(int) for r in (1, 3, 8)]
    steps = [np.abs(np.diff(row)).max() for row in rows]
    assert 255 > steps[0] > steps[1] > steps[2] > 0


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 300), (300, 1), (7, 5)])
def test_no_edit_fails_on_a_tiny_picture(size):
    for name in ALL:
        assert min(made(name, Image.new("RGB", size, "red")).size) >= 1
