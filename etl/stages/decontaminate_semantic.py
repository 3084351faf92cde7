"""Evaluation images in the pool, by what they mean to an encoder, and by that and their look together, as they are and
as edited copies look. Reads embeddings and pairs, of this dataset, of the evaluation datasets and of the registered
evaluation sets, and variants of these. Writes contaminated, methods `semantic` and `semantic_phash`: per set the
distance to the closest.

Pointwise: what is said of a pair follows from its vector and hash and those of evaluation images alone. Both sides are
cut into parts, and each two parts are compared in one task, exactly: a task's memory does not grow with either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Facts, Read, Slice, Stage, StageConfig
from etl.stages.dedup_semantic import METHOD, parts, usable
from etl.stages.score import float16
from etl.tables import CONTAMINATED, EMBEDDINGS, PAIRS, VARIANTS

JOINT_METHOD = "semantic_phash"
UNEDITED = ""
STEP = 1e-7
"""To which distances are rounded."""
NONE_NEAR = np.iinfo(np.int64).max


class Config(StageConfig):
    is_on: bool = True
    """Whether a run does this at all."""
    max_distance: float = pydantic.Field(default=0.1, ge=0, lt=2)
    """1 - cosine to an evaluation image's vector up to which a pair counts as a copy of it. With the demo's encoder: of
    800 pictures of its pool, held against 450 of its evaluation pictures, 3 are within .1, all of them copies to the
    eye; the first that is none is at .14. Of 31 edits of 150 pictures .1 finds 53 %, 4 bits of the perceptual hash
    52 %, both 72 %: of JPEGs of quality 90 99 %, of 50 and of 20 97 %. (.32, as calibrated on 100 pictures of the pool:
    88 %; too few to see what looks alike.) Another encoder wants another value: see `tests/bench/leaks.py`."""
    max_joint_distance: float = pydantic.Field(default=0.31, ge=0, lt=1)
    """(2 (1 - cosine) + bits / 32) / 3 up to which a pair counts as a copy, where both its vector and its perceptual
    hash have a say (`models/looks.py`); 0: they have not. With the demo's encoder: of 1,200 pictures of its pool, held
    against 1,000 evaluation pictures, most are copies, recolourings or variants to the eye up to .35. With the
    other methods it finds 99 % of JPEGs of quality 20, where they find 97 %, and of all of 31 edits 81 %, not 72;
    where evaluation pictures are looked for as edited, too (stages.variants), 94 %."""
    part_rows: int = pydantic.Field(default=50_000, gt=0, exclude=True)
    """Vectors of a part of either side: of 512 dimensions 50 MB, and 170 MB more for a moment."""
    edits: tuple[str, ...] = ()
    """Known to a run only: those of stages.variants."""
    encoder: str = ""
    """Known to a run only."""
    encoder_version: str = ""
    """Known to a run only."""


def prepare(embeddings: DataFrame, references: DataFrame, pairs: DataFrame | None = None,
            known: DataFrame | None = None, variants: DataFrame | None = None, *, config: Config) -> Facts:  # fmt: skip
    """{num_vectors, num_references, num_variants}: with vectors, so that nothing found can be told from nothing looked
    at."""
    num_variants = variants.where("status = 'ok'").count() * len(config.edits) if variants else 0
    return {
        "num_vectors": usable(embeddings).count(),
        "num_references": usable(references).count(),
        "num_variants": num_variants,
    }


def transform(embeddings: DataFrame, references: DataFrame, pairs: DataFrame | None = None,
              known: DataFrame | None = None, variants: DataFrame | None = None, *, config: Config,
              facts: Facts) -> DataFrame:  # fmt: skip
    num_ours = parts(facts["num_vectors"], config.part_rows)
    num_theirs = parts(facts["num_references"] + facts["num_variants"], config.part_rows)
    ours = _with_hash(usable(embeddings), pairs, "uid").select(
        F.pmod(F.xxhash64("uid"), F.lit(num_ours)).cast("int").alias("part"),
        F.explode(F.sequence(F.lit(0), F.lit(num_theirs - 1))).alias("their_part"), "uid", "image_embedding", "phash",
    )  # fmt: skip
    theirs = looked_for(references, known, variants).select(
        F.explode(F.sequence(F.lit(0), F.lit(num_ours - 1))).alias("part"),
        F.pmod(F.xxhash64("dataset", "uid", "edit"), F.lit(num_theirs)).cast("int").alias("their_part"),
        F.col("dataset").alias("eval_set"), "edit", "image_embedding", "phash",
    )  # fmt: skip
    cells = ours.groupBy("part", "their_part").cogroup(theirs.groupBy("part", "their_part"))
    # Python: a blocked matrix product by torch.
    near = cells.applyInArrow(
        finder(config.max_distance, config.max_joint_distance),
        "eval_set string, method string, uid string, edit string, distance double",
    )
    closest = near.groupBy("eval_set", "method", "uid").agg(F.min(F.struct("distance", "edit")).alias("least"))
    return closest.select(
        "eval_set", "method", "uid", F.col("least.distance").cast("float").alias("distance"),
        F.nullif("least.edit", F.lit(UNEDITED)).alias("edit"),
    )  # fmt: skip


def looked_for(references: DataFrame, known: DataFrame | None, variants: DataFrame | None) -> DataFrame:
    """(dataset, uid, edit, image_embedding, phash) of evaluation pictures as they are and as they were edited."""
    as_they_are = _with_hash(usable(references), known, "dataset", "uid").withColumn("edit", F.lit(UNEDITED))
    columns = ["dataset", "uid", "edit", "image_embedding", "phash"]
    if variants is None:
        return as_they_are.select(*columns)
    edited = variants.where("status = 'ok'").select("dataset", "uid", F.inline("looks"))
    return as_they_are.select(*columns).unionByName(edited.select(*columns))


def _with_hash(vectors: DataFrame, pairs: DataFrame | None, *key: str) -> DataFrame:
    """Vectors with the perceptual hash of their pictures; NULL of those without pixels, and where no pairs are read."""
    if pairs is None:
        return vectors.withColumn("phash", F.lit(None).cast("bigint"))
    return vectors.join(pairs.select(*key, "phash"), on=list(key), how="left")


class _Side(NamedTuple):
    """Rows whose vector has a direction."""

    names_N: Any
    """uid, or evaluation set."""
    edits_N: Any
    """Of evaluation pictures; None of the pool's."""
    vectors_ND: Any
    """float16."""
    hashes_N: Any
    """uint64, 0 where there is none."""
    has_hash_N: Any

    @classmethod
    def of(cls, rows: pa.Table, name: str) -> _Side:
        from models.near import have_direction

        vectors_ND = float16(rows.column("image_embedding").to_pandas()) if len(rows) else np.empty((0, 0), np.float16)
        phashes = rows.column("phash").combine_chunks()
        hashes_N = phashes.fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
        has_hash_N = phashes.is_valid().to_numpy(zero_copy_only=False)
        edits = rows.column("edit").to_pylist() if "edit" in rows.column_names else [None] * len(rows)
        named = np.array(rows.column(name).to_pylist(), object), np.array(edits, object)
        side = cls(*named, vectors_ND, hashes_N, has_hash_N)
        return side.where(have_direction(vectors_ND))

    def where(self, is_wanted_N: Any) -> _Side:
        return _Side(*(values[is_wanted_N] for values in self))


