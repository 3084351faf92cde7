"""Models on executors: this task's device, one model per worker process, read-decode-encode ahead of the model.

Touches shards (reads) and the encoder's folder (reads). The two pandas UDFs of the application are made here:
`dfn_embed` (pointers in, vectors out) and `dfn_score` (image bytes and text in, score out).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column

from etl.shards import RangeReader, ShardError
from etl.stage import series_udf
from models.images import MAX_PIXELS, ImageError, decode_rgb
from models.records import EncoderRecord

EMBEDDED = "image_embedding binary, text_embedding binary, cosine float, status string, status_reason string"
Decoded = np.ndarray | ImageError | ShardError
"""A preprocessed image, uint8, or why there is none."""


def task_device() -> str:
    """The device of this task: the GPU that Spark gave it, else CUDA's first where a GPU is there at all, else the CPU.

    Spark sets no CUDA_VISIBLE_DEVICES for ordinary UDFs: the address comes from the task's resources.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context else None
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{gpu.addresses[0]}" if gpu else "cuda:0"


@lru_cache(maxsize=2)
def encoder(folder: str, device: str) -> Any:
    """The encoder, loaded once per worker process. Its weights are checked by sha256 before the first row."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from models.encoder import Encoder

    return Encoder.load(Path(folder), device=device)


def embed_rows(model: Any, images: list[Decoded], texts: list[str]) -> pd.DataFrame:
    """Preprocessed images and captions to rows of EMBEDDED, in order. A row without vectors says why."""
    from models.filters import check_vectors

    is_image = [isinstance(image, np.ndarray) for image in images]
    rows: list[dict[str, Any]] = [
        {} if ok else {"status": getattr(image, "status", "read_error"), "status_reason": _reason(image)}
        for image, ok in zip(images, is_image, strict=True)
    ]
    keep = np.flatnonzero(is_image)
    if len(keep):
        image_vectors_NI = model.encode_images([images[i] for i in keep])
        text_vectors_NT = model.encode_texts([texts[i] for i in keep])
        is_valid = check_vectors(image_vectors_NI) & check_vectors(text_vectors_NT)
        cosines = cosine(image_vectors_NI, text_vectors_NT) if model.record.shares_space else [None] * len(keep)
        for at, row in enumerate(keep):
            if not is_valid[at]:
                rows[row] = {"status": "invalid_output", "status_reason": "the model gave NaN, infinity or zeros"}
                continue
            halves = (v[at].astype("<f2").tobytes() for v in (image_vectors_NI, text_vectors_NT))
            rows[row] = dict(zip(("image_embedding", "text_embedding"), halves, strict=True)) | {
                "cosine": cosines[at], "status": "ok"
            }  # fmt: skip
    return pd.DataFrame(
        rows, columns=["image_embedding", "text_embedding", "cosine", "status", "status_reason"]
    ).astype(object)


def cosine(left_ND: np.ndarray, right_ND: np.ndarray) -> list[float | None]:
    """Row by row, in float32 after normalising; None where there is no number."""
    left, right = left_ND.astype(np.float32), right_ND.astype(np.float32)
    with np.errstate(all="ignore"):
        found = (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))
    return [float(value) if np.isfinite(value) else None for value in found]


def _reason(error: object) -> str:
    return str(getattr(error, "reason", None) or error)[:200]


def prefetched(batches: Iterator[Any], work: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """(batch, work(batch)) in order, with the next batch's work done in a thread while the caller uses this one."""
    with ThreadPoolExecutor(1) as pool:
        pending: tuple[Any, Any] | None = None
        for batch in batches:
            following = (batch, pool.submit(work, batch))
            if pending:
                yield pending[0], pending[1].result()
            pending = following
        if pending:
            yield pending[0], pending[1].result()


def make_dfn_embed(
    encoder_folder: Path, shards_root: str, *, max_pixels: int, calls_file: Path | None
) -> Callable[..., Column]:
    """The pandas UDF `dfn_embed(shard, offset_bytes, size_bytes, text) -> EMBEDDED`.

    Pixels never enter the JVM: workers read the shards themselves, decode ahead of the model and hand back vectors.
    Rows whose shard is NULL come back with status `no_vectors`. `calls_file`: a line `rows` per batch that goes
    through the model is appended there, which is how resume is proved.
    """

    def dfn_embed(batches: Iterator[tuple[pd.Series, pd.Series, pd.Series, pd.Series]]) -> Iterator[pd.DataFrame]:
        model = encoder(str(encoder_folder), task_device())
        reader = RangeReader()

        def load(batch: tuple[pd.Series, pd.Series, pd.Series, pd.Series]) -> list[Decoded]:
            return [_load(reader, model, shards_root, *pointer, max_pixels) for pointer in zip(*batch[:3], strict=True)]

        for batch, images in prefetched(batches, load):
            if calls_file:
                with calls_file.open("a") as log:
                    log.write(f"{len(images)}\n")
            yield embed_rows(model, images, batch[3].fillna("").tolist())

    return series_udf(dfn_embed, EMBEDDED)  # Python: the model is PyTorch's


def _load(
    reader: RangeReader, model: Any, root: str, shard: str | None, offset: Any, size: Any, max_pixels: int
) -> Decoded:
    if shard is None or pd.isna(shard):
        return ImageError("no_vectors", "the pair has no pixels")
    try:
        data = reader.read(f"{root}/{shard}" if root else shard, int(offset), int(size))
        image: np.ndarray = model.preprocess(decode_rgb(data, max_pixels=max_pixels))
    except (ImageError, ShardError) as error:
        return error
    return image


def make_dfn_score(encoder_folder: Path, filter_folder: Path, *, max_pixels: int = MAX_PIXELS) -> Callable[..., Column]:
    """The pandas UDF `dfn_score(image BINARY, text STRING) -> FLOAT`, for SQL and notebooks on tables that hold bytes.

    NULL where the image does not decode or the model gives no number. Raises WeightsError for a filter of other towers.
    """
    from models.filters import Filter, check_encoder

    filter_ = Filter.load(filter_folder)
    check_encoder(filter_.record, EncoderRecord.read(encoder_folder))

    def dfn_score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        model = encoder(str(encoder_folder), task_device())

        def load(batch: tuple[pd.Series, pd.Series]) -> list[Decoded]:
            return [_decode(model, data, max_pixels) for data in batch[0]]

        for batch, images in prefetched(batches, load):
            rows = embed_rows(model, images, batch[1].fillna("").tolist())
            scores = pd.Series([None] * len(rows), dtype=object)
            is_ok = (rows["status"] == "ok").to_numpy()
            if is_ok.any():
                sides = (
                    np.frombuffer(b"".join(rows.loc[is_ok, side]), "<f2").reshape(is_ok.sum(), -1)
                    for side in ("image_embedding", "text_embedding")
                )
                scores[is_ok] = filter_.score(*sides).tolist()
            yield scores

    return series_udf(dfn_score, "float")  # Python: the model is PyTorch's


def _decode(model: Any, data: bytes | None, max_pixels: int) -> Decoded:
    try:
        image: np.ndarray = model.preprocess(decode_rgb(data or b"", max_pixels=max_pixels))
    except ImageError as error:
        return error
    return image
