"""Models that look at pictures alone, as readers of the pass: what each gives, how it is built and how it travels.

Touches the cache, and the models' folders (reads).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from etl.cache import cache_folder
from etl.encode.lanes import Columns, Reader
from etl.samples import corpora
from models import faces, nsfw
from models.onnx_session import OnnxRecord
from models.records import RECORD

SIGNALS = {"nsfw_score": "float", "face_boxes": "array<array<float>>"}
"""Columns of image_signals that a model can fill, and their Spark types."""


@dataclass(frozen=True)
class ImageModel:
    """One of MODELS: its module's parts, and the column that it fills."""

    signal: str
    record: type[OnnxRecord]
    prepare: Callable[[Any, Any], Any]
    load: Callable[[Path, str], Any]
    values: Callable[[Any], Iterable[Any]] = iter
    """What the model's `run` gives -> a value per picture, None where it is none."""


def _numbers(scores_N: Any) -> list[float | None]:
    return [score if math.isfinite(score) else None for score in scores_N.tolist()]


MODELS = {
    "open_nsfw": ImageModel("nsfw_score", nsfw.NsfwRecord, nsfw.prepare, nsfw.NsfwReader.load, _numbers),
    "centerface": ImageModel("face_boxes", faces.FacesRecord, faces.prepare, faces.FaceReader.load),
}


def fetched(name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The fields by which a stage's config names a model of MODELS, in a folder built once and kept in the cache."""
    out = cache_folder() / "encoders" / name
    if not (out / RECORD).exists():
        MODELS[name].record.build(corpora.fetch_weights(name, say=say), out)
    return {"model": name, "model_version": MODELS[name].record.read(out).version, "model_folder": out}


@dataclass(frozen=True)
class ImageModelSpec:
    """A model of MODELS as a reader of the pass, by its folder."""

    name: str
    folder: str

    @property
    def columns(self) -> dict[str, str]:
        signal = MODELS[self.name].signal
        return {signal: SIGNALS[signal]}

    def prepare(self) -> Callable[[Any], Any]:
        return partial(_prepare, name=self.name, record=MODELS[self.name].record.read(Path(self.folder)))

    def load(self, device: str) -> Reader:
        return ImageModelReader(self.name, _loaded(self.name, self.folder, device))


def _prepare(image_CHW: Any, *, name: str, record: OnnxRecord) -> Any:
    return MODELS[name].prepare(image_CHW.permute(1, 2, 0).numpy(), record)


@lru_cache(maxsize=4)
def _loaded(name: str, folder: str, device: str) -> Any:
    """Loaded once per worker process."""
    return MODELS[name].load(Path(folder), device)


class ImageModelReader:
    """What one model sees; where it gave no number the row says so."""

    num_oom_halvings = 0  # it does not halve: a batch that does not fit fails the task

    def __init__(self, name: str, model: Any) -> None:
        self._kind, self._model, self.batch_size = MODELS[name], model, model.record.batch_size
        self.columns = (self._kind.signal,)

    def encode(self, images: list[Any]) -> list[Any]:
        return list(self._kind.values(self._model.run(images)))

    def finish(self, results: Sequence[Any], texts: list[str]) -> Columns:
        is_valid = [value is not None for value in results]
        return {
            self._kind.signal: list(results),
            "status": ["ok" if ok else "invalid_output" for ok in is_valid],
            "status_reason": [None if ok else "the model gave no number" for ok in is_valid],
        }
