"""Tables against their contracts: readable, with all columns, checks met, keys unique. Reads them."""

from __future__ import annotations

from collections.abc import Iterator

from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from etl.stage import Table
from etl.store import Store


def problems_of(store: Store, dataset: str, table: Table) -> Iterator[str]:
    """A line for each way in which a table is not what its contract says, with what to do."""
    name = f"{dataset}.{table.name}" if dataset and not table.is_project_wide else table.name
    try:
        yield from (f"{name}: {line}" for line in _problems(store, dataset, table))
    except Exception as error:  # of another class under Spark Connect
        found = " ".join(str(error).split())[:200]
        yield f"{name}: cannot be read: {found}; fix: give its files back, or drop it and run again (dfn run)"


def _problems(store: Store, dataset: str, table: Table) -> Iterator[str]:
    wanted = StructType.fromDDL(table.ddl)
    frame = store.read(dataset, table)
    found = {field.name: field.dataType for field in frame.schema.fields}
    lacking = [f for f in wanted.fields if f.name not in found]  # type: ignore[attr-defined]
    others = [f for f in wanted.fields if f.name in found and found[f.name] != f.dataType]  # type: ignore[attr-defined]
    for field in lacking:
        yield f"wanted the column {field.name}; found none; fix: drop the table and run again, or ALTER TABLE"
    for field in others:
        yield f"{field.name}: wanted {field.dataType.simpleString()}; found {found[field.name].simpleString()}"
    if lacking or others:
        return
    tests = {name: ~F.expr(condition) for name, condition in table.checks.items()}
    tests |= {f"{f.name} is not NULL": F.col(f.name).isNull() for f in wanted.fields if not f.nullable}  # type: ignore[attr-defined]
    if tests:
        (counts,) = frame.agg(*[F.count_if(test).alias(f"_{n}") for n, test in enumerate(tests.values())]).collect()
        for count, name in zip(counts, tests, strict=True):
            if count:
                yield f"{count:,} rows break the check {name}; fix: find who wrote them (DESCRIBE HISTORY), run again"
    again = frame.groupBy(*table.key).count().where("count > 1").count()
    if again:
        yield f"{again:,} keys ({', '.join(table.key)}) come more than once; fix: see who wrote them (DESCRIBE HISTORY)"
