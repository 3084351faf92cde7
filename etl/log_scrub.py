"""Takes values out of a table's log: the smallest and largest of each column that it keeps of every file, also of files
that are gone. Touches the log's folder, on a local disk. Called by `store.py`, which knows when that is safe.

Statistics are optional in the protocol: counts stay, values go. What a commit says of itself (operation, notes) stays
as it is, and so do the times of its files, which Delta takes for those of the versions.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from models.records import write_whole

VALUES = ("minValues", "maxValues")
ACTIONS = ("add", "remove")


def has_dead_files(log: Path) -> bool:
    """Whether a table's folder may hold a data file that its newest version does not: of an older one, or of a kill."""
    live, commits = set[str](), sorted(path for path in log.glob("*.json") if path.name[:20].isdigit())
    if [int(path.stem) for path in commits] != list(range(len(commits))):
        return True  # the log does not reach back to the beginning
    for path in commits:
        for action in map(json.loads, path.read_text().splitlines()):
            live |= {unquote(action["add"]["path"])} if "add" in action else set()
            live -= {unquote(action["remove"]["path"])} if "remove" in action else set()
    files = (path for path in log.parent.rglob("*") if path.is_file() and not path.is_relative_to(log))
    return any(str(path.relative_to(log.parent)) not in live for path in files if path.suffix != ".crc")


def without_values(log: Path) -> int:
    """How many files were rewritten or removed. Done twice, the second time there is none."""
    changed = [path for path in sorted(log.glob("*.json")) if path.name[:20].isdigit() and _scrub_commit(path)]
    changed += [path for path in sorted(log.glob("*.checkpoint*.parquet")) if _scrub_checkpoint(path)]
    sums = [path for path in log.glob("*.crc") if not path.name.startswith(".")]  # copies of the state, for checks
    for path in (*changed, *sums):
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)  # Hadoop's checksum of what it was
    for path in sums:
        path.unlink()
    return len(changed) + len(sums)


def _scrub_commit(path: Path) -> bool:
    lines = path.read_text().splitlines()
    scrubbed = [_scrub_line(line) for line in lines]
    if scrubbed == lines:
        return False
    times = path.stat()
    write_whole(path, "".join(f"{line}\n" for line in scrubbed))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return True


def _scrub_line(line: str) -> str:
    if not any(value in line for value in VALUES):
        return line
    action = json.loads(line)
    for name in ACTIONS:
        if action.get(name, {}).get("stats"):
            action[name]["stats"] = _counts(action[name]["stats"])
    return json.dumps(action, separators=(",", ":"))


def _counts(stats: str | None) -> str | None:
    if not stats:
        return stats
    kept = {key: value for key, value in json.loads(stats).items() if key not in VALUES}
    return json.dumps(kept, separators=(",", ":"))


def _scrub_checkpoint(path: Path) -> bool:
    table = pq.read_table(path)
    before = table
    for name in ACTIONS:
        if name in table.column_names:
            column = table.column(name).combine_chunks()
            made = _scrub_struct(column)
            table = table.set_column(table.column_names.index(name), pa.field(name, made.type), made)
    if table.equals(before):
        return False
    times = path.stat()
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return True


def _scrub_struct(column: Any) -> pa.StructArray:
    """The actions of a checkpoint: `stats` without values, and nothing in `stats_parsed`."""
    fields, children = [], []
    for number, field in enumerate(column.type):
        child = column.field(number)
        if field.name == "stats":
            child = pa.array([_counts(text) for text in child.to_pylist()], pa.string())
        elif field.name == "stats_parsed":
            child = pa.nulls(len(column), field.type)
        fields.append(field)
        children.append(child)
    return pa.StructArray.from_arrays(children, fields=fields, mask=column.is_null())