def finder(max_distance: float, max_joint_distance: float) -> Callable[[pa.Table, pa.Table], pa.Table]:
    """(rows of the pool, evaluation rows) to the pool's rows that are near, with method, set, and distance and edit of
    the closest."""

    def find(ours: pa.Table, theirs: pa.Table) -> pa.Table:
        import torch

        torch.set_num_threads(1)
        sides = _Side.of(ours, "uid"), _Side.of(theirs, "eval_set")
        found = [_closest(*sides, METHOD, _by_vectors(*sides, max_distance))]
        if max_joint_distance:
            hashed = sides[0].where(sides[0].has_hash_N), sides[1].where(sides[1].has_hash_N)
            found.append(_closest(*hashed, JOINT_METHOD, _by_both(*hashed, max_joint_distance)))
        return pa.concat_tables(found)

    return find


Near = Iterator[tuple[Any, Any, Any]]
"""(i_P, j_P, distance_P) of near pairs, some at a time."""


def _by_vectors(ours: _Side, theirs: _Side, max_distance: float) -> Near:
    from models.near import distances, near_pairs

    for i_P, j_P in near_pairs(ours.vectors_ND, theirs.vectors_ND, min_cosine=1 - max_distance):
        yield i_P, j_P, distances(ours.vectors_ND, theirs.vectors_ND, i_P, j_P)


def _by_both(ours: _Side, theirs: _Side, max_distance: float) -> Near:
    from models.looks import ROUNDING, joined, joint_distances
    from models.near import near_pairs

    left, right = ((side.vectors_ND, side.hashes_N) for side in (ours, theirs))
    for i_P, j_P in near_pairs(joined(*left), joined(*right), min_cosine=1 - max_distance - ROUNDING):
        distance_P = joint_distances(left, right, i_P, j_P)
        is_near_P = distance_P <= max_distance
        yield i_P[is_near_P], j_P[is_near_P], distance_P[is_near_P]


def _closest(ours: _Side, theirs: _Side, method: str, near: Near) -> pa.Table:
    """Of each row and set the closest, where there is any; of two as close that whose edit is the first by name."""
    names, set_M = np.unique(theirs.names_N, return_inverse=True)
    edits, edit_M = np.unique(theirs.edits_N, return_inverse=True)
    # One number to compare by: the distance in steps, then the edit's place.
    closest_NS = np.full((len(ours.names_N), len(names)), NONE_NEAR)
    for i_P, j_P, distance_P in near if closest_NS.size else ():
        steps_P = np.rint(distance_P / STEP).astype(np.int64)
        np.minimum.at(closest_NS, (i_P, set_M[j_P]), steps_P * len(edits) + edit_M[j_P])
    row_R, set_R = np.nonzero(closest_NS != NONE_NEAR)
    steps_R, edit_R = np.divmod(closest_NS[row_R, set_R], max(len(edits), 1))
    texts = names[set_R], np.full(len(row_R), method, object), ours.names_N[row_R], edits[edit_R]
    found = [pa.array(values, pa.string()) for values in texts]
    return pa.table([*found, pa.array(steps_R * STEP)], names=["eval_set", "method", "uid", "edit", "distance"])


def methods_slice(config: StageConfig, key: str) -> Slice:
    return {"method": (METHOD, JOINT_METHOD)}


def _is_joint(config: Config) -> bool:
    return bool(config.max_joint_distance)


STAGE = Stage(
    "decontaminate_semantic",
    reads={
        "embeddings": Read(EMBEDDINGS),
        "references": Read(EMBEDDINGS, kinds=("eval", "dev")),
        "pairs": Read(PAIRS, is_read=_is_joint),
        "known": Read(PAIRS, kinds=("eval", "dev"), is_read=_is_joint),
        "variants": Read(VARIANTS, kinds=("eval", "dev"), is_read=lambda config: bool(config.edits)),
    },
    writes=(CONTAMINATED,),
    config=Config,
    prepare=prepare,
    transform=transform,
    resume="table",
    version=3,
    kinds=("pool", "filter"),
    slice_of=methods_slice,
)
