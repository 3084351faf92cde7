"""Vectors that a release came with (DataComp's npz beside each metadata file) to embeddings: no pixels, no GPU.

Reads metadata files. Writes embeddings, one row per uid of these files, and feature_files: the ledger. A file without
usable vectors gives `no_vectors` to each of its pairs, and a reason to the ledger; the others load. Of two rows with
one uid that of the earlier chunk stays, then that of the smaller (file, place in it), as at ingest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from etl.arrow import batch_of, count_from, schema_of
from etl.intake.stay_out import StayOut, is_forgotten
from etl.shards import list_shards
from etl.stage import Read, Stage, StageConfig, digest, for_join, tasks
from etl.stages.metadata import scan_uids
from etl.storage import open_ranges, with_storage
from etl.tables import EMBEDDINGS, FEATURE_FILES
from models.filters import by_block, check_vectors
from models.images import one_line
from models.published import PUBLISHED, FeaturesError, Published, read_arrays

ROW = """uri string, number bigint, is_file boolean, uid string, image_embedding binary, text_embedding binary,
cosine float, status string, status_reason string"""
SCHEMA = schema_of(ROW)
BATCH_ROWS = 8192
"""Rows handed to Spark at a time: 25 MB of 768 dimensions on two sides."""
MAX_AHEAD_BYTES = 8 << 20
"""Of an npz on an object store, asked for beyond what is read: fewer requests. At most a 64th of it is read in vain."""


class Config(StageConfig):
    chunk_rows: int = pydantic.Field(default=20, gt=0, exclude=True)
    """Files per commit. DataComp's hold up to half a million rows, 1.5 GB of L/14 vectors each."""
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks per chunk; None: spark.sql.shuffle.partitions. Each needs the disk space of one file's vectors."""
    encoder: str = ""
    """Known to a run only: a name in `models.published.PUBLISHED`."""
    encoder_version: str = ""
    """Known to a run only: first 16 hex digits of the sha256 over its record."""
    columns: dict[str, str] = pydantic.Field(default={})
    """Known to a run only: those of ingest, by which a row has its uid."""
    stay_out: StayOut = pydantic.Field(default=StayOut(), exclude=True)
    """Known to a run only: what was forgotten."""
    storage: dict[str, dict[str, Any]] = pydantic.Field(default={}, exclude=True)
    """Known to a run only: see `etl/storage.py`."""
    without_npz: str = ""
    """Known to a run only: names the files that have no npz yet. When one comes, all files are loaded anew."""


def listing(dataset: Any) -> pd.DataFrame:
    """The metadata files of a dataset, each with the npz beside it, or ''."""
    pattern = dataset.metadata or ""
    files = [file for file in (list_shards(pattern) if pattern else []) if file.uri.endswith(".parquet")]
    beside = {file.uri: file for file in (list_shards(re.sub(r"\.parquet$", ".npz", pattern)) if files else [])}
    rows = []
    for file in files:
        npz = beside.get(file.uri.removesuffix(".parquet") + ".npz")
        rows.append((file.uri, *((npz.uri, npz.size_bytes, npz.etag) if npz else ("", 0, "")), file.uri))
    return pd.DataFrame(rows, columns=["uri", "npz", "size_bytes", "etag", "chunk_group"])


def without_npz(dataset: Any) -> str:
    """A name for the set of metadata files that have no npz; '' where all have."""
    files = listing(dataset)
    lacking = files.loc[files["npz"] == "", "uri"].tolist()
    return digest(lacking)[:16] if lacking else ""


