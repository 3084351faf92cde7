"""Pairs whose images mean nearly the same to an encoder. Reads embeddings. Writes duplicates, method `semantic`.

Exact up to millions of vectors: parts of them meet in the cells of a grid, each a blocked product in one task. Beyond
that as SemDeDup does it (Abbas et al. 2023, arXiv 2303.09540, section 3): k-means clusters of vectors, and exact within
each; near pairs on two sides of a border are then missed. What is near by a chain of pairs is one group.

Deduplicating helps a raw pool. After CLIP filtering it adds little, and an aggressive threshold hurts: so it is off by
default, and what it finds is dropped only by a rule that says so (`unique: {by: [semantic], ...}`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.dedup.components import components
from etl.dedup.grow import regrouped
from etl.dedup.skew import MANY, spread_join
from etl.stage import Facts, Read, Slice, Stage, StageConfig, for_join, series_udf
from etl.stages.score import float16
from etl.tables import DUPLICATES, EMBEDDINGS

METHOD = "semantic"
MAX_SAMPLED_BYTES = 64 << 20
"""Of vectors that the driver takes to find cluster centres."""


class Config(StageConfig):
    is_on: bool = False
    """Whether a run does this at all."""
    max_distance: float = pydantic.Field(default=0.05, ge=0, lt=2)
    """1 - cosine of two images' vectors up to which they are linked. Half of what `decontaminate_semantic` has, since
    links chain. With the demo's encoder it finds, of 100 pictures of Openclipart, 86 % of the JPEGs of quality 90 and
    28 % of those of quality 50."""
    max_exact_rows: int = pydantic.Field(default=4_000_000, gt=0)
    """Vectors up to which every pair of them is compared; of more, those within a cluster."""
    rows_per_cluster: int = pydantic.Field(default=20_000, gt=0)
    """Of a cluster, on average. Pairs compared, and what borders hide, grow and shrink with it."""
    seed: int = 0
    """Of the clusters."""
    part_rows: int = pydantic.Field(default=50_000, gt=0, exclude=True)
    """Vectors of a part; a task holds two: 200 MB of 512 dimensions, three times for a moment."""
    encoder: str = ""
    """Known to a run only."""
    encoder_version: str = ""
    """Known to a run only."""


def usable(embeddings: DataFrame) -> DataFrame:
    """(uid, image_embedding) of the rows that have one, with what else is not named."""
    return embeddings.where("status = 'ok' AND image_embedding IS NOT NULL")


def prepare(embeddings: DataFrame, *, config: Config) -> Facts:
    """{num_vectors, num_parts: of each cluster, centres: None, or float32 of shape (clusters, dims) as base64}."""
    vectors = usable(embeddings).select("uid", "image_embedding")
    num_vectors = vectors.count()
    facts: Facts = {"num_vectors": num_vectors, "centres": None, "num_parts": [parts(num_vectors, config.part_rows)]}
    if num_vectors <= config.max_exact_rows:
        return facts
    centres_CE = _centres(vectors, num_vectors, config)
    facts["centres"] = base64.b64encode(centres_CE.astype("<f4").tobytes()).decode()
    sizes = vectors.select(_cluster(facts).alias("cluster")).groupBy("cluster").count().collect()
    by_cluster = {row["cluster"]: int(row["count"]) for row in sizes}
    facts["num_parts"] = [parts(by_cluster.get(c, 0), config.part_rows) for c in range(len(centres_CE))]
    return facts


def parts(num_rows: int, part_rows: int) -> int:
    return max(1, math.ceil(num_rows / part_rows))


def _centres(vectors: DataFrame, num_vectors: int, config: Config) -> Any:
    """Unit vectors, float32, found on a sample that follows from seed and uids alone."""
    from models.fit import centres
    from models.near import have_direction

    width = len(vectors.select("image_embedding").first()["image_embedding"])  # type: ignore[index]
    order = F.md5(F.concat(F.lit(f"{config.seed}:"), F.col("uid")))
    drawn: Any = vectors.orderBy(order, "uid").limit(MAX_SAMPLED_BYTES // width).toPandas()
    sample_ND = float16(drawn["image_embedding"]).astype(np.float32)
    sample_ND = sample_ND[have_direction(sample_ND)]
    num_clusters = min(math.ceil(num_vectors / config.rows_per_cluster), len(sample_ND))
    found_CE = centres(sample_ND / np.linalg.norm(sample_ND, axis=1, keepdims=True), num_clusters, config.seed)
    return found_CE / np.maximum(np.linalg.norm(found_CE, axis=1, keepdims=True), 1e-12)


def _cluster(facts: Facts) -> Column:
    """The cluster whose centre has the largest cosine; 0 where all are one."""
    if facts["centres"] is None:
        return F.lit(0)
    flat = np.frombuffer(base64.b64decode(facts["centres"]), "<f4").astype(np.float64)

    def nearest(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        for images in batches:
            images_ND = float16(images).astype(np.float64)
            # In float64: the last bits of a product follow from how many rows a batch has, and must not decide.
            yield pd.Series((images_ND @ flat.reshape(-1, images_ND.shape[1]).T).argmax(axis=1))

    # Python: one matrix product per Arrow batch.
    return series_udf(nearest, "int")("image_embedding")


def in_cells(vectors: DataFrame, facts: Facts) -> DataFrame:
    """Each vector in every cell (cluster, a, b), a <= b, of which its part is a side; with its part."""
    of_cluster = enumerate(facts["num_parts"])
    sizes = vectors.sparkSession.createDataFrame(pd.DataFrame(of_cluster, columns=["cluster", "num_parts"]))
    part = F.pmod(F.xxhash64("uid"), F.col("num_parts"))
    placed = vectors.withColumn("cluster", _cluster(facts)).join(F.broadcast(sizes), on="cluster", how="inner")
    other = F.explode(F.sequence(F.lit(0), F.col("num_parts") - 1))
    return _cells(placed.withColumn("part", part).withColumn("other", other))


def _cells(met: DataFrame) -> DataFrame:
    """The cell of each vector's `part` and the `other` one that it meets there."""
    ends = F.least("part", "other").alias("a"), F.greatest("part", "other").alias("b")
    return met.select("cluster", *ends, "part", "uid", "image_embedding")


