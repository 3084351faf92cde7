"""Part `filters`: every configured filter over the demo's pool, from one encode pass. `make bench PART=filters`.

Rows:

    encodings_per_pair      images that went through the encoder, from an empty store to the last filter's scores,
                            against the pairs that have vectors: 1 is one pass, however many filters there are
    filters_vs_encode       CPU seconds of making, scoring and selecting by all of them, against those of the pass

and the table of `dfn filters`: pairs kept, overlap with the DFN's, precision against the planted truth. About ten
minutes of two cores, most of them for the pass. --quick: the tiny recipe.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from etl.config import load
from etl.console import emit
from etl.filters.table import filter_table
from etl.loop.loop import Loop
from etl.project import Project
from etl.tables import EMBEDDINGS
from tests.bench.measure import OUT, compare, cpu_seconds, report, say

FRACTION = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.filters", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the tiny recipe: to see that all runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for other parts")
    conf = "tiny" if parser.parse_args().quick else "demo"
    out = (OUT / "data" / f"filters-{conf}").absolute()
    shutil.rmtree(out, ignore_errors=True)
    given = [f"output={out}", f"stages.embed.calls_file={out}/calls", "loop.seeds=[0]"]
    out.mkdir(parents=True)
    project = Project(load([conf], given), say)
    started = cpu_seconds()
    project.run_all()
    encoded = cpu_seconds() - started
    trained = Loop(project).run().filters[0].final.folder
    # Fewer references and images than in the demo, where the pool is the tiny one.
    small = ["filters.s_clip_loss={s_clip_loss: {base: dfn, num_batches: 2, batch_size: 100}}",
             "filters.clusters={clusters: {target: {dataset: clean}, num_clusters: 8}}"]  # fmt: skip
    specs = [*given, f"filters.dfn={{folder: {trained}}}", *(small if conf == "tiny" else [])]
    many = Project(load([conf, "filters"], specs), say)
    started = cpu_seconds()
    table = filter_table(many, Loop(many).pool, FRACTION, {})
    filtered = cpu_seconds() - started
    emit(table, as_json=False)
    encodings, pairs = _encodings(out / "calls"), _with_vectors(many)
    note = f"{len(table)} filters, {pairs:,.0f} pairs with vectors in {len(many.config.datasets)} datasets"
    rows = [
        compare("encodings_per_pair", [encodings], [pairs], "images", "<= 1", note),
        compare("filters_vs_encode", [filtered], [encoded], "CPU seconds", "-", "the pass with ingest, signals, dedup"),
    ]
    report("filters-quick" if conf == "tiny" else "filters", rows)


def _encodings(calls: Path) -> float:
    return float(sum(int(line) for line in calls.read_text().split()))


def _with_vectors(project: Project) -> float:
    tables = (project.store.read(dataset, EMBEDDINGS) for dataset in project.config.datasets)
    return float(sum(rows.where("image_embedding IS NOT NULL").count() for rows in tables))


if __name__ == "__main__":
    main()
