"""The dedup ladder against plain Python: by each method, over partitions, orders and batches, a third in one group."""

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys

import numpy as np
import pytest
from helpers import frame, rows_of, schema_of, uid
from hypothesis import given, settings
from hypothesis import strategies as st
from test_components import union_find
from test_models_minhash import captions, flipped, share

import etl.dedup.components
import etl.dedup.groups
import etl.dedup.grow
import etl.dedup.near
import etl.dedup.parts
import etl.dedup.skew
from etl.config import load
from etl.dedup import urls
from etl.run import Runner
from etl.stage import UserError
from etl.stages import dedup
from etl.stages.dedup import METHODS, Config
from etl.tables import DUPLICATES, PAIRS
from models import buckets

ALL = Config(methods=METHODS)


# --- the whole ladder


def reference(pairs: list[dict], config: Config) -> list[tuple]:
    """What `duplicates` must be, by all pairs of values. Texts and URLs of `pairs` are canonical as they are."""
    found = []
    for method in config.methods:
        rows = [(row["uid"], value_of(row, method)) for row in pairs]
        members: dict = {}
        for one, value in rows:
            if value is not None:
                members.setdefault(value, []).append(one)
        values = sorted(members, key=str)
        edges = [(members[v][0], other) for v in values for other in members[v][1:]]
        edges += [(members[a][0], members[b][0]) for n, a in enumerate(values) for b in values[:n]
                  if is_near(a, b, method, config)]  # fmt: skip
        value = dict(rows)
        found += [(method, one, group, float(np.float32(distance(value[one], value[group], method))))
                  for one, group in union_find(edges)]  # fmt: skip
    return sorted(found)


def value_of(row: dict, method: str):
    if row["status"] not in (("ok", "metadata_only") if method in ("url_text", "minhash") else ("ok",)):
        return None
    if method == "url_text":
        return None if None in (row.get("url"), row.get("text")) else (row["url"], row["text"])
    if method == "minhash":
        return row["text"] if (row.get("text") or "").strip() else None
    return row.get(method)


def distance(one, other, method: str) -> float:
    if method == "phash":
        return ((one ^ other) & (2**64 - 1)).bit_count()
    return 1 - share(one, other) if method == "minhash" else 0.0


def is_near(one, other, method: str, config: Config) -> bool:
    if method == "phash":
        return distance(one, other, method) <= config.max_distance_bits
    return method == "minhash" and share(one, other) >= config.min_jaccard - 1e-9


def signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def pool() -> list[dict]:
    """605 pairs: a third share all values, a tenth has none; chains, copies and near ones of others; odd statuses; the
    smallest uid is that of a row without which two groups would be apart."""
    draw = random.Random(11)
    texts = [f"{one} {other}" for one, other in zip(captions(600, seed=12), captions(600, seed=13), strict=True)]
    rows = [{"uid": uid(n), "status": "ok", "sha256": f"{n:064x}", "phash": signed(draw.getrandbits(64)),
             "url": f"example.com/{n}", "text": text}
            for n, text in zip(draw.sample(range(10, 5000), 600), texts, strict=True)]  # fmt: skip
    for n, row in enumerate(rows):
        before = rows[draw.randrange(n)] if n and n % 3 == 0 else rows[440 + draw.randrange(60)]
        if n < 200:
            row |= {name: rows[0][name] for name in ("sha256", "phash", "url", "text")}
        elif n < 260:
            row |= dict.fromkeys(("sha256", "phash", "url", "text"))
        elif n < 400 and None not in (
            before["phash"],
            before["text"],
        ):  # a chain: near one that may be near another
            row["phash"] = signed(flipped(draw, before["phash"] & (2**64 - 1), 4))
            row["text"] = before["text"] + draw.choice(["", "x", "yz"])
        elif n < 440:
            row |= {name: before[name] for name in draw.sample(("sha256", "url", "text"), 2)}
        row["status"] = draw.choice(["ok"] * 8 + ["metadata_only", "decode_error"])
    rows[500]["text"], rows[501]["text"], rows[502]["text"] = "", " \t", ""  # blank captions are not merged
    return [*rows, *between()]


