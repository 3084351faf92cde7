"""Our sides, as the code is: one small function each. Nothing here does the work; it calls what a run calls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import etl.encode.gpu
import models.pixels
from etl.encode.feed import Feed, Row
from etl.encode.gpu import decode_for, make_dfn_score
from etl.encode.lanes import Columns
from etl.encode.readers import EMBEDDED, EncoderSpec, encoder
from etl.session import session
from etl.shards import list_shards
from etl.stage import series_udf
from etl.stages import embed, ingest
from etl.tables import PAIRS
from models.clip import build_open_clip
from models.encoder import Encoder
from models.filters import save_filter
from models.images import MAX_PIXELS
from models.records import EncoderRecord
from models.towers import good_precision
from tests.bench.data import Data
from tests.bench.measure import Side, tree_bytes_read
from tests.bench.peers import MODEL

PAIR = "uid string, shard string, offset_bytes bigint, size_bytes bigint, text string, status string"
LIMITS = {"max_pixels": MAX_PIXELS}


class NullReader:
    """Takes pixels and gives constants: what is left of the pass is the feed."""

    batch_size = 16
    columns = tuple(EMBEDDED)
    num_oom_halvings = 0

    def encode(self, images: list[Any]) -> list[None]:
        return [None] * len(images)

    def finish(self, results: list[Any], texts: list[str]) -> Columns:
        count = len(texts)
        return {
            "image_embedding": [b"\0"] * count, "text_embedding": [b"\0"] * count, "cosine": [1.0] * count,
            "status": ["ok"] * count, "status_reason": [None] * count,
        }  # fmt: skip


@dataclass(frozen=True)
class NullSpec(EncoderSpec):
    """The encoder's preprocessing before a null model."""

    def load(self, device: str) -> NullReader:
        return NullReader()


class NullConfig(embed.Config):
    @property
    def reader(self) -> NullSpec:
        return NullSpec(str(self.encoder_folder))


def spark_session(master: str) -> SparkSession:
    """The project's own, with the full JIT and default collector as on a cluster: fair to peers that need the JVM."""
    conf = {"spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={etl.session.LOG_CONFIG}"}
    return session("bench", master=master, conf={**conf, "spark.driver.memory": "4g"})


def encoder_folder(root: Path) -> Path:
    """ViT-B-32, random weights, always the same: as fast as a trained one. In the CPU's better precision."""
    precision = good_precision("cpu")
    folder = (root / f"{MODEL}-{precision}").absolute()
    if not folder.is_dir():
        build_open_clip(MODEL, None, folder, seed=0, precision=precision)
    return folder


def run(frame: DataFrame) -> None:
    frame.write.format("noop").mode("overwrite").save()


def pairs_of(spark: SparkSession, data: Data, num_pairs: int) -> DataFrame:
    rows = data.pairs.head(num_pairs)[[column.split()[0] for column in PAIR.split(", ")]]
    return spark.createDataFrame(rows, PAIR).withColumn("status_reason", F.lit(None).cast("string"))


def passed(pairs: DataFrame, data: Data, folder: Path, configs: Sequence[type[embed.Config]]) -> DataFrame:
    """The pass of the embed stage, one reader per config."""
    settings = {"encoder": MODEL, "encoder_folder": folder, "shards_root": str(data.folder), **LIMITS}
    return embed.read_pixels(pairs, [config(**settings) for config in configs])


def feed(spark: SparkSession, data: Data, folder: Path, num_pairs: int) -> Side:
    """Images: pointers -> bytes -> pixels -> null model -> rows, through Spark."""
    pairs = pairs_of(spark, data, num_pairs)

    def side() -> float:
        run(passed(pairs, data, folder, [NullConfig]))
        return num_pairs

    return side


def embed_pass(spark: SparkSession, data: Data, folder: Path, num_pairs: int) -> Side:
    """Pairs: shard and pointer -> vectors and cosine, through Spark."""
    pairs = pairs_of(spark, data, num_pairs)

    def side() -> float:
        run(passed(pairs, data, folder, [embed.Config]))
        return num_pairs

    return side


def score_udf(spark: SparkSession, data: Data, folder: Path, num_pairs: int) -> Side:
    """Pairs: a table of bytes and captions -> `dfn_score`, through Spark."""
    filter_folder = folder.with_name(f"{MODEL}-filter")
    save_filter(filter_folder, None, encoder_record=EncoderRecord.read(folder))
    dfn_score = make_dfn_score(folder, filter_folder, **LIMITS)

    def side() -> float:
        table = spark.read.parquet(str(data.bytes_file)).limit(num_pairs).repartition(2)
        run(table.select(dfn_score("image", "text")))
        return num_pairs

    return side


