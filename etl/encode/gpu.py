"""Models on executors: this task's device, one model per worker process, and the pass that feeds them.

Touches shards (reads) and the encoders' folders (reads). The two pandas UDFs of the application are made here over one
core: `dfn_embed` (pointers in, vectors out) and `dfn_score` (image bytes and text in, score out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, SparkSession

from etl.encode.feed import Feed, Row
from etl.encode.lanes import TIMINGS, Lane, Window, run_pass
from etl.encode.readers import EMBEDDED, EncoderSpec, ReaderSpec
from etl.stage import series_udf
from etl.storage import use
from models.images import MAX_PIXELS
from models.records import EncoderRecord

STATUS = {"status": "string", "status_reason": "string"}


def task_gpu_address() -> str | None:
    """The address of the GPU that Spark gave this task; None where tasks are given none.

    Spark sets no CUDA_VISIBLE_DEVICES for ordinary UDFs: the address comes from the task's resources.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context else None
    return str(gpu.addresses[0]) if gpu else None


def task_device() -> str:
    """The device of this task: the GPU that Spark gave it, else CUDA's first where there is one, else the CPU."""
    import torch

    return f"cuda:{task_gpu_address() or 0}" if torch.cuda.is_available() else "cpu"


def is_retry() -> bool:
    """Whether Spark runs this task again: what killed the worker may do so again."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return bool(context and context.attemptNumber())


@dataclass(frozen=True)
class Pass:
    """One decode, many readers: what every task of the pass does, and with which models."""

    readers: tuple[ReaderSpec, ...]
    max_pixels: int = MAX_PIXELS
    decode_threads: int = 1
    max_invalid_fraction: float = 0.01
    """More rows than this share whose model gives NaN, infinity or zeros: the task fails, and so does the run."""
    calls_file: Path | None = None
    """Gets a line with the number of images per forward pass, which is how resume is proved. None: not counted."""
    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of object stores that shards are on, for executors; see `etl/storage.py`."""

    def run(self, rows: Iterator[Row]) -> Iterator[Window]:
        """A task's part of the pass, on this task's device."""
        if self.storage:
            use(self.storage)
        device = task_device()
        lanes = [
            Lane(spec.load(device), on_batch=self._count, max_invalid_fraction=self.max_invalid_fraction)
            for spec in self.readers
        ]
        decode = partial(decode_for, prepares=tuple(s.prepare() for s in self.readers), max_pixels=self.max_pixels)
        if not is_retry():
            yield from run_pass(Feed(decode, threads=self.decode_threads), lanes, rows)
            return
        from etl.encode.crash import ChildDecoder

        child = ChildDecoder(decode)
        try:
            yield from run_pass(Feed(child, threads=1), lanes, rows)
        finally:
            child.close()

    def _count(self, num_images: int) -> None:
        if self.calls_file:
            with self.calls_file.open("a") as log:
                log.write(f"{num_images}\n")


def decode_for(data: bytes, *, prepares: tuple[Callable[[Any], Any], ...], max_pixels: int) -> tuple[Any, ...]:
    """One decode, and what each reader takes of it. Raises ImageError."""
    from models.pixels import decode

    image_CHW = decode(data, max_pixels=max_pixels)
    return tuple(prepare(image_CHW) for prepare in prepares)


def make_pass(work: Pass, shards_root: str) -> Callable[..., Column]:
    """The pandas UDF of a pass: (shard, offset_bytes, size_bytes, text) -> a struct of all readers' columns.

    Reader number n's are called `r{n}_NAME`; TIMINGS are among them. Pixels never enter the JVM: workers read the
    shards themselves, decode ahead of the models and hand back vectors. A NULL shard comes back as `no_vectors`.
    """
    types = {f"r{n}_{name}": kind for n, s in enumerate(work.readers) for name, kind in (s.columns | STATUS).items()}

    def dfn_pass(batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]]) -> Iterator[pd.DataFrame]:
        for frames, timings in work.run(_pointers(batches, shards_root)):
            parts = [frame.add_prefix(f"r{n}_") for n, frame in enumerate(frames)]
            yield pd.concat([*parts, timings], axis=1)

    return series_udf(dfn_pass, _ddl(types | dict.fromkeys(TIMINGS, "double")))  # Python: the models are PyTorch's


def make_dfn_embed(
    encoder_folder: Path, shards_root: str = "", *, max_pixels: int = MAX_PIXELS
) -> Callable[..., Column]:
    """The pandas UDF `dfn_embed(shard, offset_bytes, size_bytes, text)` -> EMBEDDED and STATUS: a pass for SQL."""
    work = Pass((EncoderSpec(str(encoder_folder)),), max_pixels=max_pixels)

    def dfn_embed(batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]]) -> Iterator[pd.DataFrame]:
        for (frame,), _ in work.run(_pointers(batches, shards_root)):
            yield frame

    return series_udf(dfn_embed, _ddl(EMBEDDED | STATUS))  # Python: the model is PyTorch's


def _ddl(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def _pointers(batches: Iterator[Sequence[pd.Series]], root: str) -> Iterator[Row]:
    for shards, offsets, sizes, texts in batches:
        for shard, offset, size, text in zip(shards, offsets, sizes, texts, strict=True):
            is_pointer = isinstance(shard, str) and not (pd.isna(offset) or pd.isna(size))
            place = (f"{root}/{shard}" if root else shard, int(offset), int(size)) if is_pointer else None
            yield Row(place, text if isinstance(text, str) else "")


def make_dfn_score(encoder_folder: Path, filter_folder: Path, *, max_pixels: int = MAX_PIXELS) -> Callable[..., Column]:
    """The pandas UDF `dfn_score(image BINARY, text STRING) -> FLOAT`, for SQL and notebooks on tables that hold bytes.

    NULL where the image does not decode or the model gives no number. Raises WeightsError for a filter of other towers.
    """
    from models.filters import Filter, check_encoder

    filter_ = Filter.load(filter_folder)
    check_encoder(filter_.record, EncoderRecord.read(encoder_folder))
    work = Pass((EncoderSpec(str(encoder_folder)),), max_pixels=max_pixels)

    def dfn_score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        rows = (
            Row(bytes(image or b""), text if isinstance(text, str) else "")
            for images, texts in batches
            for image, text in zip(images, texts, strict=True)
        )
        for (frame,), _ in work.run(rows):
            scores = pd.Series([None] * len(frame), dtype=object)
            is_ok = (frame["status"] == "ok").to_numpy()
            if is_ok.any():
                sides = (
                    np.frombuffer(b"".join(frame.loc[is_ok, side]), "<f2").reshape(is_ok.sum(), -1)
                    for side in ("image_embedding", "text_embedding")
                )
                scores[is_ok] = filter_.score(*sides).tolist()
            yield scores

    return series_udf(dfn_score, "float")  # Python: the model is PyTorch's


def register(spark: SparkSession, encoder_folder: Path, filter_folder: Path, *, shards_root: str = "") -> None:
    """Both UDFs for SQL of this session: dfn_score(image, text), dfn_embed(shard, offset_bytes, size_bytes, text).

    Raises WeightsError for a filter of other towers.
    """
    functions: dict[str, Any] = {
        "dfn_score": make_dfn_score(encoder_folder, filter_folder),
        "dfn_embed": make_dfn_embed(encoder_folder, shards_root),
    }
    for name, function in functions.items():
        spark.udf.register(name, function)
