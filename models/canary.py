"""Canaries: a few made-up images and captions whose vectors' cosines are kept beside the weights, and must come again.

What sha256 cannot see: a device, driver or library that computes something else, a tower that gives a constant.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.records import WeightsError

CANARIES = "canaries.json"
TOLERANCE = 0.02
"""On a cosine: bf16 and fp32, CPU and GPU differ by less."""
CONSTANT = 0.99999
"""A tower whose canaries are all closer than this says nothing of its input."""
CAPTIONS = (
    "a red barn under a blue sky",
    "two dogs run along the beach",
    "quarterly results of the steel industry",
    "blueprint of a sailing ship, 1912",
)


def images() -> list[Image.Image]:
    """Four pictures of 96 x 72 pixels: smooth fields of colour that follow from their number."""
    made = []
    for number in range(4):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
        made.append(Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC))
    return made


def write_canaries(folder: Path, encoder: Any) -> None:
    """Keeps the cosines beside the weights of `encoder` (a `models.encoder.Encoder` of the same folder).

    Raises:
        WeightsError: a tower gives no numbers, or the same for every input.
    """
    cosines = _cosines(encoder)
    for side, values in cosines.items():
        if not np.isfinite(values).all() or min(values) > CONSTANT:
            found = f"cosines {np.round(values, 5).tolist()}"
            raise WeightsError(wanted=f"{side} that differ in their vectors", found=found, fix="give other weights")
    whole = folder / f".{CANARIES}"
    whole.write_text(json.dumps({side: [round(float(v), 6) for v in values] for side, values in cosines.items()}))
    whole.replace(folder / CANARIES)


def check_canaries(folder: Path, encoder: Any) -> None:
    """Holds the cosines that `encoder` gives now against those kept; a folder without any is not checked.

    Raises:
        WeightsError: they differ by more than TOLERANCE.
    """
    if not (folder / CANARIES).is_file():
        return
    wanted, found = json.loads((folder / CANARIES).read_text()), _cosines(encoder)
    for side, values in wanted.items():
        off = np.abs(np.array(values) - found[side])
        if not (off <= TOLERANCE).all():  # NaN too
            raise WeightsError(
                wanted=f"canary {side} with cosines {values}",
                found=f"{np.round(found[side], 4).tolist()} on {encoder.device}",
                fix="check device, driver and library versions; results would not fit what is stored",
            )


def _cosines(encoder: Any) -> dict[str, np.ndarray]:
    return {
        "images": _pairs(encoder.encode_images, [encoder.preprocess(image) for image in images()]),
        "captions": _pairs(encoder.encode_texts, CAPTIONS),
    }


def _pairs(encode: Callable[[Any], np.ndarray], things: Sequence[Any]) -> np.ndarray:
    """Cosines of all pairs, float32."""
    vectors_ND = encode(list(things)).astype(np.float32)
    with np.errstate(all="ignore"):
        unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.array([unit_ND[a] @ unit_ND[b] for a, b in itertools.combinations(range(len(things)), 2)])
