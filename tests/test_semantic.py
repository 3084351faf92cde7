"""Semantic duplicates on planted vectors: groups as an independent reference has them, whatever grid, parts, order."""

import base64

import numpy as np
import pytest
from helpers import frame, rows_of, schema_of, uid

from etl.stages import dedup_semantic
from etl.stages.dedup_semantic import Config, prepare, transform
from etl.tables import DUPLICATES, EMBEDDINGS

VERSION = {"encoder": "planted", "encoder_version": "0" * 16}


def embedded(number: int, image, status: str = "ok") -> dict:
    vector = None if image is None else bytearray(np.asarray(image, "<f2").tobytes())
    return {**VERSION, "uid": uid(number), "image_embedding": vector, "text_embedding": vector, "status": status}


def clustered(num: int, dims: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num // 4, dims))
    return (centres[rng.integers(len(centres), size=num)] + 0.25 * rng.standard_normal((num, dims))).astype("<f2")


def reference(vectors: dict[int, np.ndarray], max_distance: float) -> list[tuple]:
    """Groups by flooding, in float64."""
    numbers = sorted(vectors)
    units = np.stack([vectors[n].astype(np.float64) for n in numbers])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    apart = 1 - units @ units.T
    rows, seen = [], set()
    for start in range(len(numbers)):
        if start in seen:
            continue
        group, edge = {start}, [start]
        while edge:
            found = set(np.flatnonzero(apart[edge.pop()] <= max_distance).tolist()) - group
            group |= found
            edge += found
        seen |= group
        if len(group) > 1:
            rows += [("semantic", uid(numbers[n]), uid(numbers[start]), apart[n, start]) for n in group]
    return sorted(rows)


def found(spark, rows, config: Config, partitions: int = 2) -> list[tuple]:
    table = frame(spark, EMBEDDINGS, rows, partitions)
    made = transform(table, config=config, facts=prepare(table, config=config))
    assert made.columns == schema_of(DUPLICATES).names
    return rows_of(made)


def check_same(rows: list[tuple], wanted: list[tuple], atol: float = 2e-7) -> None:
    assert [row[:3] for row in rows] == [row[:3] for row in wanted]
    np.testing.assert_allclose([row[3] for row in rows], [row[3] for row in wanted], atol=atol)


VECTORS = dict(enumerate(clustered(600)))
UNUSABLE = [
    embedded(9000, None), embedded(9001, None), embedded(9002, VECTORS[0], "invalid_output"),
    embedded(9003, np.zeros(32)), embedded(9004, np.zeros(32)), embedded(9005, np.full(32, np.nan)),
]  # fmt: skip
"""NULL, not ok, no direction: near to nothing, and to no other of them."""
ROWS = [embedded(n, vector) for n, vector in VECTORS.items()] + UNUSABLE


def test_groups_are_those_of_the_reference_on_any_partitions_order_and_grid(spark):
    wanted = reference(VECTORS, 0.05)
    assert len(wanted) > 200 and len({row[2] for row in wanted}) > 30
    results = [
        found(spark, ROWS, Config(max_distance=0.05, part_rows=part_rows), partitions)
        for partitions, part_rows in ((1, 50_000), (4, 250), (13, 80))
    ]
    check_same(results[0], wanted)
    assert results[0] == results[1] == results[2]


def test_vectors_that_came_are_held_against_all(spark):
    """As from scratch, on any grid; but where there are clusters, which move, it is left to that."""
    config = Config(max_distance=0.05, part_rows=90)
    then, since = ({n: v for n, v in VECTORS.items() if (n % 5 in (0, 2)) is came} for came in (False, True))
    parts = [
        [embedded(n, vector) for n, vector in some.items()] + UNUSABLE[i::2] for i, some in enumerate((then, since))
    ]
    facts = prepare(frame(spark, EMBEDDINGS, ROWS), config=config)
    names = schema_of(DUPLICATES).names
    rows = [dict(zip(names, (*row[:3], float(row[3])), strict=True)) for row in reference(then, 0.05)]
    inputs = [{"embeddings": frame(spark, EMBEDDINGS, part, 3)} for part in parts]
    made = dedup_semantic.update(*inputs, frame(spark, DUPLICATES, rows), config=config, facts=facts)
    assert made.columns == schema_of(DUPLICATES).names
    check_same(rows_of(made), reference(VECTORS, 0.05))
    assert dedup_semantic.update(*inputs, None, config=config, facts={**facts, "centres": ""}) is None


def test_a_chain_is_one_group_and_its_distances_are_to_the_pair_it_is_named_after(spark):
    angles = np.radians([0, 10, 20, 30, 60, 65, 120])
    rows = [embedded(n, [np.cos(angle), np.sin(angle)]) for n, angle in zip((9, 2, 7, 5, 4, 3, 1), angles, strict=True)]
    made = found(spark, rows, Config(max_distance=1 - np.cos(np.radians(11))))
    degrees = {(2, 2): 0, (5, 2): 20, (7, 2): 10, (9, 2): 10, (3, 3): 0, (4, 3): 5}
    wanted = sorted(("semantic", uid(a), uid(b), 1 - np.cos(np.radians(d))) for (a, b), d in degrees.items())
    check_same(made, wanted, atol=1e-3)  # float16
    assert {row[3] for row in made if row[1] == row[2]} == {0.0}


@pytest.mark.slow
def test_in_clusters_what_is_found_is_near_and_little_is_missed(spark):
    """SemDeDup's form: no group that the exact one has not, and of its tight groups all."""
    vectors = dict(enumerate(clustered(800, seed=3)))
    tight = {n: VECTORS[n] for n in range(50)} | {n + 1000: VECTORS[n] for n in range(50)}
    rows = [embedded(n, vector) for n, vector in (vectors | tight).items()] + UNUSABLE
    config = Config(max_distance=0.03, max_exact_rows=100, rows_per_cluster=100, part_rows=60)
    facts = prepare(frame(spark, EMBEDDINGS, rows, 3), config=config)
    assert len(facts["num_parts"]) == 9 and max(facts["num_parts"]) > 1  # NaN and zeros are counted, and then left out
    centres = np.frombuffer(base64.b64decode(facts["centres"]), "<f4").reshape(9, 32)
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-6)
    results = [found(spark, rows, config, partitions) for partitions in (1, 4)]
    assert results[0] == results[1]
    group_of = {row[1]: row[2] for row in reference(vectors | tight, 0.03)}
    assert all(group_of[row[1]] == group_of[row[2]] for row in results[0])
    own = {row[1]: row[2] for row in results[0]}
    assert all(own[uid(n)] == own[uid(n + 1000)] for n in range(50))
    assert len(own) > 0.8 * len(group_of)


def test_nothing_to_find(spark):
    assert found(spark, UNUSABLE, Config()) == []
    assert found(spark, ROWS[:1], Config()) == []


@pytest.mark.parametrize("part_rows", [pytest.param(50_000, marks=pytest.mark.slow), 700])
def test_a_third_of_one_image_is_one_group(spark, part_rows, monkeypatch):
    """F15: and its members get their distances where they lie."""
    monkeypatch.setattr(dedup_semantic, "MANY", 100)
    same = np.random.default_rng(8).standard_normal(32).astype("<f2")
    vectors = {n: same if n % 3 == 0 else vector for n, vector in enumerate(clustered(2100, seed=5))}
    made = found(spark, [embedded(n, v) for n, v in vectors.items()], Config(max_distance=0.01, part_rows=part_rows), 4)
    check_same(made, reference(vectors, 0.01))
    assert [row for row in made if row[2] == uid(0)] == [("semantic", uid(n), uid(0), 0.0) for n in range(0, 2100, 3)]
