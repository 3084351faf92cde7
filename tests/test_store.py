"""The store: contracts enforced by the table, commits that happen once, versions of slices, leases."""

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from etl.history import Commit, _note, data_version
from etl.stage import Table, UserError, content_hash, fold_hash, overlap, predicate
from etl.store import Store

FRUIT = Table(
    "fruit",
    key=("kind", "name"),
    sliced_by=("kind",),
    ddl="kind STRING NOT NULL COMMENT 'slice', name STRING NOT NULL, grams INT COMMENT 'weight, g'",
    checks={"grams_positive": "grams IS NULL OR grams > 0"},
)


def rows(store, **read):
    return sorted(tuple(row) for row in store.read("garden", FRUIT, **read).collect())


def frame(store, *tuples):
    return store.spark.createDataFrame(list(tuples), "kind string, name string, grams int")


@pytest.fixture(params=["on a local disk", pytest.param("elsewhere", marks=pytest.mark.slow)])
def fruit(store, request) -> Store:
    """A table; elsewhere it is for the store, which then leaves to Delta what a lock and a look at the log do here."""
    there = store if request.param == "on a local disk" else Store(store.spark, f"file://{store.root}")
    there.create("garden", FRUIT)
    return there


def append(store, *tuples, content, **note):
    store.append_once(frame(store, *tuples), "garden", FRUIT, content=content, note={"slice": {}, **note})


def test_a_table_is_made_with_its_checks_comments_and_retention(fruit):
    name = fruit.name("garden", FRUIT)
    properties = {row["key"]: row["value"] for row in fruit.spark.sql(f"SHOW TBLPROPERTIES {name}").collect()}
    comments = {field.name: field.metadata.get("comment") for field in fruit.schema("garden", FRUIT).fields}
    assert comments == {"kind": "slice", "name": None, "grams": "weight, g"}
    assert properties["delta.constraints.grams_positive"] == FRUIT.checks["grams_positive"]
    assert properties["delta.logRetentionDuration"] == properties["delta.deletedFileRetentionDuration"]
    assert properties["delta.logRetentionDuration"] == "interval 400 days"


@pytest.mark.parametrize("bad", [("apple", "boskoop", -1), (None, "boskoop", 1)])
def test_a_row_that_breaks_the_contract_is_refused_by_the_table(fruit, bad):
    with pytest.raises(Exception, match=r"grams_positive|NOT_NULL|not null"):
        append(fruit, bad, content="bad")
    assert rows(fruit) == []


def test_one_content_is_appended_once_and_another_is_not_skipped(fruit):
    append(fruit, ("apple", "boskoop", 200), content="a")
    append(fruit, ("apple", "boskoop", 200), content="a")
    append(fruit, ("apple", "gala", 150), content="b")
    assert rows(fruit) == [("apple", "boskoop", 200), ("apple", "gala", 150)]
    assert [commit.version for commit in fruit.history("garden", FRUIT)] == [2, 1, 0]


def test_history_is_that_of_now_however_often_it_was_asked_for(fruit):
    fruit.spark.sql(f"ALTER TABLE {fruit.name('garden', FRUIT)} SET TBLPROPERTIES ('delta.checkpointInterval' = '3')")
    for number in range(2, 6):  # at the third commit Delta adds a checkpoint to the log
        append(fruit, ("apple", f"tree {number}", 1), content=str(number))
        assert fruit.history("garden", FRUIT)[0].version == number
    other = Store(fruit.spark, fruit.root)
    append(other, ("apple", "by another process", 1), content="other")
    assert fruit.history("garden", FRUIT)[0].version == 6


def test_a_table_that_is_not_made_yet_has_no_history(store):
    assert not store.exists("garden", FRUIT)
    assert store.history("garden", FRUIT) == []


@pytest.mark.slow
def test_rows_that_came_are_told_from_those_that_were_there(fruit):
    """By files and, once these were compacted, by key; not where rows went."""

    def apart(since, version, **where):
        found = fruit.apart("garden", FRUIT, since=since, version=version, where=where)
        return found and [sorted(row["name"] for row in part.collect()) for part in found]

    for number, (kind, name) in enumerate([("apple", "gala"), ("pear", "conference"), ("apple", "boskoop")]):
        append(fruit, (kind, name, 1), content=str(number), slice={"kind": kind})
    assert apart(1, 3) == [["gala"], ["boskoop", "conference"]]
    assert apart(1, 3, kind="apple") == [["gala"], ["boskoop"]]
    assert apart(2, 2) == [["conference", "gala"], []]
    fruit.optimise("garden", FRUIT)
    assert apart(1, 4, kind="apple") == [["gala"], ["boskoop"]]
    pears = frame(fruit, ("pear", "abate", 1))
    fruit.replace(pears, "garden", FRUIT, where={"kind": "pear"}, note={"slice": {"kind": "pear"}})
    assert apart(1, 5) is None
    assert apart(1, 5, kind="apple") == [["gala"], ["boskoop"]]
    assert apart(-3, 5) is None and apart(5, 4) is None


