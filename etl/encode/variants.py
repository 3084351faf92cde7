"""An encoder's look at edited copies of a picture, as a reader of the pass: how they are made, hashed and encoded.

Touches the encoder's folder (reads). What a copy looks like in a pool is what `ingest` and `embed` make of its file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from etl.encode.lanes import Columns, Reader
from etl.encode.readers import encoder, halves
from models.records import EncoderRecord

LOOKED = {"phashes": "array<bigint>", "image_embeddings": "array<binary>"}
SIDE_PX = 512
"""Larger pictures are made smaller before they are edited: towers and hashes see no more."""


class Prepared(NamedTuple):
    """Of each edit of a picture."""

    phashes: list[int]
    pixels: list[Any]


@dataclass(frozen=True)
class VariantsSpec:
    """The encoder in `folder`, and the edits, of `models.edits.VARIANTS`, in this order."""

    folder: str
    edits: tuple[str, ...]

    @property
    def columns(self) -> dict[str, str]:
        return LOOKED

    def prepare(self) -> Callable[[Any], Prepared]:
        record = EncoderRecord.read(Path(self.folder))
        return partial(prepared, edits=self.edits, preprocessing=record.preprocessing)

    def load(self, device: str) -> Reader:
        return VariantsReader(encoder(self.folder, device), len(self.edits))


def prepared(image_CHW: Any, *, edits: Sequence[str], preprocessing: Any) -> Prepared:
    from PIL import Image

    from models.edits import VARIANTS
    from models.images import inspect
    from models.pixels import preprocess

    picture = Image.fromarray(np.ascontiguousarray(image_CHW.permute(1, 2, 0).numpy()))
    picture.thumbnail((SIDE_PX, SIDE_PX))
    files = [VARIANTS[name](picture) for name in edits]
    return Prepared([inspect(data).phash for data in files], [preprocess(data, preprocessing) for data in files])


class VariantsReader:
    """Hashes and float16 vectors of a picture's copies. A row without a number says so."""

    columns = tuple(LOOKED)

    def __init__(self, model: Any, num_edits: int) -> None:
        self._model, self._num_edits = model, num_edits
        self.batch_size = max(1, model.record.batch_size // num_edits)

    @property
    def num_oom_halvings(self) -> int:
        return int(self._model.num_oom_halvings)

    def encode(self, images: list[Prepared]) -> list[tuple[list[int], np.ndarray]]:
        vectors_NI = self._model.encode_images([pixels for image in images for pixels in image.pixels])
        of_each = vectors_NI.reshape(len(images), self._num_edits, -1)
        return [(image.phashes, vectors_VI) for image, vectors_VI in zip(images, of_each, strict=True)]

    def finish(self, results: list[Any], texts: list[str]) -> Columns:
        from models.filters import check_vectors

        is_valid = [bool(check_vectors(vectors_VI).all()) for _, vectors_VI in results]
        reason = "the model gave NaN, infinity or zeros"
        return {
            "phashes": [phashes if ok else None for (phashes, _), ok in zip(results, is_valid, strict=True)],
            "image_embeddings": [
                halves(vectors_VI, np.ones(self._num_edits, bool)) if ok else None
                for (_, vectors_VI), ok in zip(results, is_valid, strict=True)
            ],
            "status": ["ok" if ok else "invalid_output" for ok in is_valid],
            "status_reason": [None if ok else reason for ok in is_valid],
        }
