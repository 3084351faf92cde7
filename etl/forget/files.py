"""Files of a project, beside tables and shards, that name what was forgotten: lists, vectors, reports, other texts.

Reads every file below OUTPUT but tables, tars and weights. Lists are written again without the keys; vectors and
pointers go (the next training makes them anew); a picture in a report goes with its caption; in other texts a key
becomes REDACTED. What is none of these (a database, say) and names one is told, and left.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etl.intake.stay_out import StayOut
from etl.shard_writer import MANIFEST, publish, temporary_name
from models.data import UID_DTYPE, read_uids, u8_to_uid
from models.records import write_whole

SHOWN = re.compile(r"<li><figure>.*?</figure></li>", re.DOTALL)
"""A picture in a report, with all that is said of it."""
TEXTS = {".json", ".jsonl", ".txt", ".html", ".csv", ".md", ".yaml", ".log"}
NO_KEYS = {".tar", ".safetensors"}
"""Looked at as shards; weights alone."""
OVERLAP = 4096
"""Characters of one part of a file that are looked at with the next: a key at the border is whole in one of them."""


class Touched(NamedTuple):
    """A file that names what was forgotten."""

    path: Path
    what: str
    """list, vectors, report, text: mended. other: left as it is."""
    num_keys: int


def files_of(output: Path, tables: Path | None) -> Iterator[Path]:
    """What is below `output`, without tables, tars and weights."""
    for path in sorted(output.rglob("*")):
        is_table = tables is not None and path.is_relative_to(tables)
        if path.is_file() and not path.is_symlink() and path.suffix not in NO_KEYS and not is_table:
            yield path


def mend(path: Path, stay_out: StayOut, *, is_dry: bool) -> Touched | None:
    """Takes forgotten keys out of a file; None where it names none. `is_dry`: only says so."""
    if not path.exists():  # went with its folder
        return None
    if path.suffix == ".npy" and (kept := _listed(path, stay_out)) is not None:
        uids, num_keys = kept
        return _done(path, "list", num_keys, is_dry, lambda: _write_list(path, uids))
    if path.suffix in (".arrow", ".parquet"):
        num_keys = sum(stay_out.has(kind, key) for kind, key in _keys_of(path))
        if path.suffix == ".parquet":
            return _done(path, "other", num_keys, True, None)
        return _done(path.parent, "vectors", num_keys, is_dry, lambda: _remove(path.parent))
    if path.suffix in TEXTS:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return _other(path, stay_out)
        found, num_keys = _without(text, stay_out)
        what = "report" if path.suffix == ".html" else "text"
        return _done(path, what, num_keys, is_dry, lambda: write_whole(path, found))
    return _other(path, stay_out)


def _done(path: Path, what: str, num_keys: int, is_dry: bool, act: Any) -> Touched | None:
    if num_keys and not is_dry:
        act()
    return Touched(path, what, num_keys) if num_keys else None


def _without(text: str, stay_out: StayOut) -> tuple[str, int]:
    def shown(match: re.Match[str]) -> str:
        return "" if stay_out.redacted(match[0])[1] else match[0]

    found, num_keys = stay_out.redacted(text)
    return (stay_out.redacted(SHOWN.sub(shown, text))[0] if num_keys else found), num_keys


def _listed(path: Path, stay_out: StayOut) -> tuple[np.ndarray, int] | None:
    """(uids that stay, how many do not) of a list; None of another array."""
    try:
        uids_N = read_uids(path)
    except ValueError:
        return None
    is_out = np.array([stay_out.has("uid", uid) for uid in u8_to_uid(uids_N)], dtype=bool)
    return np.asarray(uids_N)[~is_out], int(is_out.sum())


def _write_list(path: Path, uids_N: np.ndarray) -> None:
    temporary = path.parent / temporary_name(path.name)
    with temporary.open("wb") as file:
        np.save(file, uids_N.astype(UID_DTYPE))
    publish(str(path.parent), temporary.name, path.name)


def _keys_of(path: Path) -> Iterator[tuple[str, str]]:
    """(kind, key) of the columns of an Arrow or parquet file that hold keys, as text or as bytes."""
    for batch in _batches(path):
        for kind in ("uid", "sha256", "url"):
            for key in batch.column(kind).to_pylist() if kind in batch.schema.names else ():
                yield kind, key.hex() if isinstance(key, bytes) else key


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            known = [name for name in ("uid", "sha256", "url") if name in file.schema_arrow.names]
            yield from file.iter_batches(columns=known) if known else ()
        return
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        yield from map(reader.get_batch, range(reader.num_record_batches))


def _remove(folder: Path) -> None:
    """The manifest first: without it no reader takes the folder for whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _other(path: Path, stay_out: StayOut) -> Touched | None:
    num_keys, tail = 0, ""
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            data = tail + chunk.decode("latin-1")
            num_keys += stay_out.redacted(data)[1]
            tail = data[-OVERLAP:]
    return Touched(path, "other", num_keys) if num_keys else None