def in_new_cells(old: DataFrame, new: DataFrame, num_old: int, num_new: int) -> DataFrame:
    """The same, of cells of which a side at least is a part of the new vectors; parts of the old ones come after."""

    def placed(vectors: DataFrame, num_parts: int, start: int, num_others: int) -> DataFrame:
        part = F.pmod(F.xxhash64("uid"), F.lit(num_parts)) + F.lit(start)
        other = F.explode(F.sequence(F.lit(0), F.lit(num_others - 1)))
        return _cells(vectors.withColumns({"cluster": F.lit(0), "part": part}).withColumn("other", other))

    return placed(new, num_new, 0, num_new + num_old).unionByName(placed(old, num_old, num_new, num_new))


def finder(max_distance: float) -> Callable[[pa.Table], pa.Table]:
    """The rows of a cell to edges between its two parts, or within its one: a forest of all that are near."""

    def find(cell: pa.Table) -> pa.Table:
        import torch

        from models.near import forest, have_direction, near_pairs

        torch.set_num_threads(1)
        part_N = cell.column("part").to_numpy()
        images_ND = float16(cell.column("image_embedding").to_pandas())
        is_usable_N = have_direction(images_ND)
        is_a_N = part_N == cell.column("a").to_numpy()
        a, b = np.flatnonzero(is_usable_N & is_a_N), np.flatnonzero(is_usable_N & ~is_a_N)
        is_diagonal = cell.column("a")[0] == cell.column("b")[0]
        rows = a if is_diagonal else np.concatenate([a, b])
        found = near_pairs(images_ND[a], None if is_diagonal else images_ND[b], min_cosine=1 - max_distance)
        i_P, j_P = forest(((i, j if is_diagonal else j + len(a)) for i, j in found), len(rows))
        uids = cell.column("uid").take(pa.array(rows)).combine_chunks()
        return pa.table({"uid_a": uids.take(pa.array(i_P)), "uid_b": uids.take(pa.array(j_P))})

    return find


def transform(embeddings: DataFrame, *, config: Config, facts: Facts) -> DataFrame:
    vectors = usable(embeddings).select("uid", "image_embedding")
    cells = in_cells(vectors, facts).groupBy("cluster", "a", "b")
    # Python: a blocked matrix product by torch.
    edges = cells.applyInArrow(finder(config.max_distance), "uid_a string, uid_b string")
    return with_distance(components(edges).localCheckpoint(), vectors)


def update(
    earlier: Mapping[str, DataFrame],
    added: Mapping[str, DataFrame],
    written: DataFrame,
    *,
    config: Config,
    facts: Facts,
) -> DataFrame | None:
    """New vectors against all, the same rows as from scratch; None beyond `max_exact_rows`, since clusters move."""
    if facts["centres"] is not None:
        return None
    old, new = (usable(frames["embeddings"]).select("uid", "image_embedding") for frames in (earlier, added))
    num_new = new.count()
    num_parts = (parts(number, config.part_rows) for number in (facts["num_vectors"] - num_new, num_new))
    cells = in_new_cells(old, new, *num_parts).groupBy("cluster", "a", "b")
    # Python: a blocked matrix product by torch.
    edges = cells.applyInArrow(finder(config.max_distance), "uid_a string, uid_b string").localCheckpoint()
    changed = regrouped(written, edges).localCheckpoint()
    kept = written.join(for_join(changed.select("uid")), on="uid", how="left_anti")
    return with_distance(changed, old.unionByName(new)).unionByName(kept)


def with_distance(groups: DataFrame, vectors: DataFrame) -> DataFrame:
    """Rows of `duplicates` from (uid, group_uid): the distance is that to the pair that the group is named after."""
    firsts = groups.select(F.col("group_uid").alias("uid")).distinct().join(vectors, on="uid", how="inner")
    firsts = firsts.select(F.col("uid").alias("group_uid"), F.col("image_embedding").alias("first")).localCheckpoint()
    members = groups.join(vectors, on="uid", how="inner").localCheckpoint()
    heavy = groups.groupBy("group_uid").count().where(F.col("count") > MANY)
    both = spread_join(members, firsts, "group_uid", heavy)

    def apart(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        from models.near import distances

        for images, others in batches:
            rows = np.arange(len(images))
            yield pd.Series(distances(float16(images), float16(others), rows, rows) if len(rows) else [], dtype=float)

    distance = series_udf(apart, "double")("image_embedding", "first")  # Python: SQL reads no float16
    return both.select(F.lit(METHOD).alias("method"), "uid", "group_uid", distance.cast("float").alias("distance"))


def method_slice(config: StageConfig, key: str) -> Slice:
    return {"method": METHOD}


STAGE = Stage(
    "dedup_semantic", reads={"embeddings": Read(EMBEDDINGS)}, writes=(DUPLICATES,), config=Config, prepare=prepare,
    transform=transform, update=update, resume="table", version=1, slice_of=method_slice,
)  # fmt: skip
