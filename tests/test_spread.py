"""Where repeats of pairs go: properties of the deal on any repeats and shards, and Spark against plain Python."""

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from helpers import rows_of, uid
from hypothesis import example, given
from hypothesis import strategies as st

from etl.export.spread import apart, dealt, line_of, shard_at, stride

SAMPLES = "uid string, num_repeats int, sha256 string"
REPEATS = st.lists(st.integers(1, 12), min_size=1, max_size=60)


def deal(repeats: list[int], num_shards: int) -> list[list[int]]:
    """For each pair the shards of its repeats: by plain counting along the line."""
    starts = np.cumsum([0, *repeats])
    return [[shard_at(start + n, num_shards) for n in range(r)] for start, r in zip(starts.tolist(), repeats)]  # noqa: B905


@given(REPEATS, st.integers(1, 40))
@example([5], 1)
@example([1] * 1000, 17)
@example([40, 1, 1], 6)
def test_shards_differ_by_one_sample_and_repeats_share_none_while_another_has_room(repeats, num_shards):
    shards = deal(repeats, num_shards)
    sizes = Counter(shard for own in shards for shard in own)
    counts = [sizes[n] for n in range(num_shards)]
    assert sum(counts) == sum(repeats) and set(sizes) <= set(range(num_shards))
    assert max(counts) - min(counts) <= 1
    for own in shards:
        times = [own.count(n) for n in range(num_shards)]
        assert max(times) - min(times) <= 1  # so at most once, where there are as many shards


@given(st.integers(1, 10**7))
def test_a_stride_meets_every_shard_and_lies_near_the_golden_section(num_shards):
    assert np.gcd(stride(num_shards), num_shards) == 1
    assert abs(stride(num_shards) - 0.618034 * num_shards) < 40


@pytest.mark.parametrize("num_shards", [100, 1000, 19200])
def test_the_repeats_of_a_pair_stand_far_apart(num_shards):
    for repeats in (2, 3, 5, 8):
        places = sorted(shard_at(7 + n, num_shards) for n in range(repeats))
        gaps = np.diff([*places, places[0] + num_shards])
        assert gaps.min() > 0.35 * num_shards / repeats


@given(st.lists(st.integers(1, 9), max_size=12))
@example([3, 2])
@example([2, 2, 1])
def test_repeats_in_one_shard_are_no_neighbours_while_others_can_stand_between(sizes):
    groups = [[(group, n) for n in range(size)] for group, size in enumerate(sizes)]
    found = apart(groups)
    assert sorted(found) == sorted(member for group in groups for member in group)
    if sizes and max(sizes) <= -(-sum(sizes) // 2):
        assert all(left[0] != right[0] for left, right in pairwise(found))


def test_spark_deals_as_plain_python_does_over_any_partitions(spark):
    repeats = [1, 3, 2, 7, 1, 1, 2, 30, 1, 4] * 7
    uids = [uid(n * n) for n in range(len(repeats))]
    rows = [(u, r, f"sha {u}") for u, r in zip(uids, repeats, strict=True)]
    order = sorted(rows, key=lambda row: hashlib.md5(row[0].encode()).hexdigest())
    expected, position = [], 0
    for u, r, sha256 in order:
        expected += [(u, r, sha256, n, shard_at(position + n, 13)) for n in range(r)]
        position += r
    contents = set()
    for partitions, given_rows in ((1, rows), (7, rows[::-1])):
        samples = spark.createDataFrame(given_rows, SAMPLES).repartition(partitions)
        line = line_of(samples)
        contents.add(line.content)
        assert (line.num_samples, line.starts["start"][0].as_py()) == (position, 0)
        assert rows_of(dealt(samples, line, 13)) == sorted(expected)
    assert len(contents) == 1
    other = spark.createDataFrame([(u, r + (u == uids[0]), s) for u, r, s in rows], SAMPLES)
    assert line_of(other).content not in contents


def test_of_nothing_the_line_is_empty(spark):
    line = line_of(spark.createDataFrame([], SAMPLES))
    assert (line.num_samples, line.starts.num_rows) == (0, 0)
