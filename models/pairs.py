"""Image-text pairs where they lie: pointers into tar shards, memory-mapped, and any pair's bytes by its number.

A pointer file is Arrow IPC, one row a pair:

    uid (binary of 16), shard (string: a path or fsspec URL), offset_bytes, size_bytes (int64), sha256 (binary of 32, of
    the image; NULL: not checked), text (string)

Two ways to get one: `etl` writes it from a selection, over the pool's own shards and without an export; `index_folder`
writes it from exported shards, once their every byte has been held against the manifest.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from models.data import UID_DTYPE, Indices, Uids

MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [("uid", pa.binary(16)), ("shard", pa.string()), ("offset_bytes", pa.int64()), ("size_bytes", pa.int64()),
     ("sha256", pa.binary(32)), ("text", pa.string())]
)  # fmt: skip
_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "img"})


class DataError(Exception):
    """Training data that is not what it is said to be; says where, and how to mend it."""


class Pointer(NamedTuple):
    """A pair: where its image is, and its caption."""

    uid: str
    shard: str
    offset_bytes: int
    size_bytes: int
    sha256: bytes | None
    text: str

    def read(self) -> bytes:
        """The image's bytes, by one ranged request.

        Raises:
            DataError: the shard cannot be read, or ends before.
        """
        files, path = url_to_fs(self.shard)
        try:
            data: bytes = files.cat_file(path, start=self.offset_bytes, end=self.offset_bytes + self.size_bytes)
        except OSError as error:
            raise DataError(f"wanted {self.shard}; found {type(error).__name__}; fix: give the shards back") from error
        if len(data) != self.size_bytes:
            raise DataError(
                f"wanted {self.size_bytes} bytes at {self.offset_bytes} of {self.shard}; found {len(data)}; "
                "fix: the shard was cut: give it back whole"
            )
        return data


class Pairs:
    """Pointers ordered by uid, whatever their order in the files; a uid that is there twice is two samples."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self._batches = batches
        self._starts = np.cumsum([0] + [len(batch) for batch in batches[:-1]])
        uids_N = np.concatenate([_uids(batch) for batch in batches])
        self._rows_N: Indices = np.lexsort((uids_N["f1"], uids_N["f0"]))

    @classmethod
    def open(cls, path: Path) -> Self:
        """A pointer file, or a folder of `part-*.arrow` with the manifest that says how many rows they hold.

        Raises:
            DataError: no such file, no rows, other columns, or other rows than the manifest says.
        """
        parts = sorted(path.glob("part-*.arrow")) if path.is_dir() else [path]
        try:
            batches = [batch for part in parts for batch in _mapped(part) if len(batch)]
            wanted = json.loads((path / MANIFEST).read_bytes())["num_rows"] if path.is_dir() else None
        except (OSError, ValueError, KeyError) as error:  # pyarrow's are ValueErrors
            raise DataError(f"wanted pointers in {path}; found {type(error).__name__}: {error}") from None
        num_rows = sum(len(batch) for batch in batches)
        if not num_rows or (wanted is not None and num_rows != wanted):
            raise DataError(
                f"wanted {wanted or 'some'} pairs in {path}; found {num_rows}; fix: write the pointers again"
            )
        return cls(batches)

    def __len__(self) -> int:
        return len(self._rows_N)

    def __getitem__(self, number: int) -> Pointer:
        row = self._rows_N[number]
        i = int(np.searchsorted(self._starts, row, side="right") - 1)
        values = [column[int(row - self._starts[i])].as_py() for column in self._batches[i].columns]
        return Pointer(values[0].hex(), *values[1:])

    @property
    def content(self) -> str:
        """What names the samples, wherever their shards are: 16 hex digits over uids, offsets and sizes in order."""
        digest = hashlib.sha256()
        digest.update(np.concatenate([_uids(batch) for batch in self._batches])[self._rows_N].tobytes())
        for name in ("offset_bytes", "size_bytes"):
            values_N = np.concatenate([batch.column(name).to_numpy() for batch in self._batches])
            digest.update(values_N[self._rows_N].tobytes())
        return digest.hexdigest()[:16]


def _mapped(part: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(part)) as source:
        table = pa.ipc.open_file(source).read_all()
    if table.schema != SCHEMA:
        raise ValueError(f"wanted columns {SCHEMA.names}; found {table.schema.names}")
    yield from table.to_batches()


