"""A selection as tar shards, uid list and manifest, for whoever trains. Reads tables and the pool's shards.

Executors write shards and publish each as it is finished, with a row of the manifest to be (`finished.py`): a killed
export goes on with what is left. manifest.json comes last, so that half an export is never taken for a whole
one. In which shard a sample is, `spread.py` says. The folder must be one that executors and driver both see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame

from etl.export.blur import find_faces, without_faces
from etl.export.finished import Entry, begin, end, kept, publish_shard
from etl.export.spread import Line, apart, dealt, line_of
from etl.export.strip import strip_metadata
from etl.selection.receipts import receipt_of
from etl.selection.uid_lists import uid_list
from etl.shard_writer import ShardWriter, write_manifest
from etl.shards import RangeReader
from etl.stage import digest, tasks
from etl.storage import use
from etl.store import Store
from etl.tables import PAIRS, SELECTIONS, SHARDS
from models.images import sha256_hex, sniff

EXTENSIONS = {"jpeg": "jpg"}
"""Where the file name's extension is not the format's name."""
LAYOUT = 1
"""Raise it when the same selection would give other bytes: shards of before are then not kept."""
WRITTEN = "shard string, num_samples bigint, size_bytes bigint, sha256 string, was_there boolean"


Storage = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Exported:
    """What is in the folder now."""

    shards: list[Entry]
    num_kept: int
    """Of the shards, those that an earlier run had finished."""
    is_up_to_date: bool
    """All of it was there."""


def export_selection(store: Store, dataset: str, selection_id: str, folder: Path, *, shards_root: str,
                     pairs_per_shard: int = 1000, blur_faces: bool = False,
                     storage: Storage | None = None) -> Exported:  # fmt: skip
    """Tar shards that open_clip and plain `tarfile` read, `uids.npy`, and last `manifest.json` with the receipt.

    Shards hold at most `pairs_per_shard` samples, and as many as each other, but for one. The same selection gives the
    same bytes. Pairs whose pixels have not come are in `uids.npy` alone: what is still to be downloaded.

    Metadata of the images (EXIF, GPS) is stripped without recompressing; both sha256 are in each sample's json.
    `blur_faces`: by the boxes in image_signals; how many pairs none looked at is in the manifest. `storage`: options of
    the object store that the pool's shards are on, for executors; see `etl/storage.py`.

    Raises UserError where the folder holds something else than this export, or a part of it.
    """
    receipt = receipt_of(store, dataset, selection_id)
    samples = _samples(store, dataset, selection_id)
    line = line_of(samples.select("uid", "num_repeats", "sha256"))
    num_shards = -(-line.num_samples // pairs_per_shard)
    faces = find_faces(store, dataset, samples) if blur_faces else None
    if faces:
        samples = samples.join(faces.boxes, on="uid", how="left")
    blurred = {"blur_faces": faces.facts} if faces else {}
    plan = digest(LAYOUT, selection_id, receipt["hash"], line.content, num_shards, *blurred.values())[:16]
    if (there := begin(folder, plan, selection_id)) is not None:
        return Exported(there, len(there), is_up_to_date=True)
    writer = shard_writer(str(folder), shards_root, plan, storage)
    written = _write_shards(samples, line, num_shards, writer) if num_shards else []
    entries = [{key: value for key, value in row.items() if key != "was_there"} for row in written]
    _record_shards(store, dataset, selection_id, folder, entries)
    listed = uid_list(store, dataset, selection_id, folder / "uids.npy")
    files = [{"file": "uids.npy", "size_bytes": listed.size_bytes, "sha256": listed.sha256}]
    write_manifest(str(folder), entries, {"receipt": receipt, "files": files, "plan": plan, **blurred})
    end(folder)
    return Exported(entries, sum(row["was_there"] for row in written), is_up_to_date=False)


def _samples(store: Store, dataset: str, selection_id: str) -> DataFrame:
    chosen = store.read(dataset, SELECTIONS, where={"selection_id": selection_id}).select("uid", "num_repeats")
    pairs = store.read(dataset, PAIRS).where("shard IS NOT NULL")
    pointers = pairs.select("uid", "url", "text", "shard", "offset_bytes", "size_bytes", "sha256", "image_format")
    return chosen.join(pointers, on="uid", how="inner")


def _write_shards(
    samples: DataFrame, line: Line, num_shards: int, writer: Callable[[pd.DataFrame], pd.DataFrame]
) -> list[dict[str, Any]]:
    # A number of tasks, for adaptive execution would make one of many small ones.
    spread = dealt(samples, line, num_shards).repartition(tasks(None, samples), "number")
    # Python: pixels are read, stripped and written where no JVM heap sees them.
    rows = spread.groupBy("number").applyInPandas(writer, WRITTEN).collect()
    return sorted((row.asDict() for row in rows), key=lambda row: (len(row["shard"]), row["shard"]))


def shard_writer(
    folder: str, root: str, plan: str, storage: Storage | None = None
) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The samples of one shard -> its row of the manifest, once it is there under its final name."""

    def write(rows: pd.DataFrame) -> pd.DataFrame:
        if storage:
            use(storage)
        name = f"{int(rows['number'].iloc[0]):05d}.tar"
        there = kept(folder, name, plan)
        entry = there or _write(rows, folder, root, plan, name)
        return pd.DataFrame([{**entry, "was_there": there is not None}])

    return write


