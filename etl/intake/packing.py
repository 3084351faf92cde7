"""Images that lie in no tar (files in a folder, bytes or paths in a list) into tars, as ingest reads them. Touches
those files, and one folder for the tars.

A tar's name is that of its content: packed again after a kill it is the same file. Of a sample the image's bytes stay
as they are; the json has what the source says, and a uid that does not depend on the tar. A path that a list names is
read only where it stays, links followed, within the folder of the list.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from etl.intake.blocklists import Blocklist
from etl.intake.lists import UID, given_uids, scan_list
from etl.intake.stay_out import REASON
from etl.intake.uids import uid_of, uid_of_bytes
from etl.shards import IMAGE_EXTENSIONS, Row, ShardSummary, ShardWriter, publish, shard_file
from etl.stage import digest
from etl.tar import cause
from models.images import StatusError, sha256_hex, sniff

KINDS = ("uid", "url", "text", "image", "path")
BATCH_ROWS = 200
"""Of a list with bytes: what is held at a time."""
SAMPLES, SHARD_BYTES = 10_000, 512 << 20
"""Of a tar, at most."""
EXTENSIONS = {"jpeg": "jpg"}
FOLDER_MARK = "/#"
"""Of the uri of a folder: what follows names its content, so that a folder with more in it is another input."""


class Sample(NamedTuple):
    """A sample of a source, by its place there. `image`: its bytes, or what is wrong with it."""

    number: int
    uid: str
    url: str | None
    text: bytes | None
    image: bytes | StatusError
    facts: Mapping[str, Any]


@dataclass
class Packer:
    """Samples into tars of `folder`. `add` and `close` give (number, row of `pairs`) of what is done."""

    folder: str
    scan: Callable[[str], Iterator[Row | ShardSummary]]
    """What reads a finished tar."""
    blocklist: Blocklist = Blocklist()  # noqa: RUF009 - it cannot change
    max_pixels: int = 0
    source: str | None = None
    _writer: ShardWriter | None = None
    _numbers: list[int] = field(default_factory=list)
    _size_bytes: int = 0

    def add(self, sample: Sample) -> Iterator[tuple[int, Row]]:
        image = self._problem(sample)
        if isinstance(image, StatusError):
            yield sample.number, self._row(sample, image)
            return
        if self._writer is None:
            self._writer = ShardWriter(f"{self.folder}/packed")
            self._writer.lock()
        kind = sniff(image)
        extension = EXTENSIONS.get(kind, kind)
        members = {
            extension if extension in IMAGE_EXTENSIONS else "img": image,
            "json": json.dumps({**sample.facts, "uid": sample.uid, "url": sample.url}, sort_keys=True).encode(),
        }
        members |= {} if sample.text is None else {"txt": sample.text}
        self._writer.add(f"{len(self._numbers):09d}", members)
        self._numbers.append(sample.number)
        self._size_bytes += len(image)
        if len(self._numbers) >= SAMPLES or self._size_bytes >= SHARD_BYTES:
            yield from self.close()

    def close(self) -> Iterator[tuple[int, Row]]:
        """Gives the tar its name, and reads it."""
        if self._writer is not None:
            written, numbers = self._writer.close(), self._numbers
            self._writer, self._numbers, self._size_bytes = None, [], 0
            name = f"{written.sha256[:32]}.tar"
            publish(self.folder, written.temporary, name)
            *rows, _ = self.scan(f"{self.folder}/{name}")
            yield from zip(numbers, rows, strict=True)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()

    def _problem(self, sample: Sample) -> bytes | StatusError:
        image = sample.image
        if isinstance(image, StatusError):
            return image
        if self.blocklist.forgotten.has("uid", sample.uid):
            return StatusError("forgotten", REASON)
        why = self.blocklist.of_url(sample.url or "") or self.blocklist.of_bytes(image, self.max_pixels)
        return StatusError("blocklisted", why) if why else image

    def _row(self, sample: Sample, problem: StatusError) -> Row:
        """Of a sample without pixels."""
        text = None if sample.text is None else sample.text.decode("utf-8", "replace")
        known = {"uid": sample.uid, "url": sample.url, "text": text, "source": self.source}
        return {**known, "status": problem.status, "status_reason": problem.reason}


def packed(samples: Iterator[Sample], packer: Packer) -> Iterator[tuple[int, Row]]:
    """(number, row of `pairs`) of each sample; a tar's when it is full."""
    try:
        for sample in samples:
            yield from packer.add(sample)
        yield from packer.close()
    finally:
        packer.abort()


def samples_of_rows(rows: pa.RecordBatch, numbers: list[int], beside: Beside) -> Iterator[Sample]:
    """Samples of rows of a list: bytes where there are some, else a path, read from `beside`."""
    absent = pa.nulls(len(rows), pa.string())
    column = {name: rows.column(name) for name in rows.schema.names}
    uids, is_one = given_uids(column.get("uid", absent))
    parts = [column.get(name, absent) for name in ("url", "text", "path", "image")]
    for number, uid, is_given, url, text, path, image in zip(numbers, uids, is_one, *parts, strict=True):
        url, text, path, data = url.as_py(), text.as_py(), path.as_py(), image.as_py()
        if data is None:
            data = beside.read(path) if path else StatusError("metadata_only", "the list has no image of it")
        name = url or path or ("" if isinstance(data, StatusError) else sha256_hex(data))
        found = uid.as_py() if is_given.as_py() else uid_of(name, text)
        yield Sample(number, found, url, None if text is None else text.encode(), data, {})


