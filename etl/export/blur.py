"""Faces made unrecognisable in the images of an export, by the boxes in image_signals. Pure functions, and a join.

A box, with a tenth of its size more on every side, is averaged to CELLS x CELLS colours and drawn smoothly again: what
was in it cannot be computed back. The image is decoded for that, upright, and encoded again; others stay as they are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import UserError, content_hash, fold_hash
from etl.store import Store
from etl.tables import IMAGE_SIGNALS
from models.images import decode_rgb, sniff

CELLS = 4
MARGIN_FRACTION = 0.1
JPEG_QUALITY = 95


class Faces(NamedTuple):
    """`boxes`: (uid, face_boxes) of the pairs in which a model looked for faces; what they are, for the manifest."""

    boxes: DataFrame
    facts: dict[str, Any]


def find_faces(store: Store, dataset: str, chosen: DataFrame) -> Faces:
    """The boxes, of all models together, in pairs of `chosen` (uid). Raises UserError where no model looked."""
    looked = None
    if store.exists(dataset, IMAGE_SIGNALS):
        looked = store.read(dataset, IMAGE_SIGNALS).where("status = 'ok' AND face_boxes IS NOT NULL")
    models = [] if looked is None else looked.select("model", "model_version").distinct().orderBy("model").collect()
    if looked is None or not models:
        raise UserError(
            "--blur-faces: wanted face boxes in image_signals; found none; fix: image_models: [centerface], or "
            "stages.face_boxes.column of a release"
        )
    # Sorted, so that the same boxes give the same bytes.
    all_of = F.array_sort(F.array_distinct(F.flatten(F.collect_list("face_boxes"))))
    boxes = looked.groupBy("uid").agg(all_of.alias("face_boxes"))
    mine = chosen.select("uid").distinct().join(boxes, on="uid", how="left")
    hashed = mine.withColumn("boxes", F.to_json("face_boxes"))
    (counts,) = hashed.agg(
        F.count_if(F.size("face_boxes") > 0).alias("with_faces"), F.count_if(F.col("boxes").isNull()).alias("unknown"),
        *content_hash("uid", "boxes"),
    ).collect()  # fmt: skip
    facts = {
        "num_pairs_with_faces": counts["with_faces"], "num_pairs_not_looked_at": counts["unknown"],
        "models": [f"{row['model']}/{row['model_version']}" for row in models],
        "hash": fold_hash(counts["hash_high"], counts["hash_low"]),
    }  # fmt: skip
    return Faces(boxes, facts)


def without_faces(data: bytes, boxes: Sequence[Sequence[float]]) -> bytes:
    """An image with its faces unrecognisable. `boxes`: [left, top, right, bottom], fractions of the upright sides.

    JPEG stays JPEG; what is another format becomes a PNG. Raises ImageError.
    """
    kind, image = sniff(data), decode_rgb(data)
    for box in boxes:
        if (area := pixels(box, *image.size)) is not None:
            small = image.crop(area).resize((CELLS, CELLS), Image.Resampling.BOX)
            image.paste(small.resize((area[2] - area[0], area[3] - area[1]), Image.Resampling.BICUBIC), area)
    how: dict[str, Any] = {"quality": JPEG_QUALITY} if kind == "jpeg" else {}
    image.save(file := io.BytesIO(), "JPEG" if kind == "jpeg" else "PNG", **how)
    return file.getvalue()


def pixels(box: Sequence[float], width_px: int, height_px: int) -> tuple[int, int, int, int] | None:
    """left, top, right, bottom in the image, of the box with its margin; None where nothing of it is in there."""
    (left, right), (top, bottom) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    wide, high = MARGIN_FRACTION * (right - left), MARGIN_FRACTION * (bottom - top)
    area = (
        max(0, int((left - wide) * width_px)), max(0, int((top - high) * height_px)),
        min(width_px, int((right + wide) * width_px) + 1), min(height_px, int((bottom + high) * height_px) + 1),
    )  # fmt: skip
    return area if area[0] < area[2] and area[1] < area[3] else None