def test_a_log_on_a_local_disk_is_read_as_delta_reads_it(store):
    store.create("garden", FRUIT)
    append(store, ("apple", "gala", 150), content="a", slice={"kind": "apple"})
    store.optimise("garden", FRUIT)
    store.replace(frame(store), "garden", FRUIT, where={}, note={"slice": {}, "key": "k"})
    told = store.spark.sql(f"DESCRIBE HISTORY {store.name('garden', FRUIT)}").collect()
    wanted = [(row["version"], row["operation"], _note(row["userMetadata"])) for row in told]
    found = [(commit.version, commit.operation, commit.note) for commit in store.history("garden", FRUIT)]
    assert found == sorted(wanted, key=lambda commit: -commit[0])
    assert found[0][2] == {"slice": {}, "key": "k"}


def test_of_several_who_append_one_content_at_the_same_time_one_does(store):
    store.create("garden", FRUIT)
    with ThreadPoolExecutor(4) as pool:
        others = [Store(store.spark, store.root) for _ in range(4)]
        list(pool.map(lambda other: append(other, ("apple", "gala", 150), content="a"), others))
    assert rows(store) == [("apple", "gala", 150)]


def test_replacing_a_slice_leaves_the_others_and_old_versions(fruit):
    append(fruit, ("apple", "gala", 150), ("pear", "conference", 180), content="a")
    where = {"kind": "apple"}
    fruit.replace(frame(fruit, ("apple", "elstar", 140)), "garden", FRUIT, where=where, note={"slice": where})
    assert rows(fruit) == [("apple", "elstar", 140), ("pear", "conference", 180)]
    assert rows(fruit, version=1) == [("apple", "gala", 150), ("pear", "conference", 180)]
    assert rows(fruit, where=where) == [("apple", "elstar", 140)]


def test_a_slice_is_replaced_also_where_the_commit_that_filled_it_is_forgotten(fruit, monkeypatch):
    """Past the retention of a log nobody can say that a slice is new."""
    where = {"kind": "apple"}
    append(fruit, ("apple", "gala", 150), content="a", slice=where)
    left = [Commit(1, "WRITE", {"slice": {"kind": "pear"}})]
    monkeypatch.setattr(Store, "history", lambda *_: left)
    fruit.replace(frame(fruit, ("apple", "elstar", 140)), "garden", FRUIT, where=where, note={"slice": where})
    assert rows(fruit) == [("apple", "elstar", 140)]


def test_replacing_nothing_by_nothing_is_a_commit_too_for_its_note_says_what_was_done(fruit):
    where = {"kind": "apple"}
    for key in ("first", "second"):
        nothing = frame(fruit, ("apple", "gala", 1)).limit(0)
        fruit.replace(nothing, "garden", FRUIT, where=where, note={"slice": where, "key": key})
    assert [commit.note.get("key") for commit in fruit.history("garden", FRUIT)] == ["second", "first", None]


@pytest.mark.slow
def test_what_is_purged_is_in_no_version_and_no_log_and_the_table_goes_on(fruit):
    """Also by a session that has the log in mind, with a checkpoint in it, of a table that keeps values."""
    name = fruit.name("garden", FRUIT)
    kept = "'delta.checkpointInterval' = '2', 'delta.dataSkippingNumIndexedCols' = '32'"
    fruit.spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ({kept})")
    for number, sort in enumerate(("boskoop", "gala", "elstar")):
        append(fruit, ("apple", sort, 200 + number), content=sort, chunk=str(number))
    folder = Path(fruit.root.removeprefix("file://")) / "garden" / "fruit"
    gone = frame(fruit, ("apple", "boskoop", None)).select("kind", "name")
    fruit.merge(gone, "garden", FRUIT, note={"slice": {}, "forget": "t"}, do="delete")
    fruit.merge(frame(fruit, ("apple", "gala", 7)), "garden", FRUIT, note={"slice": {}}, do="update")
    is_local = "://" not in fruit.root
    assert list((folder / "_delta_log").glob("*.checkpoint.parquet"))
    assert fruit.purge("garden", FRUIT) is is_local
    data = [path for path in folder.rglob("*.parquet") if "_delta_log" not in path.parts]
    assert sorted(row["name"] for path in data for row in pq.read_table(path).to_pylist()) == ["elstar", "gala"]
    texts = [path.read_text() for path in (folder / "_delta_log").glob("*.json")]
    states = [str(pq.read_table(path).to_pylist()) for path in (folder / "_delta_log").glob("*.checkpoint.parquet")]
    assert any("boskoop" in text for text in (*texts, *states)) is not is_local
    for store in (fruit, Store(fruit.spark.newSession(), fruit.root)):
        assert rows(store) == [("apple", "elstar", 202), ("apple", "gala", 7)]
    append(fruit, ("pear", "conference", 150), content="c")
    assert rows(fruit)[2:] == [("pear", "conference", 150)]
    assert [c.note["chunk"] for c in fruit.history("garden", FRUIT) if "chunk" in c.note] == ["2", "1", "0"]


