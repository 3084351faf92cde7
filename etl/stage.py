"""The protocol that every stage follows: Table, Read, Stage, conform. Touches nothing: no session, no files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import StructType

Facts = dict[str, Any]
"""What `prepare` found (a threshold, a histogram): JSON, at most 64 MB, saved with the run and in receipts."""

Slice = Mapping[str, str | tuple[str, ...]]
"""What one version of one thing fills in a table: partition column -> its value or values. {} is all of it."""


class UserError(Exception):
    """A mistake that the user can mend. Its text says what was wanted, what was found, how to fix it. Exit code 2."""


class StageConfig(pydantic.BaseModel):
    """Base of each stage's `Config`: unknown keys are errors, values cannot change under a running stage."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Table:
    """A data contract. `ddl` serves CREATE TABLE and the schema alike; `tables.py` holds them all."""

    name: str
    ddl: str
    key: tuple[str, ...]
    sliced_by: tuple[str, ...] = ()
    """Partition columns. What has versions is partitioned by them: dropping a version is metadata only."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """Name -> SQL condition, enforced by the table itself on every write."""
    is_project_wide: bool = False
    """True: one table for all datasets (runs, evaluations, promotions)."""


@dataclass(frozen=True)
class Read:
    """An input of a stage: the dataset's own table, or that of all datasets of some kinds, with a `dataset` column."""

    table: Table
    kinds: tuple[str, ...] = ()
    is_read: Callable[[Any], bool] = lambda config: True
    """Whether a run with this config reads it. If not, a change of it makes nothing stale, and no frame is given."""
    slice_of: Callable[[Any], Slice] | None = None
    """Which slice is read, from the config. Default: config fields named like the partition columns."""


@dataclass(frozen=True)
class Shared:
    """A costly pass over the rows that serves several runs at once. `transform` is `finish` of it, for one run."""

    compute: Callable[..., DataFrame]
    """compute(**inputs, configs=[...]) -> a row per row, with what each config asks for, and the `timings`."""
    finish: Callable[..., DataFrame]
    """finish(passed, number, config=...) -> the output of the run whose config was that number."""
    settings: Callable[[Any], Any]
    """What of a config runs must have in common to share a pass."""
    timings: tuple[str, ...] = ()
    """Columns of seconds, summed over the pass and told."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline. `transform` is DataFrames in, DataFrames out; `run.py` does everything else.

    transform(**inputs, config=..., [facts=...]) returns one DataFrame per table in `writes` (a bare one for one table).
    With several tables the last one is written last and says that the slice or chunk is done.
    """

    name: str
    reads: Mapping[str, Read]
    writes: tuple[Table, ...]
    config: type[StageConfig]
    transform: Callable[..., DataFrame | tuple[DataFrame, ...]]
    resume: Literal["rows", "table"]
    version: int
    """Raise it when the same input and config would give other rows: everything written before is then stale."""
    kinds: tuple[str, ...] = ("pool",)
    """Kinds of dataset that this stage runs on."""
    prepare: Callable[..., Facts] | None = None
    """prepare(**inputs, config=...) may run jobs and collect at most 64 MB."""
    listing: Callable[[Any], pd.DataFrame] | None = None
    """Files named by the dataset's config, as the first input, for the stage that has no table before it."""
    shared: Shared | None = None
    """The costly part of a `rows` stage, which several runs can make together."""
    replaces: Callable[[DataFrame], tuple[DataFrame, DataFrame]] | None = None
    """replaces(frame) -> the rows for its first table that take the place of one there with their key, and the others,
    of a `rows` stage that can give such rows."""
    committed: Callable[[Any, DataFrame], None] | None = None
    """committed(config, written), on the driver after each chunk's commit: tidies what executors wrote beside rows."""
    update: Callable[..., DataFrame | None] | None = None
    """update(earlier, added, written, config=..., [facts=...]) -> what `transform` would return, of a `table` stage
    that wrote one table by the same code and config when its inputs had fewer rows. `earlier` and `added` hold each
    input's rows of then and those that came since; `written` is what it wrote. None: it cannot be told from that."""
    slice_of: Callable[[StageConfig, str], Slice] | None = None
    """Which slice of `writes` a run fills, from its config and key. Default: config fields named like the columns."""

    def output_slice(self, config: StageConfig, key: str) -> Slice:
        return self.slice_of(config, key) if self.slice_of else slice_from(self.writes[-1], config)


