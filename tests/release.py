"""A release in DataComp's layout: metadata/HEX.parquet with its columns, HEX.npz beside each, shards/*.tar.

Columns and types are those of the hub's `mlfoundations/datacomp_small`; face boxes are [left, top, right, bottom] as
fractions, as img2dataset blurs them.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema([
    ("uid", pa.string()), ("url", pa.string()), ("text", pa.string()), ("original_width", pa.int64()),
    ("original_height", pa.int64()), ("clip_b32_similarity_score", pa.float32()),
    ("clip_l14_similarity_score", pa.float32()), ("face_bboxes", pa.list_(pa.list_(pa.float64()))),
    ("sha256", pa.string()),
])  # fmt: skip
SPACES = {"b32": 512, "l14": 768}
ARRAYS = [f"{space}_{side}" for space in SPACES for side in ("img", "txt")]
"""Of an npz, each float16 of shape (rows, dims of the space)."""


def write_file(folder: Path, name: str, rows: pd.DataFrame, arrays: dict[str, np.ndarray]) -> None:
    """One metadata file and the npz beside it; `arrays` has those of ARRAYS."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(rows, SCHEMA, preserve_index=False), folder / f"{name}.parquet")
    np.savez(folder / f"{name}.npz", **{key: arrays[key].astype(np.float16) for key in ARRAYS})


def beside(image_ND: np.ndarray, cosines_N: np.ndarray, seed: int) -> np.ndarray:
    """Text vectors that have these cosines with the image vectors, but for rounding. Lengths are not one."""
    other_ND = np.random.default_rng(seed).standard_normal(image_ND.shape)
    units_ND = image_ND / np.linalg.norm(image_ND, axis=1, keepdims=True)
    other_ND -= (other_ND * units_ND).sum(axis=1, keepdims=True) * units_ND
    other_ND /= np.linalg.norm(other_ND, axis=1, keepdims=True)
    return 3 * (cosines_N[:, None] * units_ND + np.sqrt(1 - cosines_N[:, None] ** 2) * other_ND)