def test_a_replacement_outside_its_slice_is_refused(fruit):
    with pytest.raises(Exception, match=r"(?i)replaceWhere|does not conform"):
        fruit.replace(frame(fruit, ("pear", "x", 1)), "garden", FRUIT, where={"kind": "apple"}, note={"slice": {}})
    assert rows(fruit) == []


def test_compaction_and_commits_of_other_slices_change_no_data_version(fruit):
    append(fruit, ("apple", "gala", 150), content="a", slice={"kind": "apple"})
    append(fruit, ("apple", "elstar", 150), content="b", slice={"kind": "apple"})
    append(fruit, ("pear", "conference", 180), content="c", slice={"kind": "pear"})
    fruit.optimise("garden", FRUIT)
    history = fruit.history("garden", FRUIT)
    assert history[0].operation == "OPTIMIZE"
    found = {kind: data_version(history, {"kind": kind}) for kind in ("apple", "pear", "plum")}
    assert found == {"apple": 2, "pear": 3, "plum": -1}
    assert data_version(history, {}) == 3


def test_a_commit_by_somebody_else_counts_for_every_slice():
    history = [Commit(2, "DELETE", {"slice": {}}), Commit(1, "WRITE", {"slice": {"kind": "apple"}})]
    assert data_version(history, {"kind": "pear"}) == 2


def test_overlap_and_predicate():
    assert overlap({}, {"kind": "apple"})
    assert overlap({"kind": ("apple", "pear")}, {"kind": "pear", "grams": "1"})
    assert not overlap({"kind": "apple"}, {"kind": ("pear", "plum")})
    assert predicate({"kind": ("o'brien", "b")}) == "kind IN ('o''brien', 'b')"
    assert predicate({}) == "TRUE"


def hold(root: str, ready, done) -> None:
    with Store(None, root).lease("garden", FRUIT):  # type: ignore[arg-type]
        ready.set()
        done.wait(60)


def test_a_second_writer_is_refused_with_the_holder_and_a_dead_one_holds_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(str(tmp_path), ready, done))
    holder.start()
    assert ready.wait(60)
    store = Store(None, str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"garden.fruit; found it being written by process {holder.pid}"):
        store.lease("garden", FRUIT).__enter__()
    os.kill(holder.pid, 9)
    holder.join()
    with store.lease("garden", FRUIT):
        pass
    assert not list(tmp_path.glob("_leases/*.holder"))


def test_the_content_hash_ignores_order_and_partitions_and_sees_every_value(spark):
    some = spark.range(100).selectExpr("cast(id as string) as uid", "cast(1 as int) as num_repeats")

    def of(data):
        row = data.agg(*content_hash("uid", "num_repeats")).collect()[0]
        return fold_hash(row["hash_high"], row["hash_low"])

    same = {of(some), of(some.repartition(7)), of(some.orderBy("uid", ascending=False))}
    assert len(same) == 1
    others = [some.where("uid != '5'"), some.union(some.limit(1)), some.selectExpr("uid", "2 as num_repeats")]
    assert not same & {of(data) for data in others}
    assert fold_hash(None, None) == "0" * 32


def test_a_table_whose_making_was_killed_is_made_again_and_one_that_lost_its_log_is_not(store):
    log = Path(store.root, "garden", "fruit", "_delta_log")
    (log / "_staged_commits").mkdir(parents=True)
    (log / ".00000000000000000000.json.0f.tmp").write_text("{")
    assert not store.exists("garden", FRUIT)
    store.create("garden", FRUIT)
    append(store, ("apple", "boskoop", 120), content="1")
    assert rows(store) == [("apple", "boskoop", 120)]
    for path in log.glob("*.json"):
        path.unlink()
    assert store.exists("garden", FRUIT)
    with pytest.raises(UserError, match=r"garden/fruit: wanted version 0 whole; found it and all others gone"):
        store.history("garden", FRUIT)
