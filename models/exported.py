"""Exported shards -> pointers, once their every byte was held against the manifest. Reads shards, writes one file."""

from __future__ import annotations

import hashlib
import json
import tarfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from fsspec.core import url_to_fs

from models.pairs import MANIFEST, SCHEMA, DataError, Pointer, write_tables

VERIFY_THREADS = 4
"""Shards that are read at once: hashing and an object store would wait for one another otherwise."""
_IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "img"})


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

    def verified(name: str) -> pa.Table:
        uri = files.unstrip_protocol(f"{root}/{name}") if "://" in folder else f"{root}/{name}"
        with files.open(f"{root}/{name}", "rb") as file:
            return _table(_verified(file, uri, entries[name]))

    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
    try:
        with ThreadPoolExecutor(VERIFY_THREADS) as pool:
            num_pairs = write_tables(temporary, pool.map(verified, entries))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{len(entries)} shards of {folder} verified: {num_pairs:,} pairs")
    return path


def _table(rows: Sequence[Pointer]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    return pa.table(columns | {"uid": [bytes.fromhex(row.uid) for row in rows]}, schema=SCHEMA)


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