def between() -> list[dict]:
    """Two groups by phash and by minhash, and uid 1, which is near both."""
    text, bits = "a lighthouse on a rock in the sea, seen from a small boat at dawn", 0x123456789ABCDEF
    said = {1: (bits, text), 6000: (bits ^ 7, f"{text}, painted"), 6001: (bits ^ 7 ^ 1 << 9, f"{text}, painted!"),
            6002: (bits ^ 7 << 60, f"print: {text}"), 6003: (bits ^ 7 << 60 ^ 1 << 8, f"print: {text}!")}  # fmt: skip
    rows = {n: {"sha256": f"{n:064x}", "url": f"example.com/{n}", "text": words} for n, (_, words) in said.items()}
    return [{"uid": uid(n), "status": "ok", "phash": signed(said[n][0]), **row} for n, row in rows.items()]


@pytest.fixture(scope="module")
def expected() -> list[tuple]:
    return reference(pool(), ALL)


@pytest.mark.parametrize(
    "partitions", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(13, marks=pytest.mark.slow)]
)
def test_the_ladder_is_the_reference(spark, monkeypatch, expected, partitions):
    """Values of more than 50 rows are heavy; large buckets are split; a band is cut into several parts."""
    for module in (etl.dedup.skew, etl.dedup.components, etl.dedup.groups):
        monkeypatch.setattr(module, "MANY", 50)
    monkeypatch.setattr(etl.dedup.parts, "PART_ENTRIES", 150)
    found = dedup.transform(frame(spark, PAIRS, pool(), partitions), config=ALL)
    assert found.columns == schema_of(DUPLICATES).names
    assert {row[0] for row in expected} == set(METHODS)
    assert max(row[3] for row in expected if row[0] == "phash") > ALL.max_distance_bits  # a chain
    assert rows_of(found) == expected


def test_nothing_to_find(spark):
    alone = frame(spark, PAIRS, [{"uid": uid(1), "status": "ok", "text": "one", "phash": 1, "sha256": "a", "url": "u"}])
    assert rows_of(dedup.transform(alone, config=Config(methods=("url_text", "minhash")))) == []
    assert rows_of(dedup.transform(alone.limit(0), config=Config(methods=("sha256", "phash")))) == []


# --- rows that come later


