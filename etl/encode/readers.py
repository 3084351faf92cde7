"""The encoder as a model of the pass: how it travels to executors, and what it makes of images and captions there.

Touches the encoder's folder (reads). Another model is one more pair of classes like these: see `image_models.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from etl.encode.lanes import Columns, Reader
from models.records import EncoderRecord

EMBEDDED = {"image_embedding": "binary", "text_embedding": "binary", "cosine": "float"}


class ReaderSpec(Protocol):
    """A reader before it is loaded: what travels to executors."""

    @property
    def columns(self) -> dict[str, str]:
        """Name -> Spark type of what it gives, beside STATUS."""

    def prepare(self) -> Callable[[Any], Any]:
        """A picklable function: a decoded image, uint8 CHW -> what `encode` takes. Called from several threads."""

    def load(self, device: str) -> Reader:
        """Called once per worker process and device."""


@dataclass(frozen=True)
class EncoderSpec:
    """An encoder of `models.encoder`, by its folder."""

    folder: str

    @property
    def columns(self) -> dict[str, str]:
        return EMBEDDED

    def prepare(self) -> Callable[[Any], Any]:
        from models.pixels import resize

        return partial(resize, config=EncoderRecord.read(Path(self.folder)).preprocessing)

    def load(self, device: str) -> Reader:
        return EncoderReader(encoder(self.folder, device))


@lru_cache(maxsize=4)
def encoder(folder: str, device: str) -> Any:
    """The encoder, loaded once per worker process. Its weights are checked by sha256 before the first row."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from models.encoder import Encoder

    return Encoder.load(Path(folder), device=device)


class EncoderReader:
    """Image and text vectors, float16, and their cosine. A row without a number says so."""

    columns = tuple(EMBEDDED)

    def __init__(self, model: Any) -> None:
        self._model, self.batch_size = model, model.record.batch_size

    @property
    def num_oom_halvings(self) -> int:
        return int(self._model.num_oom_halvings)

    def encode(self, images: list[Any]) -> np.ndarray:
        vectors_NI: np.ndarray = self._model.encode_images(images)
        return vectors_NI

    def finish(self, results: list[Any], texts: list[str]) -> Columns:
        from models.filters import check_vectors

        record = self._model.record
        image_vectors_NI = np.stack(results) if results else np.empty((0, record.image_dim), np.float32)
        text_vectors_NT = self._model.encode_texts(texts)
        is_valid = check_vectors(image_vectors_NI) & check_vectors(text_vectors_NT)
        cosines = cosine(image_vectors_NI, text_vectors_NT) if record.shares_space else [None] * len(texts)
        reason = "the model gave NaN, infinity or zeros"
        return {
            "image_embedding": halves(image_vectors_NI, is_valid),
            "text_embedding": halves(text_vectors_NT, is_valid),
            "cosine": [value if ok else None for value, ok in zip(cosines, is_valid, strict=True)],
            "status": ["ok" if ok else "invalid_output" for ok in is_valid],
            "status_reason": [None if ok else reason for ok in is_valid],
        }


def halves(vectors_ND: np.ndarray, is_valid_N: np.ndarray) -> list[bytes | None]:
    """Little-endian float16, as tables store them."""
    return [vector.astype("<f2").tobytes() if ok else None for vector, ok in zip(vectors_ND, is_valid_N, strict=True)]


def cosine(left_ND: np.ndarray, right_ND: np.ndarray) -> list[float | None]:
    """Row by row, in float32 after normalising; None where there is no number."""
    left, right = left_ND.astype(np.float32), right_ND.astype(np.float32)
    with np.errstate(all="ignore"):
        found = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return [float(value) if np.isfinite(value) else None for value in found]
