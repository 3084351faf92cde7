"""CenterFace on real photographs, its boxes against a slow reading of its maps, in any batch; its version."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from etl.cache import cache_folder
from etl.samples.corpora import fetch_weights
from etl.samples.packages import fetch_package
from models import faces
from models.faces import FaceReader, FacesRecord, Prepared, boxes_of
from models.onnx_session import WEIGHTS
from models.records import WeightsError

RECORD = FacesRecord(weights_sha256="0" * 64)
GRID = "python-sklearn-doc", "plot_face_recognition_1.png"
"""Package and picture: a plot of twelve press photographs, three rows of four, a face in each."""
ASTRONAUT = "python-skimage-doc", "sphx_glr_plot_face_detection_001.png"
DRAWN = [271, 107, 337, 174]
"""What another detector found in it, in pixels: the picture shows the box."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("faces") / "centerface"
    FacesRecord.build(fetch_weights("centerface"), out)
    return out


@pytest.fixture(scope="module")
def reader(folder):
    return FaceReader.load(folder)


def photo(package: str, name: str) -> np.ndarray:
    root = fetch_package(package, cache=cache_folder())
    (path,) = root.glob(f"**/_images/{name}")
    return np.asarray(Image.open(path).convert("RGB"))


def slow_boxes(heat, log_size, offset, picture, record) -> list[list[float]]:
    """Cell by cell, in double precision; of the boxes that overlap a surer one, none."""
    found = []
    for row, column in zip(*np.where(heat[0] > record.min_score), strict=True):
        centre_y = (row + float(offset[0, row, column]) + 0.5) * 4
        centre_x = (column + float(offset[1, row, column]) + 0.5) * 4
        high, wide = (4 * np.exp(float(log_size[n, row, column])) for n in (0, 1))
        box = [centre_x - wide / 2, centre_y - high / 2, centre_x + wide / 2, centre_y + high / 2]
        found.append((float(heat[0, row, column]), box))
    kept = []
    for _, box in sorted(found, reverse=True):
        if all(overlap(box, other) <= record.max_overlap for other in kept):
            kept.append(box)
    sides = [picture.width_px, picture.height_px] * 2
    cut = [[min(max(value / side, 0), 1) for value, side in zip(box, sides, strict=True)] for box in kept]
    return [box for box in cut if box[0] < box[2] and box[1] < box[3]]


def overlap(a, b) -> float:
    inside = [max(0, min(a[n + 2], b[n + 2]) - max(a[n], b[n])) for n in (0, 1)]
    area, areas = inside[0] * inside[1], [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return area / (sum(areas) - area)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_what_the_maps_say(seed):
    rng = np.random.default_rng(seed)
    heat = rng.random((1, 80, 80), np.float32) ** 8
    log_size, offset = rng.normal(1, 1, (2, 80, 80)), rng.normal(0, 0.5, (2, 80, 80))
    picture = Prepared(np.zeros((320, 320, 3), np.uint8), 320, 100 + 40 * seed)
    found = boxes_of(heat, log_size.astype(np.float32), offset.astype(np.float32), picture, RECORD)
    wanted = slow_boxes(heat, log_size.astype(np.float32), offset.astype(np.float32), picture, RECORD)
    assert 20 < len(wanted) < 900
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("place", "value"), [(0, np.nan), (0, np.inf), (1, np.nan), (1, 1000.0), (2, -np.inf)])
def test_maps_that_are_no_numbers_give_no_boxes(place, value):
    maps = [np.zeros((n, 80, 80), np.float32) for n in (1, 2, 2)]
    maps[0][0, 7, 9] = 0.9
    picture = Prepared(np.zeros((320, 320, 3), np.uint8), 320, 320)
    assert len(boxes_of(*maps, picture, RECORD)) == 1
    maps[place][0, 7, 9] = value
    assert boxes_of(*maps, picture, RECORD) is None


@pytest.mark.slow
def test_the_faces_of_photographs_are_found_where_they_are_and_hardly_one_where_there_is_none(reader):
    grid = reader.run([faces.prepare(photo(*GRID), reader.record)])[0]
    centres = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in grid]
    cells = {(int(x * 4), int(y * 3)) for x, y in centres}
    assert len(grid) == len(cells) == 12  # one in each cell
    (found,) = reader.run([faces.prepare(photo(*ASTRONAUT), reader.record)])[0]
    seen = [side * size for side, size in zip(found, (640, 480, 640, 480), strict=True)]
    assert overlap(seen, DRAWN) > 0.6, seen
    fruit = fetch_package("pysiogame", cache=cache_folder()).glob("**/art4apps/fruit_n_veg/*.jpg")
    still = [faces.prepare(np.asarray(Image.open(path).convert("RGB")), reader.record) for path in sorted(fruit)]
    num_wrong = sum(boxes != [] for boxes in reader.run(still))
    assert (len(still), num_wrong) == (48, 2)  # drawings; a face is seen in two


@pytest.mark.slow
def test_boxes_do_not_depend_on_who_came_with_it_nor_on_the_picture_s_size(reader):
    rng = np.random.default_rng(0)
    shapes = ((1, 1), (3, 900), (700, 40), (320, 320), (64, 64), (90, 300), (11, 13))
    noise = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in shapes]
    pictures = [photo(*GRID), *noise, photo(*ASTRONAUT)]
    prepared = [faces.prepare(picture, reader.record) for picture in pictures]
    together = reader.run(prepared)
    assert [len(together[0]), len(together[-1])] == [12, 1]
    assert [reader.run([one])[0] for one in prepared] == together
    assert reader.run(prepared[::-1])[::-1] == together
    assert reader.run([]) == []
    larger = Image.fromarray(pictures[-1]).resize((1920, 1440), Image.Resampling.BICUBIC)
    (again,) = reader.run([faces.prepare(np.asarray(larger), reader.record)])
    np.testing.assert_allclose(again, together[-1], atol=0.02)


def test_the_version_is_that_of_weights_and_settings(folder):
    fields = {
        "name": "centerface", "size_px": 320, "interpolation": "bilinear", "min_score": 0.3, "max_overlap": 0.3,
        "batch_size": 8, "weights_sha256": "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
    }  # fmt: skip
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert FacesRecord.read(folder).version == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_cut_weights_are_refused_and_so_is_what_is_no_picture(folder, reader, tmp_path):
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    FacesRecord.read(folder).write(tmp_path)
    with pytest.raises(WeightsError, match=r"model\.onnx with sha256 09189dea"):
        FaceReader.load(tmp_path)
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="wanted uint8 of shape HW3; found"):
            faces.prepare(wrong, reader.record)
    with pytest.raises(ValueError, match=r"wanted uint8 of \(320, 320, 3\); found uint8 of \(8, 8, 3\)"):
        reader.run([Prepared(np.zeros((8, 8, 3), np.uint8), 8, 8)])
