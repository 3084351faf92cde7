"""A selection as pointers into the pool's own shards: what training reads without an export.

`models.pairs` says what a pointer file holds. Executors write the parts, the manifest comes last. The folder must be
one that executors, driver and trainers all see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from pyspark.sql import functions as F

from etl.forget.kept_out import forgotten_of, takedowns
from etl.selection.receipts import receipt_of
from etl.shards import publish, temporary_name, write_manifest
from etl.stage import UserError
from etl.store import Store
from etl.tables import PAIRS, SELECTIONS
from models.pairs import MANIFEST, write_pointers


def selection_pointers(store: Store, dataset: str, selection_id: str, out: Path, *, shards_root: str) -> Path:
    """OUT/pointers-SELECTION, made once: a row for each pair of the selection and each of its repeats.

    Pairs whose pixels have not come are left out, and counted in the manifest.

    Raises:
        UserError: no pair of the selection has pixels.
    """
    folder = out / f"pointers-{selection_id}"
    num_forgotten, _ = forgotten_of(takedowns(store), dataset, selection_id)
    if (folder / MANIFEST).exists():
        if json.loads((folder / MANIFEST).read_text()).get("num_forgotten", 0) == num_forgotten:
            return folder
        (folder / MANIFEST).unlink()  # made before pairs of it were taken down
    receipt = receipt_of(store, dataset, selection_id)
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("part-*.arrow"):
        earlier.unlink()
    chosen = store.read(dataset, SELECTIONS, where={"selection_id": selection_id}).select("uid", "num_repeats")
    pairs = store.read(dataset, PAIRS).select("uid", "text", "shard", "offset_bytes", "size_bytes", "sha256")
    found = chosen.join(pairs.where("shard IS NOT NULL AND text IS NOT NULL"), on="uid", how="inner")
    rows = found.withColumn("repeat", F.explode(F.expr("sequence(1, num_repeats)"))).drop("num_repeats", "repeat")
    write = _writer(str(folder), shards_root)
    # Python: Arrow files are what training maps into memory; the JVM does not write them.
    parts = rows.mapInPandas(write, "temporary string, num_rows bigint").collect()
    for number, part in enumerate(parts):
        publish(str(folder), part["temporary"], f"part-{number:05d}.arrow")
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink()
    num_rows = sum(part["num_rows"] for part in parts)
    if not num_rows:
        raise UserError(f"wanted pairs with pixels in selection {selection_id}; found none of {receipt['num_rows']}")
    counts = {"num_rows": num_rows, "num_selected": receipt["num_rows"], "selection_id": selection_id}
    counts["num_forgotten"] = num_forgotten
    write_manifest(str(folder), [], counts | {"hash": receipt["hash"]})
    return folder


def _writer(folder: str, root: str) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    def write(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            name = temporary_name("part.arrow")
            columns = {
                "uid": [bytes.fromhex(uid) for uid in batch["uid"]],
                "shard": [f"{root}/{shard}" if root else shard for shard in batch["shard"]],
                "offset_bytes": batch["offset_bytes"].astype("int64").tolist(),
                "size_bytes": batch["size_bytes"].astype("int64").tolist(),
                "sha256": [bytes.fromhex(value) if isinstance(value, str) else None for value in batch["sha256"]],
                "text": batch["text"].tolist(),
            }
            write_pointers(Path(folder) / name, columns)
            yield pd.DataFrame([{"temporary": name, "num_rows": len(batch)}])

    return write
