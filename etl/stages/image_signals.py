"""What a vision model says of each picture: unsafe for work, faces. Reads pairs and their shards. Writes image_signals.

It looks in the pass in which `embed` decodes the pixels for its encoders, with the settings of that stage.
"""

from __future__ import annotations

from pathlib import Path

import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.encode.image_models import SIGNALS, ImageModelSpec
from etl.encode.lanes import TIMINGS
from etl.encode.readers import ReaderSpec
from etl.stage import Read, Shared, Stage
from etl.stages.embed import PassConfig, read_pixels, settings, taken
from etl.tables import IMAGE_SIGNALS, PAIRS


class Config(PassConfig):
    model: str = ""
    """Known to a run only: name of the model."""
    model_version: str = ""
    """Known to a run only: first 16 hex digits of the sha256 over weights and record."""
    model_folder: Path = pydantic.Field(default=Path(), exclude=True)
    """Known to a run only: where executors find record and weights."""

    @property
    def reader(self) -> ReaderSpec:
        return ImageModelSpec(self.model, str(self.model_folder))


def finish(passed: DataFrame, number: int, *, config: Config) -> DataFrame:
    """The rows of the model from a pass in which it is reader `number`."""
    given = config.reader.columns
    model, version = F.lit(config.model).alias("model"), F.lit(config.model_version).alias("model_version")
    others = [F.lit(None).cast(kind).alias(name) for name, kind in SIGNALS.items() if name not in given]
    return taken(passed, number, *given).select(model, version, "*", *others)


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    return finish(read_pixels(pairs, [config]), 0, config=config)


STAGE = Stage(
    "image_signals", reads={"pairs": Read(PAIRS)}, writes=(IMAGE_SIGNALS,), config=Config, transform=transform,
    resume="rows", version=1, shared=Shared(read_pixels, finish, settings, TIMINGS),
)  # fmt: skip
