"""Shards and vectors against what is known of them. Reads shards, manifests, tables, the encoder's folder.

A shard is held against the manifest beside it, every byte; where there is none, every image in it against the sha256
that ingest found. An encoder is held against its canaries, stored vectors against what it makes of their pixels now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from etl.encode.encoders import encoder_folder
from etl.forget.find import Place
from etl.forget.shards import exports
from etl.project import Project
from etl.shard_writer import MANIFEST, verify
from etl.shards import RangeReader, ShardError
from etl.stage import tasks
from etl.storage import folder_of, with_storage
from etl.tables import EMBEDDINGS, PAIRS
from models.images import ImageError, decode_rgb, sha256_hex
from models.records import RECORD, EncoderRecord, WeightsError

SAMPLE = 8
"""Stored vectors of a dataset that are made again."""
TOLERANCE = 0.02
"""On 1 - cosine of a vector and the same made again: other devices and precisions differ by less."""


def shard_problems(project: Project, place: Place) -> Iterator[str]:
    """Of the shards of a dataset, and of its exports."""
    pattern = project.sources[place.dataset].shards
    root = folder_of(pattern) if pattern else ""
    if root and "://" not in root and (Path(root) / MANIFEST).is_file():
        for line in verify(root):
            yield f"{place.label}: {root}/{line}; fix: give it back as it was, or dfn corpora makes a corpus again"
    elif place.store.exists(place.dataset, PAIRS):
        for row in _bad_images(project, place, root):
            yield (f"{place.label}: {row['shard']}: {row['num']} of its images are not what ingest read "
                   f"({row['first']}); fix: give the shard back as it was")  # fmt: skip
    for folder in exports(place):
        for line in verify(folder) if Path(folder).is_dir() else ():
            yield f"{place.label}: {folder}/{line}; fix: remove it and run dfn export again"


def _bad_images(project: Project, place: Place, root: str) -> list[Any]:
    """(shard, num, first: what is wrong with the first) of shards with an image that is another now."""
    pairs = place.store.read(place.dataset, PAIRS).where("shard IS NOT NULL AND sha256 IS NOT NULL AND size_bytes > 0")
    pointers = pairs.select("shard", "offset_bytes", "size_bytes", "sha256")
    placed = pointers.repartitionByRange(tasks(None, pointers), "shard").sortWithinPartitions("shard", "offset_bytes")
    # Python: pixels are read where no JVM heap sees them.
    found = placed.mapInPandas(with_storage(_checker(root), project.config.storage), "shard string, what string")
    grouped = found.groupBy("shard").agg(F.count(F.lit(1)).alias("num"), F.min("what").alias("first"))
    return grouped.orderBy("shard").collect()


def _checker(root: str) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    def check(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        with RangeReader() as reader:
            for batch in batches:
                rows = [(row.shard, what) for row in batch.itertuples() if (what := _wrong(reader, root, row))]
                yield pd.DataFrame(rows, columns=["shard", "what"])

    return check


def _wrong(reader: RangeReader, root: str, row: Any) -> str | None:
    try:
        data = reader.read(f"{root}/{row.shard}" if root else row.shard, int(row.offset_bytes), int(row.size_bytes))
    except ShardError as error:
        return str(error)
    return None if sha256_hex(data) == row.sha256 else f"another sha256 at {row.offset_bytes}"


def encoder_problems(project: Project) -> Iterator[str]:
    """Of every configured encoder that has weights, and of the vectors that it made."""
    for config in (project.config.encoder, *project.config.more_encoders.values()):
        if config.published:
            continue
        record, folder = encoder_folder(config, project.say)
        if isinstance(record, EncoderRecord) and (folder / RECORD).exists():
            yield from _encoder(project, record, folder)


def _encoder(project: Project, record: EncoderRecord, folder: Path) -> Iterator[str]:
    from models.encoder import Encoder  # seconds: torch

    try:
        encoder = Encoder.load(folder)
    except WeightsError as error:
        yield f"encoder {record.name}: {error}"
        return
    for name, source in project.sources.items():
        if project.store.exists(name, EMBEDDINGS) and project.store.exists(name, PAIRS):
            where = {"encoder": record.name, "encoder_version": record.version}
            rows = (
                project.store.read(name, EMBEDDINGS, where=where)
                .where("status = 'ok'")
                .select("uid", "image_embedding")
            )
            pairs = project.store.read(name, PAIRS).select("uid", "shard", "offset_bytes", "size_bytes")
            some = rows.orderBy("uid").limit(SAMPLE).join(pairs, on="uid", how="inner").collect()
            root = folder_of(source.shards) if source.shards else ""
            if off := sum(_is_off(encoder, root, row) for row in some):
                yield (
                    f"{name}.embeddings: {off} of {len(some)} vectors that were made again are others; "
                    f"fix: give the shards back, or drop version {record.version} and run dfn run"
                )


def _is_off(encoder: Any, root: str, row: Any) -> bool:
    try:
        with RangeReader() as reader:
            place = (f"{root}/{row['shard']}" if root else row["shard"], row["offset_bytes"], row["size_bytes"])
            image = decode_rgb(reader.read(*place))
    except (ShardError, ImageError):
        return True
    (now_D,) = encoder.encode_images([encoder.preprocess(image)]).astype(np.float32)
    then_D = np.frombuffer(row["image_embedding"], "<f2").astype(np.float32)
    with np.errstate(all="ignore"):
        cosine = now_D @ then_D / np.linalg.norm(now_D) / np.linalg.norm(then_D)
    return not cosine >= 1 - TOLERANCE  # NaN too
