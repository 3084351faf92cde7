"""Part `datacomp`: the recipe of conf/datacomp.yaml on a made release, read from an S3 server on loopback.

`make bench PART=datacomp`. For each step, at two sizes: rows per second of wall clock and of CPU (the process tree
without the server). What is over between the two sizes is the cost of a row; from it 12.8M, 1.28B and 12.8B rows are
extrapolated. And, CPU seconds, ours / theirs:

    clip_score_vs_apply_filter  ingest, published scores, selection and uid list against what DataComp's apply_filter.py
                                does: each file's uid and score by pandas in a pool of processes, twice, and no table
    clip_score_again            selection and uid list alone: what the next rule costs, the tables being there
    datacomp_large_vs_small     CPU seconds of a row at the larger size / at the smaller one, all steps
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from etl.config import load
from etl.export.export import uid_list
from etl.filters.filters import Filters
from etl.project import Project
from etl.stages import face_boxes, features, ingest, selection, signals
from tests.bench import ours, s3
from tests.bench.data import composed_captions
from tests.bench.measure import OUT, Ratio, compare, cpu_seconds, machine, report, say, watching
from tests.release import ARRAYS, SPACES, write_file

ROWS_PER_FILE = 50_000
"""DataComp's have about ten times as many."""
SIZES = {"small": 12_800_000, "large": 1_280_000_000, "xlarge": 12_800_000_000}
CORES = 1000


def made(num_files: int, rows_per_file: int) -> Path:
    """A release, made once: uids and scores are random, captions like alt texts, vectors those of the first file
    shifted by a row each."""
    folder = (OUT / "data" / f"datacomp-{num_files}x{rows_per_file}").absolute()
    if (folder / "done").exists():
        return folder
    say(f"making a release of {num_files} x {rows_per_file:,} rows in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    captions = np.array(composed_captions(20_000), dtype=object)
    arrays = {
        name: rng.standard_normal((rows_per_file, SPACES[name[:3]]), np.float32).astype(np.float16) for name in ARRAYS
    }
    for number in range(num_files):
        hexed = np.frombuffer(rng.bytes(rows_per_file * 48), np.uint8).reshape(-1, 48)
        names = [row.tobytes().hex() for row in hexed]
        score = rng.normal(0.21, 0.05, rows_per_file).astype(np.float16)
        rows = pd.DataFrame({
            "uid": [name[:32] for name in names],
            "url": [f"https://cdn.example.org/images/{name[32:48]}/{name[48:64]}.jpg" for name in names],
            "text": captions[rng.integers(0, len(captions), rows_per_file)],
            "original_width": rng.integers(100, 3000, rows_per_file),
            "original_height": rng.integers(100, 3000, rows_per_file),
            "clip_b32_similarity_score": score, "clip_l14_similarity_score": score[::-1],
            "face_bboxes": [[[0.25, 0.25, 0.5, 0.5]] if n % 5 == 0 else [] for n in range(rows_per_file)],
            "sha256": [name[32:] for name in names],
        })  # fmt: skip
        shifted = {key: np.roll(array, number, axis=0) for key, array in arrays.items()}
        write_file(folder / "release/metadata", f"{number:032x}", rows, shifted)
    (folder / "release/shards").mkdir()
    (folder / "release/shards/00000000.tar").write_bytes(bytes(10_240))
    np.save(folder / "centres.npy", rng.standard_normal((100, SPACES["l14"]), np.float32))
    np.save(folder / "targets.npy", rng.standard_normal((200, SPACES["l14"]), np.float32).astype(np.float16))
    (folder / "done").touch()
    return folder


@dataclass
class Steps:
    """Seconds of each step of one size: (wall, CPU without the server)."""

    server: s3.Server
    num_rows: int
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, name: str, step: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), self.cpu()
        with watching():
            step()
        self.seconds[name] = time.perf_counter() - wall, self.cpu() - cpu
        say(f"{self.num_rows:,} rows, {name}: {self.seconds[name][0]:.1f} s, {self.seconds[name][1]:.1f} CPU s")

    def cpu(self) -> float:
        return cpu_seconds() - self.server.cpu_seconds()

    def total(self, *names: str) -> float:
        return sum(self.seconds[name][1] for name in names or self.seconds)


def recipe(project: Project, steps: Steps, out: Path) -> None:
    """Every step of conf/datacomp.yaml, each from the tables that those before it wrote."""
    pool = "pool"
    filters = Filters(project, pool)
    steps.take("ingest", lambda: project.run(ingest.STAGE, pool))
    steps.take("published scores", lambda: filters.scored_by(["l14"]))
    steps.take("clip_score selection", lambda: select(project, filters, "clip_score", out))
    steps.take("face boxes", lambda: project.run(face_boxes.STAGE, pool))
    steps.take("signals", lambda: project.run(signals.STAGE, pool))
    steps.take("features", lambda: project.run(features.STAGE, pool))
    steps.take("image_based scores", lambda: filters.scored_by(["image_based"]))
    steps.take("image_based ∩ clip_score selection", lambda: select(project, filters, "image_based_clip_score", out))