def slice_from(table: Table, config: StageConfig) -> Slice:
    """The slice that `config` names by fields called like the table's partition columns."""
    return {column: getattr(config, column) for column in table.sliced_by if hasattr(config, column)}


def overlap(left: Slice, right: Slice) -> bool:
    """Whether two slices of one table can share rows."""
    return all(set(_values(left[c])) & set(_values(right[c])) for c in left.keys() & right.keys())


def tasks(number: int | None, frame: DataFrame) -> int:
    """How many tasks to spread `frame` over: `number`, else spark.sql.shuffle.partitions.

    A number, because adaptive execution would coalesce few small rows, which stand for much work, into one task.
    """
    return number or int(frame.sparkSession.conf.get("spark.sql.shuffle.partitions") or 1)


def for_join(marks: DataFrame, max_rows: int = 200_000, max_bytes: int = 128 << 20) -> DataFrame:
    """`marks`, computed now; sent to every task where they are few, so that what they are joined to is not shuffled.

    `max_bytes`: of their strings, since a caption can have a megabyte.
    """
    found = marks.localCheckpoint()
    lengths = [F.coalesce(F.octet_length(name), F.lit(0)) for name, kind in found.dtypes if kind == "string"]
    sizes = F.count(F.lit(1)).alias("rows"), F.coalesce(F.sum(sum(lengths, F.lit(0))), F.lit(0)).alias("bytes")
    num = found.limit(max_rows + 1).agg(*sizes).collect()[0]
    return F.broadcast(found) if num["rows"] <= max_rows and num["bytes"] <= max_bytes else found


def series_udf(function: Callable[..., Any], returns: str) -> Callable[..., Column]:
    """An iterator pandas UDF; PySpark's own stubs know no iterator of tuples."""
    untyped: Any = pandas_udf  # the one place where it is named: each caller says why it is Python
    made: Callable[..., Column] = untyped(function, returns)
    return made


def predicate(where: Slice) -> str:
    """A slice as a SQL condition on partition columns."""
    quoted = {c: ", ".join("'" + v.replace("'", "''") + "'" for v in _values(values)) for c, values in where.items()}
    return " AND ".join(f"{column} IN ({values})" for column, values in quoted.items()) or "TRUE"


def _values(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def digest(*parts: Any) -> str:
    """64 hex digits of the sha256 over the canonical JSON of `parts`: one way to name a content everywhere."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def content_hash(*columns: str) -> list[Any]:
    """Two aggregates that name a set of rows whatever their order: halves of the sum of md5(columns), see `fold_hash`.

    Sums of decimals are exact, so partitions and order cannot change them.
    """
    digest_hex = F.md5(F.concat_ws("\0", *[F.coalesce(F.col(c).cast("string"), F.lit("\1")) for c in columns]))
    halves = [F.conv(F.substring(digest_hex, start, 16), 16, 10).cast("decimal(20,0)") for start in (1, 17)]
    return [F.sum(half).alias(name) for half, name in zip(halves, ("hash_high", "hash_low"), strict=True)]


def fold_hash(high: Any, low: Any) -> str:
    """The two sums of `content_hash` as 32 hex digits: sum mod 2^128. None stands for no rows."""
    return f"{((int(high or 0) << 64) + int(low or 0)) % (1 << 128):032x}"


def conform(frame: DataFrame, schema: StructType, table: Table) -> DataFrame:
    """`frame` with exactly the columns of `table`, in its order.

    Names are compared first, since `DataFrame.to` fills a missing nullable column with NULL; NOT NULL and CHECK are the
    table's to enforce, since what a UDF returns is always nullable.
    """
    found, wanted = set(frame.columns), set(schema.names)
    if found != wanted:
        raise TypeError(
            f"table {table.name}: wanted columns {sorted(wanted)}; missing {sorted(wanted - found)}, "
            f"unknown {sorted(found - wanted)}; end the transform with a select of exactly the wanted ones"
        )
    nullable = StructType([type(f)(f.name, f.dataType, True) for f in schema.fields])
    return frame.to(nullable)