def batches(number: int) -> list[list[dict]]:
    """The pool in parts, the largest uids first, so that most groups get another name."""
    rows = sorted(pool(), key=lambda row: row["uid"], reverse=True)
    return [rows[n * len(rows) // number : (n + 1) * len(rows) // number] for n in range(number)]


def updated(spark, parts: list[list[dict]], written, config: Config):
    """What `update` makes of the last part, when the others and what was `written` of them are there."""
    earlier = frame(spark, PAIRS, [row for part in parts[:-1] for row in part], 3)
    found = dedup.update({"pairs": earlier}, {"pairs": frame(spark, PAIRS, parts[-1], 2)}, written, config=config)
    assert found.columns == schema_of(DUPLICATES).names
    return found


@pytest.mark.slow
def test_what_came_is_held_against_the_pool(spark, monkeypatch, expected):
    """Groups are joined by a row that came, named after one that came, begun by one that was alone; a heavy one too."""
    for module in (etl.dedup.skew, etl.dedup.components, etl.dedup.grow):
        monkeypatch.setattr(module, "MANY", 50)
    first, second = batches(2)
    config = Config(methods=("sha256", "phash"))
    before, wanted = reference(first, config), [row for row in expected if row[0] in config.methods]
    name, after = {row[:2]: row[2] for row in before}, {row[:2]: row[2] for row in wanted}
    for method in config.methods:  # the fixture has what is to be shown
        moved = {(name[key], after[key]) for key in name if key[0] == method and name[key] != after[key]}
        assert moved and any(key[0] == method and key not in name for key in after)
        assert (len({new for _, new in moved}) < len(moved)) is (method == "phash")  # two groups became one
    written = frame(spark, DUPLICATES, [dict(zip(schema_of(DUPLICATES).names, row, strict=True)) for row in before])
    assert rows_of(updated(spark, [first, second], written, config)) == wanted


@pytest.mark.slow
def test_five_batches_one_after_the_other_are_one_batch(spark, expected):
    parts, written = batches(5), frame(spark, DUPLICATES, [])
    for number in range(len(parts)):
        # As a table would come back: in few parts, not in those of all frames that it was made of.
        written = updated(spark, parts[: number + 1], written, ALL).coalesce(2).localCheckpoint()
    assert rows_of(written) == expected


@pytest.mark.slow
def test_a_run_updates_what_the_last_one_wrote_and_begins_anew_where_rows_went(spark, store):
    """No more is asked of `transform`, nor of `update` where it could not know."""
    ways: list[str] = []
    stage = dataclasses.replace(
        dedup.STAGE, transform=lambda *a, **k: ways.append("transform") or dedup.transform(*a, **k),
        update=lambda *a, **k: ways.append("update") or dedup.update(*a, **k),
    )  # fmt: skip
    place = {"shard": "s", "offset_bytes": 0, "size_bytes": 1, "status": "ok"}
    rows = [{"uid": uid(9 - n), "sha256": "ab"[n % 2], "phash": n, **place} for n in range(6)]
    store.create("pool", PAIRS)
    runner, config = Runner(store, {"pool": "pool"}), Config(methods=("sha256",))

    def run() -> list[tuple[str, str]]:
        ways.append(runner.run(stage, "pool", config).facts.get("since", {}))
        return rows_of(store.read("pool", DUPLICATES), "uid", "group_uid")

    def groups(some: list[dict]) -> list[tuple[str, str]]:
        return [row[1:3] for row in reference(some, config)]

    for part in (rows[:3], rows[3:]):
        store.append_once(frame(spark, PAIRS, part), "pool", PAIRS, content=str(part), note={"slice": {}})
        assert run() == groups(rows[: rows.index(part[-1]) + 1])
    store.replace(frame(spark, PAIRS, rows[2:]), "pool", PAIRS, where={}, note={"slice": {}})
    assert run() == groups(rows[2:])
    assert ways == ["transform", {}, "update", {"pool.pairs": 1}, "transform", {}]


# --- what a config may say


@pytest.mark.parametrize(
    "setting", ["methods=[]", "methods=[minihash]", "max_distance_bits=13", "max_distance_bits=-1", "min_jaccard=0",
                "min_jaccard=1.5", "max_distance=4"],
)  # fmt: skip
def test_a_wrong_setting_is_refused_before_spark(setting):
    with pytest.raises(UserError, match=r"stages\.dedup"):
        load(["tiny"], [f"stages.dedup.{setting}"])


@pytest.mark.parametrize("by", METHODS)
def test_a_rule_can_name_every_method(by):
    config = load(["tiny"], [f"stages.selection.unique={{by: [{by}], keep: largest_image}}"])
    assert config.stages.selection.unique.by == (by,)


# --- URLs and captions that are the same for people

URLS = {
    "https://Example.COM/a/b.jpg": "example.com/a/b.jpg",
    "http://example.com:80/a/b.jpg#top": "example.com/a/b.jpg",
    "https://user:secret@example.com:443/a/b.jpg?": "example.com/a/b.jpg",
    "http://example.com:8080/a": "example.com:8080/a",
    "https://example.com/A/": "example.com/A",
    "https://example.com": "example.com",
    "HTTPS://example.com/?": "example.com",
    "https://example.com/a?utm_source=x&id=7&fbclid=y": "example.com/a?id=7",
    "https://example.com/a?b=1&a=2": "example.com/a?b=1&a=2",
    "https://example.com/a?utm_source": "example.com/a",
    "https://example.com?x=http://other.org/#f": "example.com?x=http://other.org/",
    " https://example.com/a ": "example.com/a",
    "ftp://Example.com/a#b": "ftp://Example.com/a#b",
    "not a url": "not a url",
    "": None,
    " ": None,
    None: None,
}


def test_canonical_urls_and_normal_texts(spark):
    given = spark.createDataFrame([(n, url) for n, url in enumerate(URLS)], "n int, url string")
    found = given.select("n", urls.canonical_url("url")).collect()
    assert [row[1] for row in sorted(found)] == list(URLS.values())
    texts = spark.createDataFrame([(" A\tb\n\n ÉC ", "u"), (None, "u"), ("a", None)], "text string, url string")
    assert [row[0] for row in texts.select(urls.normal_text("text")).collect()] == ["a b éc", None, "a"]
    assert [row[0] is None for row in texts.select(urls.url_text("url", "text")).collect()] == [False, True, True]


# --- buckets


ENTRIES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=40)
SKETCHES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2**64 - 1)), min_size=13, max_size=13)
"""Two words of each id."""
NONE_FAR = [(0, 0)] * 13


