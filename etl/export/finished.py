"""What of an export is finished: a note beside each shard, until manifest.json says it of all. Touches the folder.

A note is a row of the manifest to be, `.SHARD.json`, and says for which export it is (`plan`). It is written before its
shard gets the final name: so no final name is ever without a row, and a note without its shard means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from etl.shard_writer import MANIFEST, ShardWritten, publish, publish_json
from etl.stage import UserError
from models.records import sha256_file

Entry = dict[str, Any]
"""shard, num_samples, size_bytes, sha256."""
NOTES = ".*.tar.json"


def publish_shard(folder: str, name: str, plan: str, written: ShardWritten) -> Entry:
    """Gives a finished shard its final name, and a row before that."""
    entry = {
        "shard": name, "num_samples": written.num_samples, "size_bytes": written.size_bytes, "sha256": written.sha256,
    }  # fmt: skip
    publish_json(_note(folder, name), {**entry, "plan": plan})
    publish(folder, written.temporary, name)
    return entry


def kept(folder: str, name: str, plan: str) -> Entry | None:
    """The row of a shard that an earlier run of the same export finished, if every byte of it is still that."""
    entry, path = _read(_note(folder, name)), Path(folder) / name
    if entry.pop("plan", None) != plan or not path.is_file() or path.stat().st_size != entry["size_bytes"]:
        return None
    return entry if sha256_file(path) == entry["sha256"] else None


def begin(folder: Path, plan: str, selection_id: str) -> list[Entry] | None:
    """Looks at where an export will go. Returns the rows of its manifest if all is there by name and size, else None.

    Raises UserError where another export is, whole or not, or shards that none of ours wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest, notes = _read(folder / MANIFEST), [_read(path) for path in sorted(folder.glob(NOTES))]
    if others := [str(found.get("plan")) for found in (manifest, *notes) if found and found.get("plan") != plan]:
        what = manifest.get("receipt", {}).get("selection_id") or f"of plan {others[0]}"
        raise UserError(
            f"wanted a folder without another export than of {selection_id}, as it is now, with so many pairs a shard; "
            f"found that {what} in {folder}; fix: name another folder, or remove that one"
        )
    named = {entry["shard"] for entry in (*notes, *manifest.get("shards", ())) if entry}
    if strange := sorted({path.name for path in folder.glob("*.tar")} - named):
        raise UserError(f"wanted a folder without other shards; found {strange[0]} in {folder}; fix: name another")
    return _whole(folder, manifest, plan) if manifest else None


def _whole(folder: Path, manifest: Mapping[str, Any], plan: str) -> list[Entry] | None:
    entries: list[Entry] = list(manifest["shards"])
    sizes = {entry.get("shard") or entry["file"]: entry["size_bytes"] for entry in (*entries, *manifest["files"])}
    if all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items()):
        end(folder)
        return entries
    for entry in entries:  # what is damaged is written again, the rest kept: as after a kill
        publish_json(_note(str(folder), entry["shard"]), {**entry, "plan": plan})
    return None


def end(folder: Path) -> None:
    """After the manifest: takes away the notes, and what dead attempts left."""
    for left_over in (*folder.glob(NOTES), *folder.glob(".*.tmp")):
        left_over.unlink(missing_ok=True)


def _note(folder: str, name: str) -> Path:
    return Path(folder) / f".{name}.json"


def _read(path: Path) -> dict[str, Any]:
    """{} where there is no such file, or none that is whole."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return dict(found) if isinstance(found, dict) else {}
    return {}
