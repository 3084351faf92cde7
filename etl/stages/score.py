"""Scores of one filter version. Reads the embeddings of its encoder. Writes scores: one row per pair, on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Read, Stage, StageConfig, series_udf
from etl.tables import EMBEDDINGS, SCORES
from models.filters import Filter


class Config(StageConfig):
    filter: str = "dfn"
    """Name of the filter."""
    chunk_rows: int = pydantic.Field(default=1_000_000, gt=0, exclude=True)
    """Rows per commit: minutes of work."""
    filter_version: str = ""
    """Known to a run only: first 16 hex digits of the sha256 over the filter's weights and record."""
    encoder: str = ""
    """Known to a run only: whose vectors the filter reads."""
    encoder_version: str = ""
    """Known to a run only."""
    without_npz: str = ""
    """Known to a run only: as in `features`. Pairs that had no vectors are scored when these have come."""
    filter_folder: Path = pydantic.Field(default=Path(), exclude=True)
    """Known to a run only: where the driver reads the filter. Its weights (a megabyte or two) travel with the tasks."""


def transform(embeddings: DataFrame, *, config: Config) -> DataFrame:
    filter_ = Filter.load(config.filter_folder)

    def score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        """Little-endian float16 vectors to float32 scores; NULL in or no number out gives NULL."""
        for images, texts in batches:
            is_there = (images.notna() & texts.notna()).to_numpy()
            scores = np.full(len(images), np.nan, np.float32)
            if is_there.any():
                scores[is_there] = filter_.score(float16(images[is_there]), float16(texts[is_there]))
            yield pd.Series(scores).astype(object).where(np.isfinite(scores), None)

    # Python: the weights are a model's, and one matrix product per Arrow batch beats any SQL expression.
    scored = series_udf(score, "float")("image_embedding", "text_embedding")
    is_ok = F.col("status") == "ok"
    return embeddings.withColumn("score", F.when(is_ok, scored)).select(
        F.lit(config.filter).alias("filter"),
        F.lit(config.filter_version).alias("filter_version"),
        "uid",
        "score",
        F.when(is_ok & F.col("score").isNotNull(), "ok")
        .when(is_ok, "invalid_output")
        .otherwise("no_vectors")
        .alias("status"),
    )


def float16(column: pd.Series) -> np.ndarray:
    """A column of equally long binaries as float16, shape (rows, dims)."""
    return np.frombuffer(b"".join(column), dtype="<f2").reshape(len(column), -1)


STAGE = Stage(
    "score", reads={"embeddings": Read(EMBEDDINGS)}, writes=(SCORES,), config=Config, transform=transform,
    resume="rows", version=2,
)  # fmt: skip