def pairs_of(entries, num_new: int, all_pairs: int, sketches=NONE_FAR, most_bits: int = 0) -> set[tuple[int, int]]:
    rows = [(key, id_, *sketches[id_]) for key, id_ in entries]
    entries_CN = np.array(rows, np.uint64).reshape(-1, 4).T.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "ALL_PAIRS", all_pairs)
        ends = [end.tolist() for end in buckets.close_pairs(entries_CN, num_new, most_bits)]
    found = list(zip(*ends, strict=True))
    in_bucket = [key for a, b in set(found) for key in range(5) if {(key, a), (key, b)} <= set(entries)]
    assert all(a < b for a, b in found)
    assert len(found) <= len(in_bucket)
    return set(found)


@settings(max_examples=100, deadline=None)
@given(ENTRIES, st.integers(1, 6), st.integers(0, 40))
def test_all_pairs_with_a_new_entry_of_small_buckets_and_a_few_of_large_ones(entries, all_pairs, num_new):
    new, expected = set(entries[:num_new]), set()
    for key in {key for key, _ in entries}:
        bucket = sorted({one for k, one in entries if k == key})
        expected |= {(a, b) for m, b in enumerate(bucket) for n, a in enumerate(bucket[:m])
                     if (m - n <= all_pairs or n == 0) and {(key, a), (key, b)} & new}  # fmt: skip
    assert pairs_of(entries, num_new, all_pairs) == expected


@settings(max_examples=100, deadline=None)
@given(ENTRIES, st.integers(1, 6), st.integers(0, 40), SKETCHES, st.integers(0, 66))
def test_pairs_whose_sketches_are_not_close_are_none(entries, all_pairs, num_new, sketches, most_bits):
    def apart(a: int, b: int) -> int:
        return sum((one ^ other).bit_count() for one, other in zip(sketches[a], sketches[b], strict=True))

    expected = {(a, b) for a, b in pairs_of(entries, num_new, all_pairs) if apart(a, b) <= most_bits}
    assert pairs_of(entries, num_new, all_pairs, sketches, most_bits) == expected


@settings(max_examples=100, deadline=None)
@given(ENTRIES, st.integers(1, 6), st.integers(0, 40))
def test_entries_that_come_later_lose_no_pair_of_a_bucket(entries, all_pairs, num_new):
    before = pairs_of(entries[num_new:], len(entries), all_pairs)
    assert pairs_of(entries, len(entries), all_pairs) <= before | pairs_of(entries, num_new, all_pairs)


def test_more_pairs_than_there_was_room_for():
    """Of a bucket of 300: each with the 100 before it and the smallest, whatever sizes the result grew through."""
    ids = np.random.default_rng(0).permutation(300)
    entries_CN = np.vstack([np.zeros(300), ids, np.zeros((2, 300))]).astype(np.uint64)
    found = list(zip(*(end.tolist() for end in buckets.close_pairs(entries_CN, 300, 0)), strict=True))
    assert sorted(found) == [(a, b) for a in range(300) for b in range(a + 1, 300) if b - a <= 100 or a == 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.integers(1, 9))
