"""What leaves the tables: a selection as shards and uid list, vectors as Arrow files for training.

Executors write under attempt-unique temporary names; the driver publishes what succeeded and writes the manifest last,
so that a killed export is never taken for a whole one. The folder must be one that executors and driver both see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from etl.receipts import receipt_of
from etl.shard_writer import ShardWriter, publish, temporary_name, write_manifest
from etl.shards import RangeReader
from etl.stage import Slice, UserError, digest
from etl.stages.score import float16
from etl.store import Store, data_version
from etl.strip import strip_metadata
from etl.tables import CONTAMINATED, EMBEDDINGS, PAIRS, SELECTIONS, SHARDS
from models.data import UID_DTYPE, uid_to_u8, write_part
from models.images import sha256_hex

EXTENSIONS = {"jpeg": "jpg"}
"""Where the file name's extension is not the format's name."""
WRITTEN = "temporary string, num_samples bigint, size_bytes bigint, sha256 string"


def vectors_folder(store: Store, dataset: str, encoder: Slice, out: Path) -> Path:
    """The usable vectors of a dataset as `models.data.Vectors` reads them; made anew when they changed.

    Pairs seen in an evaluation set are left out. Returns OUT/DATASET-<content>.
    """
    tables = [(EMBEDDINGS, encoder), (CONTAMINATED, {}), (PAIRS, {})]
    there = [(table, where) for table, where in tables if store.exists(dataset, table)]
    versions = [(table.name, data_version(store.history(dataset, table), where)) for table, where in there]
    folder = out / f"{dataset}-{digest(dict(encoder), versions)[:12]}"
    if (folder / "manifest.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = store.read(dataset, EMBEDDINGS, where=encoder).where("status = 'ok'")
    if store.exists(dataset, CONTAMINATED):
        rows = rows.join(store.read(dataset, CONTAMINATED).select("uid").distinct(), on="uid", how="left_anti")
    rows = rows.join(store.read(dataset, PAIRS).select("uid", "text"), on="uid", how="inner")
    write = _vectors_writer(str(folder))
    # Python: Arrow files are what training maps into memory; the JVM does not write them.
    parts = rows.select("uid", "image_embedding", "text_embedding", "text").mapInPandas(write, WRITTEN).collect()
    _publish(folder, [row["temporary"] for row in parts], "part-{:05d}.arrow")
    counted = {"num_rows": sum(row["num_samples"] for row in parts), "encoder": dict(encoder)}
    write_manifest(str(folder), [], counted)
    return folder


def _vectors_writer(folder: str) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    def write(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            name = temporary_name("part.arrow")
            images_NI, texts_NT = (float16(batch[side]) for side in ("image_embedding", "text_embedding"))
            captions = batch["text"].fillna("").tolist()
            write_part(Path(folder) / name, batch["uid"].tolist(), images_NI, texts_NT, captions)
            yield pd.DataFrame([{"temporary": name, "num_samples": len(batch), "size_bytes": 0, "sha256": ""}])

    return write


def _publish(folder: Path, temporaries: list[str], pattern: str) -> None:
    """Published names are in the order of the temporary ones; what other attempts left behind is removed."""
    for number, name in enumerate(temporaries):
        publish(str(folder), name, pattern.format(number))
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink()


def uid_list(store: Store, dataset: str, selection_id: str, path: Path, *, rows_at_once: int = 1_000_000) -> int:
    """A selection as DataComp publishes one: sorted `.npy` of dtype `u8,u8`. Returns the number of entries.

    Streamed in ranges of the uid, so that the driver holds about `rows_at_once` uids, not the whole.
    """
    chosen = store.read(dataset, SELECTIONS, where={"selection_id": selection_id})
    total = int(chosen.agg(F.coalesce(F.sum("num_repeats"), F.lit(0)).alias("n")).collect()[0]["n"])
    digits = 0
    while total > rows_at_once * 16**digits:
        digits += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / temporary_name(path.name)
    with temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(UID_DTYPE), "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(16**digits):
            part = chosen.where(F.col("uid").startswith(f"{number:0{digits}x}" if digits else ""))
            rows = part.select("uid", "num_repeats").orderBy("uid").collect()
            file.write(uid_to_u8([row["uid"] for row in rows for _ in range(row["num_repeats"])]).tobytes())
    publish(str(path.parent), temporary.name, path.name)
    return total


def export_selection(store: Store, dataset: str, selection_id: str, folder: Path, *, shards_root: str,
                     pairs_per_shard: int = 1000) -> list[dict[str, Any]]:  # fmt: skip
    """Tar shards that open_clip and plain `tarfile` read, `uids.npy`, and last `manifest.json` with the receipt.

    Pairs whose pixels have not come are in `uids.npy` alone: what is still to be downloaded.

    Metadata of the images (EXIF, GPS) is stripped without recompressing; both sha256 are in each sample's json.
    """
    receipt = receipt_of(store, dataset, selection_id)
    if (folder / "manifest.json").exists():
        raise UserError(f"wanted a folder without an export; found {folder}; fix: name another, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    num_shards = max(1, -(-receipt["num_rows"] // pairs_per_shard)) if receipt["num_rows"] else 0
    written = _write_shards(store, dataset, selection_id, str(folder), shards_root, num_shards) if num_shards else []
    _publish(folder, [row["temporary"] for row in written], "{:05d}.tar")
    entries = [
        {"shard": f"{n:05d}.tar", **{k: row[k] for k in ("num_samples", "size_bytes", "sha256")}}
        for n, row in enumerate(written)
    ]
    _record_shards(store, dataset, selection_id, folder, entries)
    uid_list(store, dataset, selection_id, folder / "uids.npy")
    file = (folder / "uids.npy").read_bytes()
    files = [{"file": "uids.npy", "size_bytes": len(file), "sha256": sha256_hex(file)}]
    write_manifest(str(folder), entries, {"receipt": receipt, "files": files})
    return entries


def _write_shards(
    store: Store, dataset: str, selection_id: str, folder: str, root: str, num_shards: int
) -> list[dict[str, Any]]:
    chosen = store.read(dataset, SELECTIONS, where={"selection_id": selection_id}).select("uid", "num_repeats")
    pairs = (
        store.read(dataset, PAIRS)
        .where("shard IS NOT NULL")
        .select("uid", "url", "text", "shard", "offset_bytes", "size_bytes", "sha256", "image_format")
    )
    # By a hash of the uid: which pair is in which shard follows from the selection alone.
    bucket = F.pmod(F.conv(F.substring(F.md5("uid"), 1, 8), 16, 10).cast("bigint"), F.lit(num_shards))
    grouped = chosen.join(pairs, on="uid", how="inner").withColumn("bucket", bucket).groupBy("bucket")
    # Python: pixels are read, stripped and written where no JVM heap sees them.
    rows = grouped.applyInPandas(_shard_writer(folder, root), f"bucket bigint, {WRITTEN}").orderBy("bucket").collect()
    return [row.asDict() for row in rows]


def _shard_writer(folder: str, root: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def write(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.sort_values(["shard", "offset_bytes"])
        pointers = [
            (f"{root}/{r.shard}" if root else r.shard, int(r.offset_bytes), int(r.size_bytes))
            for r in rows.itertuples()
        ]
        with ShardWriter(f"{folder}/shard.tar") as writer, RangeReader() as reader:
            for row, data in zip(rows.itertuples(), reader.read_many(pointers), strict=True):
                for repeat in range(row.num_repeats):
                    writer.add(f"{row.uid}-{repeat}" if repeat else row.uid, sample_of(row, data))
            done = writer.close()
        return pd.DataFrame([{"bucket": rows["bucket"].iloc[0], **done._asdict()}])

    return write


def sample_of(row: Any, data: bytes) -> dict[str, bytes]:
    """Extension -> bytes of one exported pair."""
    image = strip_metadata(data).data
    facts = {
        "uid": row.uid,
        "url": row.url,
        "caption": row.text,
        "sha256": sha256_hex(image),
        "original_sha256": row.sha256,
    }
    return {
        EXTENSIONS.get(row.image_format, row.image_format): image,
        "txt": (row.text or "").encode(),
        "json": json.dumps(facts, sort_keys=True).encode(),
    }


def _record_shards(store: Store, dataset: str, selection_id: str, folder: Path, entries: list[dict[str, Any]]) -> None:
    if not store.exists(dataset, SHARDS):
        store.create(dataset, SHARDS)
    rows = [(selection_id, e["shard"], str(folder), e["num_samples"], e["size_bytes"], e["sha256"]) for e in entries]
    where = {"selection_id": selection_id}
    store.replace(store.rows(dataset, SHARDS, rows), dataset, SHARDS, where=where, note={"slice": where})
