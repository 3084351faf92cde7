"""Write shards that can be trusted: deterministic, published whole or not at all, in a manifest that is written last.

A manifest is JSON: {"shards": [{"shard", "num_samples", "size_bytes", "sha256"}], ...}, and may list other files of the
folder as {"files": [{"file", "size_bytes", "sha256"}]}. Import from `etl.shards`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from etl.tar import ShardError, cause, index, split_name
from models.records import fsync, write_whole

MANIFEST = "manifest.json"
_MAY_BE_THERE = frozenset({MANIFEST, "truth.parquet", "labels.parquet"})  # corpora put the truth beside their shards


class ShardWritten(NamedTuple):
    """A finished shard that has no final name yet."""

    temporary: str
    """Its name in the folder of the final one."""
    num_samples: int
    size_bytes: int
    sha256: str


class Sink:
    """Hashes and counts what goes into a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.size_bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.size_bytes


class ShardWriter:
    """One tar, under a name of this attempt alone, in the folder where it will be published. Same samples, same bytes.

    `with ShardWriter(path) as writer:` removes the file unless `close` was reached.
    """

    def __init__(self, path: str) -> None:
        self._files, final = url_to_fs(path)
        folder, _, name = final.rpartition("/")
        self._files.makedirs(folder, exist_ok=True)
        self._temporary = temporary_name(name)
        self._path = f"{folder}/{self._temporary}"
        self._sink = Sink(self._files.open(self._path, "wb"))
        sink = cast(IO[bytes], self._sink)
        self._tar = tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - see `close`
        self._num_samples, self._last_key, self._is_open = 0, "", True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Extension -> bytes, written in the order of the extensions.

        Raises ValueError for a key that readers would split, join with the one before, or take for a path elsewhere.
        """
        names = {extension: f"{key}.{extension}" for extension in sorted(members)}
        is_readable = all(split_name(name) == (key, extension) for extension, name in names.items())
        if not names or not is_readable or key == self._last_key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"not a sample that a reader gets back: key {key!r}, extensions {list(names)}")
        with naming(self._path):
            for extension, name in names.items():
                header = tarfile.TarInfo(name)  # its defaults: mode 0644, owner 0, time 0
                header.size = len(members[extension])
                self._tar.addfile(header, BytesIO(members[extension]))
        self._num_samples, self._last_key = self._num_samples + 1, key

    def flush(self) -> None:
        """What was added outlasts this process."""
        with naming(self._path):
            self._sink.file.flush()

    def lock(self) -> None:
        """Held until the file is closed or its process dies: a temporary file without a lock has no writer any more."""
        if isinstance(self._files, LocalFileSystem):
            fcntl.flock(self._sink.file.fileno(), fcntl.LOCK_EX)

    def close(self) -> ShardWritten:
        """Finishes the tar. What is returned goes into the manifest; `publish` gives the file its name."""
        with naming(self._path):
            self._tar.close()
            self._sink.file.close()
        self._is_open = False
        sink = self._sink
        return ShardWritten(self._temporary, self._num_samples, sink.size_bytes, sink.sha256.hexdigest())

    def abort(self) -> None:
        """Removes an unfinished file; after `close`, nothing."""
        if self._is_open:
            self._is_open = False
            for unfinished in (self._tar, self._sink.file):
                with suppress(OSError):  # a full disk, perhaps
                    unfinished.close()
            self._files.rm_file(self._path)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """An OSError within the block names this file: that of a write to a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def temporary_name(name: str) -> str:
    """Of one attempt alone, and hidden from readers that take every file in a folder."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def publish(folder: str, temporary: str, final: str) -> None:
    """Gives a finished file its final name, replacing what has it; on a local disk, so that it outlasts a power cut."""
    files, path = url_to_fs(folder)
    if not isinstance(files, LocalFileSystem):
        files.mv(f"{path}/{temporary}", f"{path}/{final}")
        return
    fsync(Path(f"{path}/{temporary}"))
    Path(f"{path}/{temporary}").replace(f"{path}/{final}")
    fsync(Path(path))


def publish_json(path: Path, content: Any) -> None:
    """Writes a local JSON file whole or not at all."""
    write_whole(path, json.dumps(content, indent=1, default=str))


def write_manifest(folder: str, shards: list[dict[str, Any]], extra: Mapping[str, Any]) -> None:
    """Says that the folder is complete: call it last. `extra` stands beside `shards`. Replaces one in one step."""
    files, path = url_to_fs(folder)
    temporary = temporary_name(MANIFEST)
    with files.open(f"{path}/{temporary}", "wb") as file:
        file.write(json.dumps({**extra, "shards": shards}, indent=1, sort_keys=True).encode())
    publish(folder, temporary, MANIFEST)


def verify(folder: str) -> list[str]:
    """The problems of a written folder, one line each; empty if it is just what its manifest says. Reads every byte."""
    files, path = url_to_fs(folder)
    files.invalidate_cache()
    try:
        manifest = json.loads(files.cat_file(f"{path}/{MANIFEST}"))
        entries = {str(entry["shard"]): entry for entry in manifest["shards"]}
        entries |= {str(entry["file"]): entry for entry in manifest.get("files", ())}
        present = {str(info["name"]).rpartition("/")[2]: info["size"] for info in files.ls(path, detail=True)}
    except OSError as error:
        return [f"{MANIFEST}: {type(error).__name__}"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST}: not a manifest ({type(error).__name__})"]
    problems = [f"{name}: not in the manifest" for name in sorted(set(present) - set(entries) - _MAY_BE_THERE)]
    for name, entry in entries.items():
        found = _problems(files, f"{path}/{name}", entry, present[name]) if name in present else ["missing"]
        problems += [f"{name}: {problem}" for problem in found]
    return problems


def _problems(files: Any, path: str, entry: Mapping[str, Any], size_bytes: int) -> Iterator[str]:
    """How a file differs from its entry: in size, content, and for a shard, in being whole and in samples."""
    if size_bytes != entry.get("size_bytes"):
        yield f"{size_bytes} bytes, not {entry.get('size_bytes')}"
    try:
        with files.open(path, "rb") as file:
            if _sha256_hex(file) != entry.get("sha256"):
                yield "its sha256 is another"
            num_samples = count_samples(file) if "shard" in entry else None
    except ShardError as error:
        yield str(error)
    except OSError as error:
        yield f"unreadable: {cause(error)}"
    else:
        if num_samples != entry.get("num_samples"):
            yield f"{num_samples} samples, not {entry.get('num_samples')}"


def _sha256_hex(file: IO[bytes]) -> str:
    sha256 = hashlib.sha256()
    while chunk := file.read(1 << 20):
        sha256.update(chunk)
    return sha256.hexdigest()


def count_samples(file: IO[bytes]) -> int:
    """Runs of members with one key. Raises ShardError."""
    num_samples, last_key = 0, None
    for member in index(file):
        key, _ = split_name(member.name) or (None, "")
        if key is not None and key != last_key:
            num_samples, last_key = num_samples + 1, key
    return num_samples