def test_slices_hold_every_entry_once_and_equal_keys_together(keys, num_slices):
    keys_N = np.array(keys, np.uint64)
    entries_CN = np.vstack([keys_N, np.arange(len(keys), dtype=np.uint64)])
    cut = list(buckets.into_slices(keys_N, entries_CN, num_slices))
    assert all(0 <= number < num_slices and is_kept for number, part in cut for is_kept in (np.diff(part[1]) > 0))
    whole = np.concatenate([part for _, part in cut], axis=1) if cut else entries_CN
    assert np.array_equal(whole[:, np.argsort(whole[1])], entries_CN)
    where = [{number for number, part in cut if key in part[0]} for key in keys_N]
    assert all(len(numbers) == 1 for numbers in where)


# --- skew, measured by Spark

MANY_ROWS = """
import sys
from pyspark.sql import functions as F
from etl.session import session
from etl.stages import dedup
conf = {"spark.eventLog.enabled": "true", "spark.eventLog.dir": sys.argv[1], "spark.eventLog.compress": "false",
        "spark.eventLog.rolling.enabled": "false", "spark.sql.shuffle.partitions": "8",
        "spark.sql.adaptive.coalescePartitions.enabled": "false"}
spark = session("skew", master="local[2]", conf=conf)
n, number = F.col("id"), F.when(F.col("id") % 10 < 3, F.lit(-1)).otherwise(F.col("id") - F.col("id") % 2)
word = F.concat(F.lit("a caption about "), F.md5(number.cast("string")))
pairs = spark.range(0, 400_000, 1, 8).select(
    F.md5(n.cast("string")).alias("uid"), F.lit("ok").alias("status"), F.md5(number.cast("string")).alias("sha256"),
    F.xxhash64(number).alias("phash"), word.alias("text"), F.concat(F.lit("https://example.com/"), word).alias("url"))
pairs.write.parquet(sys.argv[2])
found = dedup.transform(spark.read.parquet(sys.argv[2]), config=dedup.Config(methods=dedup.METHODS))
found.write.parquet(sys.argv[3])
spark.stop()
"""


@pytest.mark.slow
def test_no_task_gets_a_third_of_all_rows(tmp_path):
    """F15: 30 % of 400,000 rows in one group; the slowest task of each stage under 4x its median, in CPU time."""
    import pandas as pd

    places = [tmp_path / name for name in ("events", "pairs", "found")]
    places[0].mkdir()
    command = [sys.executable, "-c", MANY_ROWS, *map(str, places)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "."}, capture_output=True)
    tasks: dict[int, list[dict]] = {}
    for line in next(places[0].iterdir()).read_text().splitlines():
        event = json.loads(line)
        if event["Event"] == "SparkListenerTaskEnd" and "Task Metrics" in event:
            tasks.setdefault(event["Stage ID"], []).append(event["Task Metrics"])
    by_rows, by_seconds = [], []
    for metrics in tasks.values():
        rows = [task["Shuffle Read Metrics"]["Total Records Read"] for task in metrics]
        seconds = [task["Executor CPU Time"] / 1e9 for task in metrics]
        if len(metrics) >= 8 and sum(rows) > 100_000:
            by_rows.append(max(rows) / statistics.median(rows))
        if len(metrics) >= 8 and statistics.median(seconds) > 0.2:  # of less, the first task's classes are a part
            by_seconds.append(max(seconds) / statistics.median(seconds))
    assert len(by_rows) >= 4
    assert max(by_rows) < 4
    assert max(by_seconds, default=1) < 4
    pairs, found = (pd.read_parquet(place) for place in places[1:])
    for method, column in (("sha256", "sha256"), ("phash", "phash"), ("minhash", "text"), ("url_text", "text")):
        group = pairs.groupby(column)["uid"]
        expected = pairs.assign(group_uid=group.transform("min"))[group.transform("size") > 1]
        mine = found[found["method"] == method]
        ours = mine.sort_values("uid")[["uid", "group_uid"]].reset_index(drop=True)
        theirs = expected.sort_values("uid")[["uid", "group_uid"]].reset_index(drop=True)
        assert (mine["distance"] == 0).all()
        pd.testing.assert_frame_equal(ours, theirs)
