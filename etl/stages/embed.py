"""Vectors of every pair under one encoder version. Reads pairs and their shards. Writes embeddings. The GPU stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.encode.gpu import Pass, make_pass
from etl.encode.lanes import TIMINGS
from etl.encode.readers import EncoderSpec, ReaderSpec
from etl.stage import Read, Shared, Stage, StageConfig, tasks
from etl.tables import EMBEDDINGS, PAIRS


class PassConfig(StageConfig):
    """What runs that read the same pixels have in common: they share one decode where these are equal."""

    max_pixels: int = pydantic.Field(default=89_478_485, gt=0)
    """Images with more pixels than this are not decoded (Pillow's own limit)."""
    max_invalid_fraction: float = pydantic.Field(default=0.01, ge=0, le=1, exclude=True)
    """A task fails where its model gives NaN, infinity or zeros for more rows than this share."""
    chunk_rows: int = pydantic.Field(default=20_000, gt=0, exclude=True)
    """Rows per commit: about 10 minutes of a core. A killed run loses the chunk in flight. Of evaluation pictures
    that stages.variants edits it is fewer: as many forward passes."""
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks per chunk, each with its own copy of the model: GPUs, or cores. None: spark.sql.shuffle.partitions."""
    decode_threads: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Threads that read and decode, per task. None: executor cores per GPU, or 1 where there is no GPU."""
    shards_root: str = pydantic.Field(default="", exclude=True)
    """Known to a run only: what `shard` is relative to."""
    calls_file: Path | None = pydantic.Field(default=None, exclude=True)
    """A file that gets the number of images of every forward pass; None: not counted."""
    storage: dict[str, dict[str, Any]] = pydantic.Field(default={}, exclude=True)
    """Known to a run only: see `etl/storage.py`."""

    @property
    def reader(self) -> ReaderSpec:
        """The model of the pass that this config names."""
        raise NotImplementedError


class Config(PassConfig):
    encoder: str = ""
    """Known to a run only: name of the encoder."""
    encoder_version: str = ""
    """Known to a run only: first 16 hex digits of the sha256 over weights and record."""
    encoder_folder: Path = pydantic.Field(default=Path(), exclude=True)
    """Known to a run only: where executors find record and weights."""

    @property
    def reader(self) -> ReaderSpec:
        return EncoderSpec(str(self.encoder_folder))


def read_pixels(pairs: DataFrame, configs: Sequence[PassConfig]) -> DataFrame:
    """One decode, many readers: pairs, what config n's model says of each in `found.r{n}_NAME`, and TIMINGS."""
    first = configs[0]
    threads = first.decode_threads or threads_per_task(pairs)
    work = Pass(
        tuple(config.reader for config in configs),
        first.max_pixels,
        threads,
        first.max_invalid_fraction,
        first.calls_file,
        first.storage,
    )
    dfn_pass = make_pass(work, first.shards_root)
    by_place = [F.col("shard"), F.col("offset_bytes")]
    has_pixels = F.col("status") == "ok"
    pointers = pairs.select(
        "uid", "offset_bytes", "size_bytes", "text", F.when(has_pixels, F.col("shard")).alias("shard"),
        F.col("status").alias("pair_status"), F.col("status_reason").alias("pair_reason"),
    )  # fmt: skip
    # Only pointers are shuffled; in order of place, so that each task reads its shards sequentially.
    placed = pointers.repartitionByRange(tasks(first.num_tasks, pointers), *by_place).sortWithinPartitions(*by_place)
    found = placed.withColumn("found", dfn_pass("shard", "offset_bytes", "size_bytes", "text"))
    return found.select("uid", "pair_status", "pair_reason", "found", *[F.col(f"found.{name}") for name in TIMINGS])


def threads_per_task(frame: DataFrame) -> int:
    """Cores of an executor over the tasks that its GPUs take; 1 where Spark knows of no GPU."""
    conf = frame.sparkSession.conf
    gpus = float(conf.get("spark.executor.resource.gpu.amount", "0") or 0)
    cores = int(conf.get("spark.executor.cores", "1") or 1)
    per_task = float(conf.get("spark.task.resource.gpu.amount", "1") or 1)
    return max(1, int(cores * per_task / gpus)) if gpus else 1


def taken(passed: DataFrame, number: int, *columns: str) -> DataFrame:
    """Reader `number`'s columns of a pass, with the pair's status where it had no pixels to read."""
    is_ok = F.col("pair_status") == "ok"
    return passed.select(
        "uid",
        *[F.col(f"found.r{number}_{column}").alias(column) for column in columns],
        *[
            F.when(is_ok, F.col(f"found.r{number}_{of_reader}")).otherwise(F.col(of_pair)).alias(of_reader)
            for of_reader, of_pair in (("status", "pair_status"), ("status_reason", "pair_reason"))
        ],
    )


def finish(passed: DataFrame, number: int, *, config: Config) -> DataFrame:
    """The rows of one encoder from a pass in which it is reader `number`."""
    vectors = taken(passed, number, "image_embedding", "text_embedding", "cosine")
    version = [
        F.lit(value).alias(f"encoder{end}")
        for value, end in ((config.encoder, ""), (config.encoder_version, "_version"))
    ]
    return vectors.select(*version, "*")


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    return finish(read_pixels(pairs, [config]), 0, config=config)


def settings(config: PassConfig) -> dict[str, object]:
    """What decides the pass itself: equal where runs can share one."""
    return {name: str(getattr(config, name)) for name in PassConfig.model_fields}


SHARED = Shared(read_pixels, finish, settings, TIMINGS)
STAGE = Stage(
    "embed", reads={"pairs": Read(PAIRS)}, writes=(EMBEDDINGS,), config=Config, transform=transform, resume="rows",
    version=2, kinds=("pool", "filter", "dev", "eval"), shared=SHARED,
)  # fmt: skip
