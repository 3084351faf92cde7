"""Connected components against union-find in plain Python, by rounds and in one task; skew; no row of a join lost."""

import itertools
import random

import pytest
from helpers import rows_of, uid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import etl.dedup.components
import etl.dedup.skew
from etl.dedup.components import components
from etl.dedup.skew import spread_join

EDGES = "uid_a string, uid_b string"


def union_find(edges) -> list[tuple[str, str]]:
    """(uid, smallest uid of its group), sorted, of every uid that has an edge."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in edges:
        if a is not None and b is not None and a != b:
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    return sorted((node, root(node)) for node in parent)


def linked(*pairs) -> list[tuple[str, str]]:
    return [(uid(a), uid(b)) for a, b in pairs]


def chain(length: int, seed: int) -> list[tuple[str, str]]:
    """A chain whose nodes have their uids in no order, its edges shuffled."""
    draw = random.Random(seed)
    nodes = [uid(n) for n in draw.sample(range(10 * length), length + 1)]
    edges = [draw.sample(ends, 2) for ends in itertools.pairwise(nodes)]
    return draw.sample([tuple(edge) for edge in edges], length)


def shapes() -> list[tuple[str | None, str | None]]:
    """Every shape that went wrong somewhere, each on uids of its own; a node with 150 edges; no edges at all."""
    draw = random.Random(7)
    each = [
        linked((1, 2), (1, 2), (2, 1), (4, 3)),  # twice and backwards
        linked((5, 9), (9, 7), (1, 2), (2, 3), (11, 12), (12, 3)),  # two groups and a bridge
        linked(*((100, n) for n in range(60))),  # a star around the largest
        linked(*((0, n) for n in range(1, 150))),  # around the smallest
        linked(*((a, b) for a in range(12) for b in range(a))),  # a clique
        linked(*((n, (n + 1) % 50) for n in range(50))),  # a ring
        linked(*((draw.randrange(250), draw.randrange(250)) for _ in range(150))),
    ]
    apart = [(a[:-4] + f"{n}{a[-3:]}", b[:-4] + f"{n}{b[-3:]}") for n, edges in enumerate(each) for a, b in edges]
    return [*apart, (uid(1 << 20), uid(1 << 20)), (uid(1 << 21), None), (None, None)]


@pytest.mark.parametrize("partitions", [pytest.param(1, marks=pytest.mark.slow), 4, 13])
def test_groups_by_rounds_are_those_of_union_find(spark, monkeypatch, partitions):
    """Over partitions and orders; so few rows make a value heavy that the stars are."""
    for module in (etl.dedup.skew, etl.dedup.components):
        monkeypatch.setattr(module, "MANY", 20)
    edges = random.Random(partitions).sample(shapes(), len(shapes()))
    found = components(spark.createDataFrame(edges, EDGES).repartition(partitions), few=150)
    assert found.columns == ["uid", "group_uid"]
    assert rows_of(found) == union_find(edges)


def test_groups_in_one_task_are_those_of_union_find(spark):
    found = components(spark.createDataFrame(shapes(), EDGES))
    assert found.columns == ["uid", "group_uid"]
    assert rows_of(found) == union_find(shapes())
    assert rows_of(components(spark.createDataFrame([(uid(1), uid(1))], EDGES))) == []


def test_a_chain_of_a_thousand_links_takes_few_rounds(spark, monkeypatch):
    edges, rounds = chain(1000, seed=1), []
    choose = etl.dedup.components._choices
    monkeypatch.setattr(etl.dedup.components, "_choices", lambda *args: rounds.append(1) or choose(*args))
    assert rows_of(components(spark.createDataFrame(edges, EDGES), few=100)) == union_find(edges)
    assert 2 <= len(rounds) <= 6


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_one_task_finds_the_groups_of_any_edges(pairs):
    import pyarrow as pa

    edges = [(a, b) for a, b in linked(*pairs) if a != b]
    half = len(edges) // 2
    batches = [pa.RecordBatch.from_pylist([{"uid_a": a, "uid_b": b} for a, b in part], pa.schema(
        [("uid_a", pa.string()), ("uid_b", pa.string())])) for part in (edges[:half], edges[half:])]  # fmt: skip
    found = [
        tuple(row.values()) for batch in etl.dedup.components.in_one_task(iter(batches)) for row in batch.to_pylist()
    ]
    assert sorted(found) == union_find(edges)


@pytest.mark.parametrize("how", ["inner", "left"])
def test_a_spread_join_is_the_join(spark, how):
    rows = spark.createDataFrame(
        [(n, "hot" if n % 3 else f"k{n % 7}") for n in range(60)] + [(99, None)], "n int, k string"
    )
    marks = spark.createDataFrame([("hot", 1), ("k0", 2), ("k3", 3)], "k string, mark int")
    heavy = spark.createDataFrame([("hot",)], "k string")
    plain = rows.join(marks, on="k", how=how)
    assert rows_of(spread_join(rows, marks, "k", heavy, how)) == rows_of(plain)
    assert rows_of(spread_join(rows, marks, "k", heavy.limit(0), how)) == rows_of(plain)