def _write(rows: pd.DataFrame, folder: str, root: str, plan: str, name: str) -> Entry:
    ordered = _in_order(rows)
    pointers = [(f"{root}/{r.shard}" if root else r.shard, int(r.offset_bytes), int(r.size_bytes)) for r in ordered]
    with ShardWriter(f"{folder}/{name}") as writer, RangeReader() as reader:
        for row, data in zip(ordered, reader.read_many(pointers), strict=True):
            writer.add(f"{row.uid}-{row.repeat}" if row.repeat else row.uid, sample_of(row, data))
        return publish_shard(folder, name, plan, writer.close())


def _in_order(rows: pd.DataFrame) -> list[Any]:
    """By place in the pool's shards, so that those are read from start to end; but repeats of one pair stand apart."""
    placed = rows.sort_values(["shard", "offset_bytes", "uid", "repeat"])
    if placed["uid"].is_unique:
        return list(placed.itertuples())
    return apart([list(repeats.itertuples()) for _, repeats in placed.groupby("uid", sort=False)])


def sample_of(row: Any, data: bytes) -> dict[str, bytes]:
    """Extension -> bytes of one exported pair."""
    boxes = _boxes(row)
    image = without_faces(data, boxes) if boxes else strip_metadata(data).data
    facts = {
        "uid": row.uid,
        "url": row.url,
        "caption": row.text,
        "sha256": sha256_hex(image),
        "original_sha256": row.sha256,
    }
    facts |= {"num_faces_blurred": len(boxes)} if boxes else {}
    kind = sniff(image) if boxes else row.image_format
    return {
        EXTENSIONS.get(kind, kind): image,
        "txt": (row.text or "").encode(),
        "json": json.dumps(facts, sort_keys=True).encode(),
    }


def _boxes(row: Any) -> list[list[float]]:
    """Of faces to blur; [] where none are."""
    boxes = getattr(row, "face_boxes", None)
    return [[float(side) for side in box] for box in boxes] if isinstance(boxes, list | np.ndarray) else []


def _record_shards(store: Store, dataset: str, selection_id: str, folder: Path, entries: list[Entry]) -> None:
    if not store.exists(dataset, SHARDS):
        store.create(dataset, SHARDS)
    rows = [(selection_id, e["shard"], str(folder), e["num_samples"], e["size_bytes"], e["sha256"]) for e in entries]
    where = {"selection_id": selection_id}
    store.replace(store.rows(dataset, SHARDS, rows), dataset, SHARDS, where=where, note={"slice": where})
