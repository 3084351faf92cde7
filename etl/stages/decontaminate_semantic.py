"""Evaluation images in the pool, by what they mean to an encoder. Reads embeddings of this dataset, of the evaluation
datasets and of the registered evaluation sets. Writes contaminated, method `semantic`: per set the distance to the
closest.

Pointwise: what is said of a pair follows from its vector and the evaluation vectors alone. Both sides are cut into
parts, and each two parts are compared in one task, exactly: a task's memory does not grow with either side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Facts, Read, Slice, Stage, StageConfig
from etl.stages.decontaminate import with_method
from etl.stages.dedup_semantic import METHOD, parts, usable
from etl.stages.score import float16
from etl.tables import CONTAMINATED, EMBEDDINGS


class Config(StageConfig):
    is_on: bool = True
    """Whether a run does this at all."""
    max_distance: float = pydantic.Field(default=0.1, ge=0, lt=2)
    """1 - cosine to an evaluation image's vector up to which a pair counts as a copy of it. With the demo's encoder: of
    800 pictures of its pool, held against 450 of its evaluation pictures, 3 are within .1, all of them copies to the
    eye; the first that is none is at .14. Of 31 edits of 150 pictures .1 finds 53 %, 4 bits of the perceptual hash
    52 %, both 72 %: of JPEGs of quality 90 99 %, of 50 and of 20 97 %. (.32, as calibrated on 100 pictures of the pool:
    88 %; too few to see what looks alike.) Another encoder wants another value: see `tests/bench/leaks.py`."""
    part_rows: int = pydantic.Field(default=50_000, gt=0, exclude=True)
    """Vectors of a part of either side: 50 MB of 512 dimensions, three times for a moment."""
    encoder: str = ""
    """Known to a run only."""
    encoder_version: str = ""
    """Known to a run only."""


def prepare(embeddings: DataFrame, references: DataFrame, *, config: Config) -> Facts:
    """{num_vectors, num_references}: with vectors, so that nothing found can be told from nothing looked at."""
    return {"num_vectors": usable(embeddings).count(), "num_references": usable(references).count()}


def transform(embeddings: DataFrame, references: DataFrame, *, config: Config, facts: Facts) -> DataFrame:
    num_ours, num_theirs = (parts(facts[n], config.part_rows) for n in ("num_vectors", "num_references"))
    ours = usable(embeddings).select(
        F.pmod(F.xxhash64("uid"), F.lit(num_ours)).cast("int").alias("part"),
        F.explode(F.sequence(F.lit(0), F.lit(num_theirs - 1))).alias("their_part"), "uid", "image_embedding",
    )  # fmt: skip
    theirs = usable(references).select(
        F.explode(F.sequence(F.lit(0), F.lit(num_ours - 1))).alias("part"),
        F.pmod(F.xxhash64("dataset", "uid"), F.lit(num_theirs)).cast("int").alias("their_part"),
        F.col("dataset").alias("eval_set"), "image_embedding",
    )  # fmt: skip
    cells = ours.groupBy("part", "their_part").cogroup(theirs.groupBy("part", "their_part"))
    # Python: a blocked matrix product by torch.
    near = cells.applyInArrow(finder(config.max_distance), "eval_set string, uid string, distance double")
    closest = near.groupBy("eval_set", "uid").agg(F.min("distance").alias("distance"))
    return with_method(closest, METHOD)


def finder(max_distance: float) -> Callable[[pa.Table, pa.Table], pa.Table]:
    """(rows of the pool, evaluation rows) to the pool's rows that are near, with the set and the closest's distance."""

    def find(ours: pa.Table, theirs: pa.Table) -> pa.Table:
        import torch

        from models.near import distances, near_pairs

        torch.set_num_threads(1)
        (uids, ours_ND), (sets_M, theirs_MD) = _side(ours, "uid"), _side(theirs, "eval_set")
        names, set_M = np.unique(sets_M, return_inverse=True)
        closest_NS = np.full((len(uids), len(names)), np.inf)
        if len(uids) and len(names):
            for i_P, j_P in near_pairs(ours_ND, theirs_MD, min_cosine=1 - max_distance):
                np.minimum.at(closest_NS, (i_P, set_M[j_P]), distances(ours_ND, theirs_MD, i_P, j_P))
        row_R, set_R = np.nonzero(np.isfinite(closest_NS))
        columns = {"eval_set": names[set_R], "uid": uids[row_R]}
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}
                        | {"distance": closest_NS[row_R, set_R]})  # fmt: skip

    return find


def _side(rows: pa.Table, name: str) -> tuple[Any, Any]:
    """(values of a column, vectors) of the rows whose vector has a direction."""
    from models.near import have_direction

    vectors_ND = float16(rows.column("image_embedding").to_pandas()) if len(rows) else np.empty((0, 0), np.float16)
    is_usable_N = have_direction(vectors_ND)
    return np.array(rows.column(name).to_pylist(), object)[is_usable_N], vectors_ND[is_usable_N]


def method_slice(config: StageConfig, key: str) -> Slice:
    return {"method": METHOD}


STAGE = Stage(
    "decontaminate_semantic",
    reads={"embeddings": Read(EMBEDDINGS), "references": Read(EMBEDDINGS, kinds=("eval", "dev"))},
    writes=(CONTAMINATED,),
    config=Config,
    prepare=prepare,
    transform=transform,
    resume="table",
    version=1,
    kinds=("pool", "filter"),
    slice_of=method_slice,
)
