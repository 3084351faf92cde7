"""Rows that Python hands to Spark, as Arrow: a schema from DDL or Spark's own, and batches of it. Touches nothing."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

TYPES = {
    "string": pa.string(), "bigint": pa.int64(), "int": pa.int32(), "float": pa.float32(), "boolean": pa.bool_(),
    "binary": pa.binary(),
}  # fmt: skip


def schema_of(ddl: str) -> pa.Schema:
    """Of `name type, name type`, the types being keys of TYPES."""
    return pa.schema([(name, TYPES[kind]) for name, kind in (part.split() for part in ddl.split(","))])


def in_utc(schema: StructType) -> pa.Schema:
    """Of a Spark schema, its timestamps in UTC: Spark 4.0 means that without being told."""
    is_told = "timezone" in inspect.signature(to_arrow_schema).parameters
    told: dict[str, Any] = {"timezone": "UTC"} if is_told else {}
    return to_arrow_schema(schema, **told)


def batch_of(schema: pa.Schema, num_rows: int, **known: Any) -> pa.RecordBatch:
    """All columns of `schema`: arrays or sequences as given, one value for all rows, or NULL where none is given."""
    return pa.record_batch([_array(known.get(f.name), f.type, num_rows) for f in schema], schema=schema)


def _array(values: Any, kind: pa.DataType, num_rows: int) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if values is None or isinstance(values, str | bool):
        return pa.repeat(pa.scalar(values, kind), num_rows)
    return pa.array(values, kind)


def count_from(start: int, num_rows: int) -> pa.Array:
    """start, start + 1 and so on. int64."""
    return pa.array(np.arange(start, start + num_rows, dtype=np.int64))
