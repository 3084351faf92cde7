"""Scores that a release published, by column of its metadata. Reads metadata files and pairs. Writes scores: one row
per pair. No pixels, no vectors.

Of two rows with one uid that of the smaller (file, place in it) counts. A file that does not parse is in the ledger of
ingest already; its pairs, and those of a file without the column, get `no_vectors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.shards import list_shards
from etl.stage import Read, Stage, StageConfig, UserError, tasks
from etl.stages.metadata import DAMAGE, scan_uids
from etl.tables import PAIRS, SCORES

ROW = "uid string, score float, uri string, number bigint"


class Config(StageConfig):
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks that read files; None: spark.sql.shuffle.partitions."""
    column: str = ""
    """Known to a run only: in the metadata."""
    columns: dict[str, str] = pydantic.Field(default={})
    """Known to a run only: those of ingest, by which a row has its uid."""
    filter: str = ""
    """Known to a run only: the name in `scores`."""
    filter_version: str = ""
    """Known to a run only: names the column."""


def listing(dataset: Any) -> pd.DataFrame:
    """The metadata files of a dataset. Raises UserError where there are none."""
    files = list_shards(dataset.metadata) if dataset.metadata else []
    rows = [(file.uri, file.size_bytes, file.etag) for file in files if file.uri.endswith(".parquet")]
    if not rows:
        raise UserError(f"published scores: wanted parquet files; found none at metadata: {dataset.metadata}")
    return pd.DataFrame(rows, columns=["uri", "size_bytes", "etag"])


def reader(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Files to (uid, score, uri, number): the finite values of the column."""

    def read_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for uri in (uri for batch in batches for uri in batch.column("uri").to_pylist()):
            uids, _ = scan_uids(uri, columns=config.columns)
            values = _values(uri, config.column)[: len(uids)]
            size = len(values)
            places = [pa.array([uri] * size, pa.string()), pa.array(range(size), pa.int64())]
            columns = [pa.array(uids[:size], pa.string()), values, *places]
            yield pa.record_batch(columns, names=["uid", "score", "uri", "number"])

    return read_files


def _values(uri: str, column: str) -> pa.Array:
    """The column as float32, as far as the file can be read; nothing where it has none, or one of another type."""
    parts: list[pa.Array] = []
    # What is damaged is in the ledger of ingest: here it ends the values.
    with suppress(*DAMAGE), fsspec.open(uri, "rb") as file:
        batches = pq.ParquetFile(file).iter_batches(columns=[column])
        parts.extend(batch.column(column).cast(pa.float32(), safe=False) for batch in batches)
    return pa.concat_arrays(parts) if parts else pa.array([], pa.float32())


def transform(files: DataFrame, pairs: DataFrame, *, config: Config) -> DataFrame:
    is_usable = F.abs("score") < float("inf")
    spread = files.select("uri").repartition(tasks(config.num_tasks, files), "uri")
    # Python: one damaged file must not fail the others, and uids are made as ingest makes them.
    values = spread.mapInArrow(reader(config), ROW)
    first = values.groupBy("uid").agg(F.min_by("score", F.struct("uri", "number")).alias("score"))
    return (
        pairs.select("uid")
        .join(first, on="uid", how="left")
        .select(
            F.lit(config.filter).alias("filter"),
            F.lit(config.filter_version).alias("filter_version"),
            "uid",
            F.when(is_usable, F.col("score")).alias("score"),
            F.when(is_usable, "ok").otherwise("no_vectors").alias("status"),
        )
    )


STAGE = Stage(
    "published_scores", reads={"pairs": Read(PAIRS)}, writes=(SCORES,), config=Config, transform=transform,
    resume="table", version=1, listing=listing,
)  # fmt: skip