def select(project: Project, filters: Filters, name: str, out: Path) -> None:
    """The selection and its uid list. The scores are up to date."""
    rule = load(["datacomp", f"baselines/{name}"], _settings("x", out, "")).stages.selection  # type: ignore[attr-defined]
    done = project.run(selection.STAGE, "pool", filters.scoring(rule))
    uid_list(project.store, "pool", str(done.slice["selection_id"]), out / f"{name}.npy")


def _settings(url: str, out: Path, folder: Path | str) -> list[str]:
    clusters = f"{{clusters: {{centres: {folder}/centres.npy, target: {{npy: {folder}/targets.npy}}}}}}"
    return [
        "datasets.pool.metadata=s3://release/metadata/*.parquet", f"output={out}", f"filters.image_based={clusters}",
        f"storage={json.dumps({'s3': {'endpoint_url': url, 'anon': True}})}",
    ]  # fmt: skip


def measured(num_files: int, rows_per_file: int) -> Steps:
    folder = made(num_files, rows_per_file)
    out = OUT.absolute() / "data" / "datacomp-out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with s3.serving(folder, out / "requests") as server:
        project = Project(load(["datacomp"], _settings(server.url, out, folder)))
        steps = Steps(server, num_files * rows_per_file)
        project.store  # noqa: B018  the session, started before
        recipe(project, steps, out)
        requests, sent = server.asked()
        theirs = [sys.executable, "-m", "tests.bench.apply_filter", server.url, str(out)]
        steps.take("apply_filter.py", lambda: subprocess.run(theirs, check=True))
    found, wanted = (np.load(out / f"{name}.npy", allow_pickle=False) for name in ("clip_score", "theirs"))
    assert np.array_equal(found, wanted), "the sides keep other uids"
    assert not [kind for kind in requests if "tar" in kind], "a tar was read"
    size = sum(path.stat().st_size for path in (folder / "release/metadata").iterdir())
    counts = ", ".join(f"{count:,} {kind} ({sent[kind] / 1e6:,.0f} MB)" for kind, count in sorted(requests.items()))
    say(f"{steps.num_rows:,} rows: {counts}; the release has {size / 1e6:,.0f} MB without shards; tars asked for: 0")
    return steps


def table(small: Steps, large: Steps) -> str:
    """Steps by rates, and what is over between the two sizes extrapolated in core seconds."""
    heads = [f"{name} {unit}" for unit in ("2 cores", f"{CORES:,}") for name in ("12.8M", "1.28B", "12.8B")]
    lines = [f"{'step':<36}{'rows/s':>9}{'/CPU s':>9}{'  us/row':>9}" + "".join(f"{head:>15}" for head in heads)]
    all_slopes = 0.0
    for name, (wall, cpu) in large.seconds.items():
        if name == "apply_filter.py":
            continue
        slope = max(0.0, (cpu - small.seconds[name][1]) / (large.num_rows - small.num_rows))
        all_slopes += slope
        rates = f"{large.num_rows / wall:>9,.0f}{large.num_rows / cpu:>9,.0f}"
        lines.append(f"{name:<36}{rates}{slope * 1e6:>9.1f}" + _extrapolated(slope))
    lines.append(f"{'all':<54}{all_slopes * 1e6:>9.1f}" + _extrapolated(all_slopes))
    return "\n".join(lines)


def _extrapolated(core_seconds_a_row: float) -> str:
    return "".join(f"{_time(rows * core_seconds_a_row / cores):>15}" for cores in (2, CORES) for rows in SIZES.values())


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.datacomp", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows: to see that all runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for other parts; not used here")
    given = parser.parse_args()
    ours.spark_session("local[2]")
    rows_per_file = ROWS_PER_FILE // 100 if given.quick else ROWS_PER_FILE
    measured(2, rows_per_file)  # warms the JIT and the workers up
    small, large = (measured(files, rows_per_file) for files in (4, 20))
    print(f"\n{machine()}; {large.num_rows:,} rows against {small.num_rows:,}\n{table(small, large)}")
    print(
        "Extrapolated, not run: linear in rows from the two sizes, at the CPU time of a row on these cores. It leaves "
        "out the\nnetwork, stragglers, shuffles that no longer fit in memory, and k-means with 100,000 centres in "
        "place of 100."
    )
    one = ("ingest", "published scores", "clip_score selection")
    theirs = [large.total("apply_filter.py")]
    unit = "CPU seconds"
    ratios: list[Ratio] = [
        compare("clip_score_vs_apply_filter", [large.total(*one)], theirs, unit, "-", "tables, receipt and all"),
        compare("clip_score_again", [large.total(one[-1])], theirs, unit, "-", "the tables are there"),
        compare("datacomp_large_vs_small", [large.total() / large.num_rows * 1e6],
                [small.total() / small.num_rows * 1e6], "CPU us/row", "<= 1.2"),
    ]  # fmt: skip
    report("datacomp-quick" if given.quick else "datacomp", ratios)


if __name__ == "__main__":
    main()
