"""Rows of the project's tables from what a test cares about, and rows back in an order that can be compared."""

import io
import random
import tarfile
from pathlib import Path

from PIL import Image
from pyspark.sql.types import StructField, StructType

from etl.shards import ShardWriter, publish
from etl.stage import Table


def uid(number: int) -> str:
    return f"{number:032x}"


def schema_of(table: Table) -> StructType:
    found = StructType.fromDDL(table.ddl)
    return StructType([StructField(f.name, f.dataType, True) for f in found.fields])


def frame(spark, table: Table, rows: list[dict], partitions: int | None = None):
    """`rows` with NULL for what they leave out; over `partitions`, in a shuffled order, where that is given."""
    schema = schema_of(table)
    unknown = {name for row in rows for name in row} - set(schema.names)
    assert not unknown, f"{table.name} has no {unknown}"
    if partitions:
        rows = random.Random(partitions).sample(rows, len(rows))
    made = spark.createDataFrame([tuple(row.get(name) for name in schema.names) for row in rows], schema)
    return made.repartition(partitions) if partitions else made


def rows_of(found, *columns: str) -> list[tuple]:
    """All rows, sorted, NULLs first."""
    tuples = [tuple(row) for row in found.select(*(columns or found.columns)).collect()]
    return sorted(tuples, key=lambda row: [(value is not None, value) for value in row])


def picture(shade: int = 0, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """An image whose bytes and perceptual hash follow from `shade`: seeded noise, for flat colours hash alike."""
    noise = random.Random(shade).randbytes(size[0] * size[1] * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", size, noise).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with ShardWriter(str(path)) as writer:
        for key, members in samples.items():
            writer.add(key, members)
        written = writer.close()
    publish(str(path.parent), written.temporary, path.name)


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Member -> (offset, size) of its payload, by the standard library."""
    with tarfile.open(path) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def running_in(session: int) -> dict[int, str]:
    """Process -> name, of those in a session (`start_new_session`) that still run, whoever their parent is."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, _, its_session = rest.split()[:4]
        if int(its_session) == session and state not in "ZX":
            found[int(stat.parent.name)] = name
    return found
