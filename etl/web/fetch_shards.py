"""Tars of downloaded images, such that what was stored outlasts any kill. Touches one folder, which all tasks share.

A task writes one tar at a time, under a name of its own, locked and flushed sample by sample. When it is full or the
task ends, a note with the rows of `fetches` is written beside it, `.SHARD.tar.json`, and then the tar gets its final
name, which is that of its content. Notes go when their rows are committed. A tar that a kill left is taken over: what
is whole in it is kept, by the rows in its own samples. So no image whose bytes were stored is fetched again.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from etl.shard_writer import ShardWriter, publish, publish_json
from etl.tar import Member, ShardError, index, split_name
from models.records import sha256_file

Row = dict[str, Any]
"""A row of `fetches`, JSON only; `shard` is known once the tar is."""
NOTES, UNFINISHED = ".*.tar.json", ".*.tmp"
NUM_MEMBERS = 3
"""Of a sample: image, txt, json."""


class ShardSink:
    """Samples of one task into tars of at most `pairs_per_shard`. `close` it, also after an error."""

    def __init__(self, folder: Path, task: int, pairs_per_shard: int) -> None:
        self._folder, self._name, self._pairs_per_shard = folder, f"task{task:05d}", pairs_per_shard
        self._writer: ShardWriter | None = None
        self._rows: list[Row] = []
        self.stored: list[Row] = []
        """Rows whose tar has its final name."""

    def add(self, row: Row, image: bytes, extension: str, text: str, facts: Mapping[str, Any]) -> None:
        """One sample, flushed. `facts`: what its json holds, beside the row."""
        if self._writer is None:
            self._writer = ShardWriter(f"{self._folder}/{self._name}")
            self._writer.lock()
        document = json.dumps({**facts, "fetch": row}, sort_keys=True).encode()
        self._writer.add(row["uid"], {extension: image, "txt": text.encode(), "json": document})
        self._writer.flush()
        self._rows.append(row)
        if len(self._rows) >= self._pairs_per_shard:
            self.close()

    def close(self) -> None:
        """Gives what was added its final name."""
        if self._writer is not None:
            written = self._writer.close()
            self.stored += _publish(self._folder, written.temporary, written.sha256, self._rows)
            self._writer, self._rows = None, []


def noted(folder: Path) -> dict[str, Row]:
    """uid -> row, of published tars whose rows are not known to be committed."""
    found: dict[str, Row] = {}
    for note in folder.glob(NOTES):
        with suppress(OSError, ValueError, KeyError):  # gone, or not whole
            rows = json.loads(note.read_text())["rows"]
            if (folder / note.name[1:].removesuffix(".json")).exists():
                found.update({row["uid"]: row for row in rows})
    return found


def notes(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each note and the uids in it."""
    for note in folder.glob(NOTES):
        with suppress(OSError, ValueError, KeyError):
            yield note, [row["uid"] for row in json.loads(note.read_text())["rows"]]


def take_over(folder: Path, task: int | None = None) -> int:
    """Finishes the tars that dead writers left (of one task, or of all); returns how many samples that kept."""
    num_kept = 0
    for path in sorted(folder.glob(UNFINISHED if task is None else f".task{task:05d}.*.tmp")):
        with suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its writer lives
                continue
            rows, end = _whole(file)
            if rows:
                file.truncate(end)
                file.seek(end)
                file.write(bytes(2 * tarfile.BLOCKSIZE))
                file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
                file.flush()
                os.fsync(file.fileno())
                _publish(folder, path.name, sha256_file(path), rows)
                num_kept += len(rows)
            else:
                path.unlink(missing_ok=True)
    return num_kept


def _publish(folder: Path, temporary: str, sha256: str, rows: list[Row]) -> list[Row]:
    name = f"{sha256[:32]}.tar"
    placed = [{**row, "shard": f"{folder.name}/{name}"} for row in rows]
    publish_json(folder / f".{name}.json", {"rows": placed})
    publish(str(folder), temporary, name)
    return placed


def _whole(file: io.BufferedRandom) -> tuple[list[Row], int]:
    """The rows of the samples that are whole, and where the last of them ends, bytes."""
    rows: list[Row] = []
    end, sample = 0, dict[str, Member]()
    size = file.seek(0, os.SEEK_END)
    with suppress(ShardError):  # where it is cut
        for member in index(file):
            key, extension = split_name(member.name) or ("", "")
            sample = sample if all(k.startswith(f"{key}.") for k in sample) else {}
            sample[f"{key}.{extension}"] = member
            at = _padded(member)
            if len(sample) == NUM_MEMBERS and at <= size and f"{key}.json" in sample:
                rows.append(_row(file, sample[f"{key}.json"]))
                end, sample = at, {}
    return rows, end


def _row(file: io.BufferedRandom, member: Member) -> Row:
    at = file.tell()
    file.seek(member.offset_bytes)
    row: Row = json.loads(file.read(member.size_bytes))["fetch"]
    file.seek(at)
    return row


def _padded(member: Member) -> int:
    return member.offset_bytes + -(-member.size_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