def samples_of_list(uri: str, columns: Mapping[str, str], max_bytes: int) -> Iterator[Sample | ShardSummary]:
    """Of a list of image bytes or paths; last, always, its summary."""
    beside, start = Beside(uri.rpartition("/")[0], max_bytes), 0
    for item in scan_list(uri, columns=columns, kinds=KINDS, needs=[("image", "path")], batch_rows=BATCH_ROWS):
        if isinstance(item, ShardSummary):
            yield item
        else:
            yield from samples_of_rows(item, list(range(start, start + len(item))), beside)
            start += len(item)


def samples_of_folder(folder: str, root: str, max_bytes: int) -> Iterator[Sample | ShardSummary]:
    """Of the files in a folder, as img2dataset's `files` has them: KEY.jpg, KEY.txt, KEY.json; last its summary."""
    beside, number = Beside(root, max_bytes), 0
    try:
        groups: dict[str, dict[str, str]] = {}
        for name in names_in(folder):
            key, _, extension = name.rpartition(".")
            part = "image" if extension.lower() in IMAGE_EXTENSIONS else extension.lower()
            if key and key[0] != "." and part in ("image", "txt", "json"):
                groups.setdefault(key, {}).setdefault(part, name)
        place = folder.rstrip("/").removeprefix(root).lstrip("/")
        for number, (key, parts) in enumerate(sorted(groups.items())):
            yield _of_files(number, f"{place}/{key}" if place else key, place, parts, beside)
    except OSError as error:
        yield ShardSummary(folder, None, "unreadable", cause(error), number)
    else:
        yield ShardSummary(folder, None, "ok", None, len(groups))


def _of_files(number: int, name: str, place: str, parts: Mapping[str, str], beside: Beside) -> Sample:
    read = {part: beside.read(f"{place}/{file}" if place else file) for part, file in parts.items()}
    document, text = _document(read.get("json")), read.get("txt")
    if not isinstance(text, bytes):
        caption = document.get("caption")
        text = caption.encode("utf-8", "replace") if isinstance(caption, str) else None
    url = document["url"] if isinstance(document.get("url"), str) else None
    given = str(document.get("uid", "")).lower()
    uid = given if re.fullmatch(UID, given) else uid_of_bytes(url or name, text or b"")
    image = read.get("image", StatusError("missing_partner", "no image among its files"))
    return Sample(number, uid, url, text, image, document)


def _document(data: bytes | StatusError | None) -> dict[str, Any]:
    try:
        found = json.loads(data) if isinstance(data, bytes) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def list_folders(pattern: str) -> list[tuple[str, int, str]]:
    """(uri, size_bytes, etag) of the folders that match a glob: sizes summed, and a hash of what the listing tells."""
    files, _ = url_to_fs(pattern)
    files.invalidate_cache()
    found = []
    for info in files.glob(pattern.rstrip("/"), detail=True).values():
        if info["type"] == "directory":
            inside = [shard_file(files, one) for one in files.ls(info["name"], detail=True) if one["type"] == "file"]
            content = digest(sorted(inside))[:32]
            name = info["name"] if isinstance(files, LocalFileSystem) else files.unstrip_protocol(info["name"])
            found.append((f"{name}{FOLDER_MARK}{content[:12]}", sum(file.size_bytes for file in inside), content))
    return sorted(found)


def names_in(folder: str) -> list[str]:
    """The names of the files in a folder, sorted."""
    files, path = url_to_fs(folder)
    found = files.ls(path, detail=True, refresh=True)
    return sorted(str(info["name"]).rpartition("/")[2] for info in found if info["type"] != "directory")


@dataclass(frozen=True)
class Beside:
    """Files below one folder, and no others."""

    folder: str
    max_bytes: int

    def read(self, path: str) -> bytes | StatusError:
        """The bytes of a file, by its path relative to the folder; or why not."""
        files, root = url_to_fs(self.folder or ".")
        parts = path.replace("\\", "/").split("/")
        if "://" in path or ".." in parts or "\0" in path:
            return StatusError("unsafe_member", "the path leads out of the folder")
        target = path if path.startswith("/") else f"{root}/{path}"
        if isinstance(files, LocalFileSystem):
            inside, real = Path(root).resolve(), Path(target).resolve()
            if not real.is_relative_to(inside):
                return StatusError("unsafe_member", "the path leads out of the folder")
            if not real.is_file():
                return StatusError("unreadable", "no such file")
        elif not target.startswith(f"{root}/"):
            return StatusError("unsafe_member", "the path leads out of the folder")
        try:
            with files.open(target, "rb") as file:
                data: bytes = file.read(self.max_bytes + 1)
        except Exception as error:  # each remote file system raises its own kinds
            return StatusError("unreadable", cause(error))
        if len(data) > self.max_bytes:
            return StatusError("too_large", f"more than {self.max_bytes} bytes")
        return data


def sweep(folder: str) -> None:
    """Removes tars that a kill left unfinished; one whose writer lives is locked."""
    files, path = url_to_fs(folder)
    for unfinished in Path(path).glob(".*.tmp") if isinstance(files, LocalFileSystem) else ():
        with suppress(OSError), unfinished.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            unfinished.unlink(missing_ok=True)
