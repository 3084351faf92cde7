"""What DataComp's apply_filter.py reads and does for clip_score, as a peer of part `datacomp`.

A process of its own, that imports nothing of ours: `python -m tests.bench.apply_filter URL OUT` writes OUT/theirs.npy.
"""

from __future__ import annotations

import sys
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd

KEY = "clip_l14_similarity_score"
FRACTION = 0.3


def _open(url: str) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", endpoint_url=url, anon=True)


def _scores(given: tuple[str, str]) -> np.ndarray:
    return pd.read_parquet(given[1], columns=[KEY], filesystem=_open(given[0]))[KEY].to_numpy()


def _uids(given: tuple[str, str, float]) -> np.ndarray:
    rows = pd.read_parquet(given[1], columns=["uid", KEY], filesystem=_open(given[0]))
    kept = rows["uid"][rows[KEY] >= given[2]]
    return np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in kept], np.dtype("u8,u8"))


def apply_filter(url: str, out: Path, processes: int = 2) -> None:
    paths = [(url, path) for path in _open(url).ls("release/metadata") if path.endswith(".parquet")]
    with get_context("spawn").Pool(processes) as pool:
        scores = np.concatenate(pool.map(_scores, paths, chunksize=1))
        threshold = float(-np.sort(-scores)[int(len(scores) * FRACTION)])
        kept = np.concatenate(pool.map(_uids, [(*path, threshold) for path in paths], chunksize=1))
    kept.sort()
    np.save(out / "theirs.npy", kept)


if __name__ == "__main__":
    apply_filter(sys.argv[1], Path(sys.argv[2]))
