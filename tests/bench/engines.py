"""The other sides with an engine, a null model at the end: Spark as it is usually written, and Daft.

All read the same images: bytes in a parquet file, except for Spark's documented pattern, which reads files.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pyspark.sql import SparkSession
from torchvision.transforms import v2 as vision

from etl.stage import series_udf
from tests.bench.data import Data
from tests.bench.measure import MissingError, Side
from tests.bench.ours import run
from tests.bench.peers import SIZE_PX

MEAN_C11 = np.array([0.48145466, 0.4578275, 0.40821073], np.float32).reshape(3, 1, 1)
STD_C11 = np.array([0.26862954, 0.26130258, 0.27577711], np.float32).reshape(3, 1, 1)
ROWS_A_BATCH = "spark.sql.execution.arrow.maxRecordsPerBatch"


def pillow_tensor(data: bytes) -> np.ndarray:
    """Decoded, the shorter side to 224 px, the centre, normalised: float32 CHW."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SIZE_PX / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - SIZE_PX) // 2 for side in image.size)
    image = image.crop((left, top, left + SIZE_PX, top + SIZE_PX))
    pixels_CHW = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    return (pixels_CHW - MEAN_C11) / STD_C11


def null_scores(pixels_BCHW: np.ndarray) -> np.ndarray:
    return np.ones(len(pixels_BCHW), np.float32)


@contextlib.contextmanager
def rows_a_batch(spark: SparkSession, number: int) -> Iterator[None]:
    """Arrow batches of so many rows: the default of 10,000 would hold 6 GB of floats."""
    before = spark.conf.get(ROWS_A_BATCH)
    spark.conf.set(ROWS_A_BATCH, str(number))
    yield
    spark.conf.set(ROWS_A_BATCH, before)


def fused_pandas_udf(spark: SparkSession, data: Data) -> Side:
    """Everything in one iterator pandas UDF over a column of bytes: the best of what guides to Spark show."""

    def score(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for batch in batches:
            yield pd.Series(null_scores(np.stack([pillow_tensor(data) for data in batch])))

    udf = series_udf(score, "float")

    def side() -> float:
        with rows_a_batch(spark, 256):
            run(spark.read.parquet(str(data.bytes_file)).select(udf("image")))
        return len(data.pairs)

    return side


def spark_pattern(spark: SparkSession, data: Data, num_images: int) -> Side:
    """The documented pattern: binaryFile, one row a file; pixels as array<float>; a second UDF."""

    def decode(batch: pd.Series) -> pd.Series:
        return pd.Series([pillow_tensor(data).ravel() for data in batch])

    def score(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for batch in batches:
            yield pd.Series(null_scores(np.stack(batch.to_list()).reshape(-1, 3, SIZE_PX, SIZE_PX)))

    # Of two kinds, so that Spark does not chain them in one worker: pixels go through the JVM, as they do on a cluster.
    decode_udf, score_udf = series_udf(decode, "array<float>"), series_udf(score, "float")
    paths = [str(path) for path in data.files[:num_images]]

    def side() -> float:
        with rows_a_batch(spark, 64):
            pixels = spark.read.format("binaryFile").load(paths).select(decode_udf("content").alias("pixels"))
            run(pixels.select(score_udf("pixels")))
        return len(paths)

    return side


def daft_module() -> Any:
    """Daft, quiet. Raises MissingError where the group `bench` is not installed."""
    if find_spec("daft") is None:
        raise MissingError("daft is not installed (uv sync --group bench --inexact)")
    os.environ.update(DAFT_PROGRESS_BAR="0", DO_NOT_TRACK="1", DAFT_ANALYTICS_ENABLED="0")
    import daft

    return daft


def daft_version() -> str:
    return f"Daft {version('daft')}" if find_spec("daft") else "Daft is not installed"


def daft_pattern(data: Data) -> Side:
    """Its own image benchmark's form: native decode, torchvision's transform row by row, a model in a class UDF."""

    def side() -> float:
        daft = daft_module()
        tensor = daft.DataType.tensor(daft.DataType.float32(), (3, SIZE_PX, SIZE_PX))
        steps = [vision.ToImage(), vision.Resize(SIZE_PX, vision.InterpolationMode.BICUBIC, antialias=True)]
        steps += [vision.CenterCrop(SIZE_PX), vision.ToDtype(torch.float32, scale=True)]
        transform = vision.Compose([*steps, vision.Normalize(MEAN_C11.ravel().tolist(), STD_C11.ravel().tolist())])

        @daft.func(return_dtype=tensor)
        def transformed(image: np.ndarray):
            return transform(image).numpy()

        frame = daft.read_parquet(str(data.bytes_file))
        frame = frame.with_column("image", daft.functions.decode_image(daft.col("image"), mode="RGB"))
        return _scored(daft, frame.with_column("image", transformed(daft.col("image"))))

    return side


def daft_native(data: Data) -> Side:
    """Its native expressions: decode and resize in Rust (squashed: it has no resize to the shorter side), uint8."""

    def side() -> float:
        daft = daft_module()
        from daft.functions import decode_image, resize

        image = resize(decode_image(daft.col("image"), mode="RGB"), SIZE_PX, SIZE_PX)
        fixed = image.cast(daft.DataType.image("RGB", SIZE_PX, SIZE_PX))
        frame = daft.read_parquet(str(data.bytes_file))
        return _scored(daft, frame.with_column("image", fixed))

    return side


def _scored(daft: Any, frame: Any) -> float:
    """The number of images that went through a null model in a class UDF, whole batches at a time."""

    @daft.cls
    class Null:
        @daft.method.batch(return_dtype=daft.DataType.float32())
        def score(self, images: Any):
            storage = images.to_arrow()  # no copy: fixed-size lists of numbers
            return np.ones(len(storage), np.float32)

    found = frame.select(Null().score(daft.col("image")).alias("score")).agg(daft.col("score").sum()).to_pydict()
    return float(found["score"][0])
