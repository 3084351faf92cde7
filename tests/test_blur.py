"""Faces in images, made unrecognisable: what changes, and what does not. No Spark."""

import io

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from etl.export.blur import CELLS, pixels, without_faces


def array_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize(("box", "area"), [
    ([0.25, 0.25, 0.5, 0.5], (45, 22, 106, 53)), ([0.5, 0.5, 0.25, 0.25], (45, 22, 106, 53)),
    ([0, 0, 1, 1], (0, 0, 200, 100)),
    ([-0.5, 0.5, 0.1, 2.0], (0, 35, 33, 100)), ([1.2, 0.1, 1.4, 0.3], None), ([0.5, 0.5, 0.5, 0.5], (100, 50, 101, 51)),
])  # fmt: skip
def test_a_box_with_its_margin_in_pixels(box, area):
    assert pixels(box, 200, 100) == area


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_what_is_in_the_box_is_gone_and_the_rest_stays(kind):
    data = picture(3, (120, 80), kind)
    before, found = array_of(data), without_faces(data, [[0.25, 0.25, 0.5, 0.5], [2.0, 2.0, 3.0, 3.0]])
    after = array_of(found)
    assert Image.open(io.BytesIO(found)).format == ("JPEG" if kind == "JPEG" else "PNG")
    left, top, right, bottom = pixels([0.25, 0.25, 0.5, 0.5], 120, 80)
    inside = np.zeros(before.shape[:2], bool)
    inside[top:bottom, left:right] = True
    drift = np.abs(after - before)
    assert drift[~inside].max() == 0 if kind != "JPEG" else drift[~inside].mean() < 8
    face = after[top:bottom, left:right]
    assert before[top:bottom, left:right].std() > 40
    assert face.std() < 25  # noise, averaged
    rough = np.abs(np.diff(face, axis=1)).mean()
    assert rough < 6
    assert np.abs(np.diff(before, axis=1)).mean() > 12
    assert face.size / 20 > CELLS**2 * 3  # so many numbers are left of it


def test_a_turned_image_is_blurred_where_it_is_seen_and_has_no_metadata():
    image = Image.new("RGB", (60, 40), "black")
    image.paste("white", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret place"
    image.save(file := io.BytesIO(), "JPEG", exif=exif, quality=95)
    found = without_faces(file.getvalue(), [[0.75, 0.0, 1.0, 0.2]])  # the white corner, seen turned: top right
    seen = array_of(found)
    assert (Image.open(io.BytesIO(found)).size, b"secret" in found) == ((40, 60), False)
    assert array_of(without_faces(file.getvalue(), []))[2, 36].min() > 200
    assert 20 < seen[2, 36].min() < 250 or seen[8, 31].max() > 20


def test_the_same_boxes_give_the_same_bytes():
    data = picture(3, (60, 40), "JPEG")
    assert without_faces(data, [[0.1, 0.1, 0.3, 0.3]]) == without_faces(data, np.array([[0.1, 0.1, 0.3, 0.3]]))