def loader(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Files to rows: one per row of the metadata file, and last one with status and reason of the file."""
    published, columns = PUBLISHED[config.encoder], config.columns

    def load_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for file in (file for batch in batches for file in batch.to_pylist()):
            uri = file["uri"]
            uids, damage = scan_uids(uri, columns=columns)
            with TemporaryDirectory() as folder:
                status, reason, sides = _opened(file, len(uids), damage, published, Path(folder))
                for start in range(0, len(uids), BATCH_ROWS):
                    part = uids[start : start + BATCH_ROWS]
                    vectors = [side_ND[start : start + BATCH_ROWS] for side_ND in sides]
                    made = _rows(*vectors) if vectors else _none(f"{status}: {reason}")
                    known = {"uri": uri, "is_file": False, "uid": part, "number": count_from(start, len(part))}
                    yield batch_of(SCHEMA, len(part), **known, **made)
            yield batch_of(SCHEMA, 1, uri=uri, is_file=True, status=status, status_reason=reason)

    return with_storage(load_files, config.storage)


def _opened(
    listed: dict[str, Any], num_rows: int, damage: str | None, published: Published, folder: Path
) -> tuple[str, Any, Any]:
    """(status of the file, reason, [images_ND, texts_ND]), the last empty unless the status is ok. Never raises."""
    if damage:
        return "bad_parquet", damage, []
    if not listed["npz"]:
        return "no_vectors", "there is no npz of its name beside it", []
    dims = {published.image_array: published.record.image_dim, published.text_array: published.record.text_dim}
    try:
        with open_ranges(listed["npz"], min(MAX_AHEAD_BYTES, listed["size_bytes"] // 64 + 1)) as file:
            return "ok", None, read_arrays(file, dims, num_rows, folder)
    except FeaturesError as error:
        return "bad_npz", one_line(str(error)), []
    except Exception as error:  # each remote file system raises its own kinds
        return "unreadable", one_line(f"{type(error).__name__}: {error}"), []


def _rows(images_ND: np.ndarray, texts_ND: np.ndarray) -> dict[str, Any]:
    """Vectors as stored, and their cosine in float32 after normalising."""
    is_good = check_vectors(images_ND) & check_vectors(texts_ND)
    units_ND = [by_block(lambda block_BD: block_BD, side_ND) for side_ND in (images_ND, texts_ND)]
    cosines = np.clip(np.einsum("nd,nd->n", *units_ND), -1, 1)
    bad = "the release holds NaN, infinity or zeros"
    return {
        "image_embedding": _binaries(images_ND, is_good),
        "text_embedding": _binaries(texts_ND, is_good),
        "cosine": pa.array(cosines, pa.float32(), mask=~is_good),
        "status": ["ok" if good else "invalid_output" for good in is_good],
        "status_reason": [None if good else bad for good in is_good],
    }


def _binaries(vectors_ND: np.ndarray, is_good: np.ndarray) -> pa.Array:
    """Little-endian float16, row by row; NULL where a row is not good. No row is copied by itself."""
    with np.errstate(over="ignore"):
        halves_ND = np.ascontiguousarray(vectors_ND, dtype="<f2")
    fixed = pa.binary(halves_ND.shape[1] * 2)
    data = pa.py_buffer(halves_ND.reshape(-1).view(np.uint8))
    valid = pa.py_buffer(np.packbits(is_good, bitorder="little"))
    return pa.Array.from_buffers(fixed, len(halves_ND), [valid, data]).cast(pa.binary())


def _none(reason: str) -> dict[str, Any]:
    return {"status": "no_vectors", "status_reason": one_line(reason)}


def transform(files: DataFrame, known: DataFrame, *, config: Config) -> tuple[DataFrame, DataFrame]:
    spread = files.repartition(tasks(config.num_tasks, files))
    # Python: npz is numpy's format.
    scanned = spread.mapInArrow(loader(config), ROW)
    if config.stay_out:
        keys = ~F.col("is_file") & is_forgotten(config.stay_out, uid="uid")
        scanned = scanned.withColumn("status", F.when(keys, "forgotten").otherwise(F.col("status")))
    scanned = scanned.localCheckpoint()
    rows, encoder = scanned.where("NOT is_file"), F.lit(config.encoder).alias("encoder")
    version = F.lit(config.encoder_version).alias("encoder_version")
    own = known.where((F.col("encoder") == config.encoder) & (F.col("encoder_version") == config.encoder_version))
    # Before the vectors are written: what reads `known` after that would find each row to be its own duplicate.
    again = for_join(repeated(rows, own))
    embeddings = (
        rows.where("status != 'forgotten'")
        .join(again, on=["uri", "number"], how="left_anti")
        .select(encoder, version, "uid", "image_embedding", "text_embedding", "cosine", "status", "status_reason")
    )
    counts = rows.groupBy("uri", "status").agg(F.count(F.lit(1)).alias("n")).groupBy("uri")
    by_status = F.map_from_entries(F.collect_list(F.struct("status", "n"))).alias("num_by_status")
    ledger = scanned.where("is_file").select("uri", "status", "status_reason")
    counted = ledger.join(counts.agg(by_status, F.sum("n").alias("num_rows")), on="uri", how="left")
    return embeddings, files.join(counted, on="uri", how="inner").select(
        encoder, version, "uri", "size_bytes", "etag", "status", "status_reason",
        F.coalesce("num_rows", F.lit(0)).alias("num_rows"),
        F.coalesce("num_by_status", F.expr("map()").cast("map<string,bigint>")).alias("num_by_status"),
    )  # fmt: skip


def repeated(rows: DataFrame, known: DataFrame) -> DataFrame:
    """(uri, number) of the rows whose uid came before, here or in an earlier chunk. Shuffles uids, never vectors."""
    keys = rows.select("uri", "number", "uid")
    place = F.row_number().over(Window.partitionBy("uid").orderBy("uri", "number"))
    later = keys.withColumn("place", place).where("place > 1").select("uri", "number")
    before = keys.join(known.select("uid"), on="uid", how="left_semi").select("uri", "number")
    return later.unionByName(before).distinct()


STAGE = Stage(
    "features", reads={"known": Read(EMBEDDINGS)}, writes=(EMBEDDINGS, FEATURE_FILES), config=Config,
    transform=transform, resume="rows", version=1, kinds=("pool", "filter", "dev", "eval"), listing=listing,
)  # fmt: skip