def image_tower(spark: SparkSession, folder: Path, num_images: int, gflop_an_image: float) -> Side:
    """GFLOP: pixels that are made in the worker -> vectors, inside Spark."""

    def encode(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        model = encoder(str(folder), etl.encode.gpu.task_device())
        size = model.record.preprocessing.size_px
        pixels = np.random.default_rng(0).integers(0, 256, (model.record.batch_size, 3, size, size), np.uint8)
        for batch in batches:
            images = [pixels[number % len(pixels)] for number in range(len(batch))]
            yield pd.Series(model.encode_images(images)[:, 0])

    udf = series_udf(encode, "float")

    def side() -> float:
        run(spark.range(0, num_images, numPartitions=2).select(udf("id")))
        return num_images * gflop_an_image

    return side


@cache
def loaded(folder: Path, device: str = "cpu") -> Encoder:
    return Encoder.load(folder, device=device)


def towers(encoder: Encoder, pixels_BCHW: torch.Tensor, tokens_BL: torch.Tensor) -> None:
    """Our forward pass on what lies on the device already: the model alone."""
    with torch.inference_mode():
        encoder._towers.encode_image(pixels_BCHW)
        encoder._towers.encode_text(tokens_BL)


def text_tower(folder: Path, texts: Sequence[str]) -> Side:
    """Captions -> vectors, in this process."""

    def side() -> float:
        loaded(folder).encode_texts(list(texts))
        return len(texts)

    return side


def pixels(folder: Path, data: bytes) -> np.ndarray:
    """The bytes of a file -> uint8 CHW, as the embed stage makes them."""
    return models.pixels.preprocess(data, EncoderRecord.read(folder).preprocessing)


def preprocess(folder: Path, images: Sequence[bytes]) -> Side:
    config = EncoderRecord.read(folder).preprocessing

    def side() -> float:
        for data in images:
            models.pixels.preprocess(data, config)
        return len(images)

    return side


def decode_alone(folder: Path, batches: Sequence[Sequence[bytes]]) -> Side:
    config = EncoderRecord.read(folder).preprocessing

    def side() -> float:
        for data in chain.from_iterable(batches):
            models.pixels.preprocess(data, config)
        return sum(map(len, batches))

    return side


def overlapped(folder: Path, batches: Sequence[Sequence[bytes]], model_seconds: float) -> Side:
    """Images: decoded ahead of a model that takes so long a batch and leaves the core free, as a GPU does."""
    decode = partial(decode_for, prepares=(NullSpec(str(folder)).prepare(),), **LIMITS)
    rows = [Row(data, "") for data in chain.from_iterable(batches)]

    def side() -> float:
        for _ in Feed(decode, block_rows=len(batches[0])).blocks(rows):
            time.sleep(model_seconds)
        return len(rows)

    return side


def more_bytes_read(spark: SparkSession, small: Data, large: Data, folder: Path, num_models: int, turns: int) -> int:
    """How many bytes more Python processes read for the larger data, by the turns that read least: what workers read as
    they start (pyspark 4.0 starts some in each run) is in both."""
    least = [min(_bytes_read(spark, data, folder, num_models) for _ in range(turns)) for data in (small, large)]
    return least[1] - least[0]


def ingested(spark: SparkSession, data: Data) -> tuple[DataFrame, DataFrame]:
    """`pairs` and `inputs` of the shards, into empty tables."""
    files = [(file.uri, file.size_bytes, file.etag, "shards") for file in list_shards(f"{data.folder}/*.tar")]
    table = spark.createDataFrame(files, "uri string, size_bytes bigint, etag string, reader string")
    known = spark.createDataFrame([], PAIRS.ddl)
    return ingest.transform(table, known, config=ingest.Config(shards_root=str(data.folder), **LIMITS))


def _bytes_read(spark: SparkSession, data: Data, folder: Path, num_models: int) -> int:
    """Bytes that Python processes read while shards are ingested and their pairs embedded under several encoders."""
    before = tree_bytes_read()
    run(ingested(spark, data)[0])
    run(passed(pairs_of(spark, data, len(data.pairs)), data, folder, [NullConfig] * num_models))
    return tree_bytes_read() - before