def _uids(batch: pa.RecordBatch) -> Uids:
    """dtype UID_DTYPE, a copy: the file has them as bytes, highest first."""
    uids = batch.column("uid")
    digits: NDArray[np.uint64] = np.frombuffer(uids.buffers()[1], ">u8", 2 * len(uids), 16 * uids.offset)
    return digits.astype("<u8").view(UID_DTYPE)


def write_pointers(path: Path, columns: Mapping[str, Any]) -> None:
    """One pointer file. `columns`: those of SCHEMA, each a sequence of the same length."""
    table = pa.table(dict(columns), schema=SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)


def index_folder(folder: str, out: Path, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Exported shards as a pointer file in `out`, made once: the samples' places, after every shard was verified.

    Returns:
        OUT/pairs-HASH.arrow, where the hash is over the manifest and the shards' sizes and times of change: a shard
        that changed since is read and verified again.

    Raises:
        DataError: no manifest, a shard that is missing, or one whose size, sha256 or samples are not the manifest's.
    """
    files, root = url_to_fs(folder)
    try:
        manifest = files.cat_file(f"{root}/{MANIFEST}")
        entries = {
            str(e["shard"]): (e["num_samples"], e["size_bytes"], e["sha256"]) for e in json.loads(manifest)["shards"]
        }
        infos = {name: files.info(f"{root}/{name}") for name in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"wanted {folder} with {MANIFEST} and the shards that it names; found {type(error).__name__}: {error}; "
            "fix: export again: without a manifest an export is not whole"
        ) from None
    seen = [(name, info["size"], str(info.get("mtime") or info.get("ETag"))) for name, info in infos.items()]
    key = hashlib.sha256(manifest + repr(seen).encode()).hexdigest()[:12]
    path = out / f"pairs-{key}.arrow"
    if path.exists():
        return path
    rows: list[Pointer] = []
    for name, wanted in entries.items():
        uri = files.unstrip_protocol(f"{root}/{name}") if "://" in folder else f"{root}/{name}"
        with files.open(f"{root}/{name}", "rb") as file:
            rows += _verified(file, uri, wanted)
    say(f"{len(entries)} shards of {folder} verified: {len(rows):,} pairs")
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    write_pointers(temporary, columns | {"uid": [bytes.fromhex(uid) for uid in columns["uid"]]})
    temporary.replace(path)
    return path


def _verified(file: IO[bytes], uri: str, wanted: tuple[int, int, str]) -> list[Pointer]:
    """The pairs of a shard that is what its manifest says."""
    size_bytes = file.seek(0, 2)
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    found: tuple[int, int, str] = (0, size_bytes, sha256)
    if found[1:] == wanted[1:]:
        pairs, num_samples = _samples(file, uri)
        found = (num_samples, size_bytes, sha256)
        if found == wanted:
            return pairs
    named = ("samples", "bytes", "sha256")
    problem = next(
        f"{n} {w}; found {f}" for n, w, f in zip(named[::-1], wanted[::-1], found[::-1], strict=True) if w != f
    )
    raise DataError(f"wanted {uri} with {problem}; fix: the shard was cut or altered: export or copy it again")


def _samples(file: IO[bytes], uri: str) -> tuple[list[Pointer], int]:
    """The shard's pairs that have an image and a caption, and how many samples there are.

    By `tarfile`, which is to be trusted here: the bytes are those that were hashed when the shard was written.
    """
    file.seek(0)
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, dot, extension = member.name.rpartition("/")[2].partition(".")
            if member.isreg() and not member.issparse() and key and dot:
                kind = "image" if extension.lower() in _IMAGES else extension.lower()
                samples.setdefault(f"{member.name.rpartition('/')[0]}/{key}", {}).setdefault(kind, member)

        def payload(member: tarfile.TarInfo | None) -> bytes:
            opened = tar.extractfile(member) if member else None
            return opened.read() if opened else b""

        pairs = []
        for key, parts in samples.items():
            facts = _object(payload(parts.get("json")))
            text = payload(parts["txt"]).decode(errors="replace") if "txt" in parts else facts.get("caption")
            if "image" in parts and isinstance(text, str):
                image, uid = parts["image"], str(facts.get("uid"))
                uid = uid if len(uid) == 32 and not set(uid) - set("0123456789abcdef") else _made_uid(uri, key)
                pairs.append(Pointer(uid, uri, image.offset_data, image.size, None, text))
    return pairs, len(samples)


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _made_uid(uri: str, key: str) -> str:
    return hashlib.md5(
        f"{uri.rpartition('/')[2]}/{key}".encode("utf-8", "surrogateescape"), usedforsecurity=False
    ).hexdigest()
