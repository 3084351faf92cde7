"""Vectors of a dataset as Arrow files, which training maps into memory. Reads tables; touches the folder it writes.

Executors write under attempt-unique temporary names; the driver publishes what succeeded and writes the manifest last.
The folder must be one that executors and driver both see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from etl.history import data_version
from etl.shard_writer import publish, temporary_name, write_manifest
from etl.stage import Slice, digest
from etl.stages.score import float16
from etl.store import Store
from etl.tables import CONTAMINATED, EMBEDDINGS, PAIRS
from models.data import write_part


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
    vectors = rows.select("uid", "image_embedding", "text_embedding", "text")
    # Python: Arrow files are what training maps into memory; the JVM does not write them.
    parts = vectors.mapInPandas(_writer(str(folder)), "temporary string, num_rows bigint").collect()
    for number, row in enumerate(parts):
        publish(str(folder), row["temporary"], f"part-{number:05d}.arrow")
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink()
    write_manifest(str(folder), [], {"num_rows": sum(row["num_rows"] for row in parts), "encoder": dict(encoder)})
    return folder


def _writer(folder: str) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    def write(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            name = temporary_name("part.arrow")
            images_NI, texts_NT = (float16(batch[side]) for side in ("image_embedding", "text_embedding"))
            captions = batch["text"].fillna("").tolist()
            write_part(Path(folder) / name, batch["uid"].tolist(), images_NI, texts_NT, captions)
            yield pd.DataFrame([{"temporary": name, "num_rows": len(batch)}])

    return write
