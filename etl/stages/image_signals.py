"""What a vision model says of each picture (unsafe for work). Reads pairs and their shards. Writes image_signals.

It looks in the pass in which `embed` decodes the pixels for its encoders, with the settings of that stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.encode.lanes import TIMINGS, Columns, Reader
from etl.encode.readers import ReaderSpec
from etl.stage import Read, Shared, Stage
from etl.stages.embed import PassConfig, read_pixels, settings, taken
from etl.tables import IMAGE_SIGNALS, PAIRS
from models.nsfw import NsfwReader, NsfwRecord, prepare


class Config(PassConfig):
    model: str = ""
    """Known to a run only: name of the model."""
    model_version: str = ""
    """Known to a run only: first 16 hex digits of the sha256 over weights and record."""
    model_folder: Path = pydantic.Field(default=Path(), exclude=True)
    """Known to a run only: where executors find record and weights."""

    @property
    def reader(self) -> ReaderSpec:
        return NsfwSpec(str(self.model_folder))


@dataclass(frozen=True)
class NsfwSpec:
    """`models.nsfw` as a reader of the pass, by its folder."""

    folder: str

    @property
    def columns(self) -> dict[str, str]:
        return {"nsfw_score": "float"}

    def prepare(self) -> Callable[[Any], Any]:
        return partial(_prepare, record=NsfwRecord.read(Path(self.folder)))

    def load(self, device: str) -> Reader:
        return NsfwLane(_reader(self.folder, device))


def _prepare(image_CHW: Any, *, record: NsfwRecord) -> Any:
    return prepare(image_CHW.permute(1, 2, 0).numpy(), record)


@lru_cache(maxsize=2)
def _reader(folder: str, device: str) -> NsfwReader:
    """Loaded once per worker process."""
    return NsfwReader.load(Path(folder), device)


class NsfwLane:
    """Scores; one that is no number says so."""

    columns = ("nsfw_score",)
    num_oom_halvings = 0  # it does not halve: a batch that does not fit fails the task

    def __init__(self, model: NsfwReader) -> None:
        self._model, self.batch_size = model, model.record.batch_size

    def encode(self, images: list[Any]) -> list[float]:
        scores: list[float] = self._model.run(images).tolist()
        return scores

    def finish(self, results: list[float], texts: list[str]) -> Columns:
        is_valid = [math.isfinite(score) for score in results]
        return {
            "nsfw_score": [score if ok else None for score, ok in zip(results, is_valid, strict=True)],
            "status": ["ok" if ok else "invalid_output" for ok in is_valid],
            "status_reason": [None if ok else "the model gave no number" for ok in is_valid],
        }


def finish(passed: DataFrame, number: int, *, config: Config) -> DataFrame:
    """The rows of the model from a pass in which it is reader `number`."""
    boxes = F.lit(None).cast("array<array<float>>").alias("face_boxes")
    model, version = F.lit(config.model).alias("model"), F.lit(config.model_version).alias("model_version")
    return taken(passed, number, "nsfw_score").select(model, version, "*", boxes)


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    return finish(read_pixels(pairs, [config]), 0, config=config)


STAGE = Stage(
    "image_signals", reads={"pairs": Read(PAIRS)}, writes=(IMAGE_SIGNALS,), config=Config, transform=transform,
    resume="rows", version=1, shared=Shared(read_pixels, finish, settings, TIMINGS),
)  # fmt: skip
