"""A column of a release's metadata, as a frame. Reads metadata files. What loads one of them is a stage beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.arrow import count_from
from etl.intake.table_lists import is_table
from etl.shards import list_shards
from etl.stage import StageConfig, UserError, tasks
from etl.stages.metadata import scan_column
from etl.storage import with_storage

MAX_ROWS_BITS = 40
"""Of a place: the number of the file, then that of the row in it."""


class Config(StageConfig):
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks that read files; None: spark.sql.shuffle.partitions."""
    column: str = ""
    """In the metadata."""
    columns: dict[str, str] = pydantic.Field(default={})
    """Known to a run only: those of ingest, by which a row has its uid."""
    storage: dict[str, dict[str, Any]] = pydantic.Field(default={}, exclude=True)
    """Known to a run only: see `etl/storage.py`."""


def listing(dataset: Any) -> pd.DataFrame:
    """The metadata files of a dataset, or its lists of URLs, numbered by uri. Raises UserError where there are none."""
    pattern = dataset.metadata or dataset.urls
    files = list_shards(pattern) if pattern and not is_table(pattern) else []
    rows = [(file.uri, file.size_bytes, file.etag) for file in files if file.uri.endswith(".parquet")]
    if not rows:
        raise UserError(f"published columns: wanted parquet files; found none at {pattern or 'metadata'}")
    return pd.DataFrame(rows, columns=["uri", "size_bytes", "etag"]).assign(number=range(len(rows)))


def first_values(files: DataFrame, config: Config, ddl: str, kind: pa.DataType) -> DataFrame:
    """(uid, value): the column as `ddl`, which is `kind` in Arrow; of two rows with one uid the first file's first."""
    # Python: one damaged file must not fail the others, and uids are made as ingest makes them.
    values = files.repartition(tasks(config.num_tasks, files)).mapInArrow(
        reader(config, kind), f"uid string, value {ddl}, place bigint"
    )
    # By one number: with a struct to compare, Spark would sort the rows in place of hashing them.
    return values.groupBy("uid").agg(F.min_by("value", "place").alias("value"))


def reader(config: Config, kind: pa.DataType) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Files to (uid, value, place)."""

    def read_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for file in (file for batch in batches for file in batch.to_pylist()):
            start = file["number"] << MAX_ROWS_BITS
            for uids, values in scan_column(file["uri"], config.column, kind, columns=config.columns):
                places = count_from(start, len(uids))
                yield pa.record_batch([uids, values, places], names=["uid", "value", "place"])
                start += len(uids)

    return with_storage(read_files, config.storage)
