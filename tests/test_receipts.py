"""Receipts replayed and proved on real Delta tables, and the questions that they answer: diff, explain, against."""

import json

import numpy as np
import pytest
from helpers import frame, rows_of, uid
from pyspark.sql import functions as F

from etl.run import Runner
from etl.selection import compare
from etl.selection.explain import explain
from etl.selection.receipts import Replay, prove, receipt_of, receipts
from etl.selection.uid_lists import read_list, uid_list
from etl.stage import UserError
from etl.stages import listed, selection
from etl.stages.selection import Config, Keep, Unique
from etl.store import Store
from etl.tables import DUPLICATES, PAIRS, SCORES, SELECTIONS
from models.data import UID_DTYPE, uid_to_u8
from models.records import sha256_file

F1 = {"filter": "f", "filter_version": "v"}
RULE = Config(keep=Keep(top_fraction=0.5), unique=Unique(by=("sha256",)), scored_by={"dfn": ("f", "v")})


def scored(numbers):
    return [{**F1, "uid": uid(n), "score": n / 100, "status": "ok"} for n in numbers]


@pytest.fixture(scope="module")
def grown(spark, tmp_path_factory):
    """(store, receipt of 20 pairs, receipt after 10 more came, 17 became a duplicate, and 18 got another score)."""
    store = Store(spark, str(tmp_path_factory.mktemp("receipts") / "tables"))
    runner = Runner(store, {"pool": "pool"})

    def put(table, rows, how=None):
        if not store.exists("pool", table):
            store.create("pool", table)
        if how is None:
            store.append_once(frame(spark, table, rows), "pool", table, content=str(rows), note={"slice": {}})
        else:
            store.replace(frame(spark, table, rows), "pool", table, where=how, note={"slice": how})

    def place(n):
        return {"shard": "a.tar", "offset_bytes": n * 512, "size_bytes": 1}

    put(PAIRS, [{"uid": uid(n), "status": "ok", "text": f"caption {n}", **place(n)} for n in range(19)])
    put(PAIRS, [{"uid": uid(19), "status": "decode_error", "status_reason": "cut"}])
    put(SCORES, scored(range(20)))
    first = runner.run(selection.STAGE, "pool", RULE)
    again = runner.run(selection.STAGE, "pool", RULE)
    assert (first.is_up_to_date, again.is_up_to_date) == (False, True)
    put(PAIRS, [{"uid": uid(n), "status": "ok", **place(n)} for n in range(20, 30)])
    scores = scored(range(30))
    scores[18] |= {"score": -1.0}
    put(SCORES, scores, F1)
    put(DUPLICATES, [{"method": "sha256", "uid": uid(n), "group_uid": uid(16), "distance": 0.0} for n in (16, 17)])
    second = runner.run(selection.STAGE, "pool", RULE)
    return store, *(receipt_of(store, "pool", str(run.slice["selection_id"])) for run in (first, second))


def kept(store, receipt):
    rows = store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]})
    return sorted(int(row[1], 16) for row in rows_of(rows, "selection_id", "uid"))


def test_a_receipt_is_replayed_from_time_travel_on_any_partitions(grown):
    store, first, second = grown
    assert kept(store, first) == list(range(10, 19))  # half of 19 that are ok, floored
    assert kept(store, second) == [13, 14, 15, 16, *range(20, 30)]  # half of 28
    store.spark.conf.set("spark.sql.shuffle.partitions", "13")
    try:
        proofs = [prove(store, "pool", json.loads(json.dumps(receipt, default=str))) for receipt in (first, second)]
    finally:
        store.spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert [(p.how, p.is_proved, p.hash, p.num_rows) for p in proofs] == [
        ("replayed", True, r["hash"], r["num_rows"]) for r in (first, second)
    ]


@pytest.mark.slow
def test_a_receipt_that_tells_another_story_is_not_proved(grown):
    store, first, _ = grown
    for change in (
        {"hash": "0" * 32},
        {"num_rows": 1},
        {"rule": {**first["rule"], "keep": {**first["rule"]["keep"], "top_fraction": 0.4}}},
    ):
        assert not prove(store, "pool", {**first, **change}).is_proved
    with pytest.raises(UserError, match="another"):
        assert Replay(store, "pool", {**first, "rule": {"filter": "old"}}).inputs
    assert prove(store, "pool", {**first, "rule": {"filter": "old"}}).how == "stored"


@pytest.mark.slow
def test_diff_says_who_came_and_went_and_why(grown):
    store, first, second = grown
    was, is_ = set(kept(store, first)), set(kept(store, second))
    found = compare.diff(store, "pool", first["selection_id"], second["selection_id"])
    assert (found["both"], found["left"], found["entered"]) == (len(was & is_), len(was - is_), len(is_ - was))
    why = {"entered: new in pool": 10, "left: now duplicate": 1, "left: score moved": 1}
    assert {k: v for k, v in found["why"].items() if "threshold" not in k} == why
    assert found["why"]["left: threshold moved"] == len(was - is_) - 2
    same = compare.diff(store, "pool", first["selection_id"], first["selection_id"])
    assert (same["jaccard"], same["why"]) == (1.0, {})
    back = compare.diff(store, "pool", second["selection_id"], first["selection_id"])["why"]
    assert back["left: gone from pool"] == 10 and back["entered: no longer duplicate"] == 1


@pytest.mark.slow
def test_explain_tells_every_verdict_on_a_pair(grown):
    store, first, second = grown
    names = [f"dfn {receipt['selection_id']}" for receipt in (first, second)]

    def verdicts(n):
        found = explain(store, "pool", uid(n))["selections"]
        return [found[name] for name in names]

    assert verdicts(12) == ["kept (rank 0.1200, cut 0.1000)", "below the cut (rank 0.1200, cut 0.1300)"]
    assert verdicts(19) == ["decode_error", "decode_error"]
    assert verdicts(25)[0] == "not in the pool then"
    found = explain(store, "pool", uid(17))
    assert [found["selections"][name] for name in names] == ["kept (rank 0.1700, cut 0.1000)", "duplicate"]
    assert found["pairs"][0]["text"] == "caption 17" and found["duplicates"][0]["group_uid"] == uid(16)
    with pytest.raises(UserError, match="found no pair"):
        explain(store, "pool", uid(99))


def test_a_published_list_is_compared_by_decile_of_score(grown, tmp_path):
    store, _, second = grown
    ours = kept(store, second)
    theirs = [*ours[3:], 0, 1, 77]
    np.save(tmp_path / "theirs.npy", np.sort(uid_to_u8([uid(n) for n in theirs])))
    found = compare.against(store, "pool", second["selection_id"], tmp_path / "theirs.npy")
    deciles = found.pop("agreement_by_decile")
    assert found == {
        "selected": len(ours), "listed": len(theirs), "not_in_the_pool": 1, "both": len(ours) - 3,
        "jaccard": round((len(ours) - 3) / (len(ours) + 2), 6),
    }  # fmt: skip
    assert [sum(d[name] for d in deciles) for name in ("pairs", "selected", "listed")] == [
        30,
        len(ours),
        len(theirs) - 1,
    ]
    assert sum(round(d["pairs"] * (1 - d["agreement"])) for d in deciles) == 5
    np.save(tmp_path / "wrong.npy", np.zeros((2, 2)))
    (tmp_path / "text.npy").write_text("uid")
    np.savez(tmp_path / "archive.npz", np.zeros(2))
    says = {
        "wrong.npy": "found float64",
        "none.npy": "No such file",
        "text.npy": "another kind",
        "archive.npz": "archive",
    }
    for name, found in says.items():
        with pytest.raises(UserError, match=f"--against: wanted .*{found}"):
            read_list(store.spark, tmp_path / name)


def test_a_list_comes_back_as_it_was_written_whatever_its_blocks(grown, tmp_path, monkeypatch):
    store, first, _ = grown
    uid_list(store, "pool", first["selection_id"], tmp_path / "uids.npy")
    assert np.load(tmp_path / "uids.npy").dtype == UID_DTYPE
    assert rows_of(read_list(store.spark, tmp_path / "uids.npy")) == [(uid(n), 1) for n in kept(store, first)]
    np.save(tmp_path / "twice.npy", uid_to_u8([uid(5), uid(5), "f" * 32]))
    assert rows_of(read_list(store.spark, tmp_path / "twice.npy")) == [(uid(5), 2), ("f" * 32, 1)]


@pytest.mark.slow
def test_a_list_is_the_same_however_it_was_cut_into_parts(grown, tmp_path):
    """Sorted whole, each pair as often as it is repeated, with nothing left beside it."""
    store, _, _ = grown
    id_ = imported(store, tmp_path, [7, 20, 3, 7, 7, 25, 20, 11])["selection_id"]
    made = []
    for rows in (1, 2, 100):
        path = tmp_path / "out" / f"{rows}.npy"
        made.append(uid_list(store, "pool", id_, path, rows_per_part=rows))
        assert np.load(path).tolist() == [(0, n) for n in (3, 7, 7, 7, 11, 20, 20, 25)]
        assert made[-1] == (8, path.stat().st_size, sha256_file(path))
    assert len(set(made)) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.npy", "100.npy", "2.npy"]
    assert (
        uid_list(store, "pool", "none", tmp_path / "empty.npy").num_entries == len(np.load(tmp_path / "empty.npy")) == 0
    )


def imported(store, folder, numbers):
    """The receipt of what a list of these pairs keeps; the list is not in order."""
    np.save(folder / "mine.npy", uid_to_u8([uid(n) for n in numbers]))
    run = Runner(store, {"pool": "pool"}).run(listed.STAGE, "pool", listed.of_list(folder / "mine.npy", "mine"))
    return receipt_of(store, "pool", str(run.slice["selection_id"]))


def test_an_exported_list_comes_back_as_the_same_selection(grown, tmp_path):
    store, first, _ = grown
    uid_list(store, "pool", first["selection_id"], tmp_path / "uids.npy")
    config = listed.of_list(tmp_path / "uids.npy", "back")
    runs = [Runner(store, {"pool": "pool"}).run(listed.STAGE, "pool", config) for _ in range(2)]
    assert [run.is_up_to_date for run in runs] == [False, True]
    back = receipt_of(store, "pool", str(runs[0].slice["selection_id"]))
    assert (back["hash"], back["num_rows"]) == (first["hash"], first["num_rows"])
    assert kept(store, back) == kept(store, first)


@pytest.mark.slow
def test_what_a_list_keeps_is_counted_repeated_and_proved(grown, tmp_path):
    store, _, second = grown
    receipt = imported(store, tmp_path, [5, 5, 5, 28, 19, 77, 0xF << 124, 2, 77])
    rows = store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]})
    assert rows_of(rows) == [(receipt["selection_id"], uid(n), None, times) for n, times in ((2, 1), (5, 3), (28, 1))]
    facts = receipt["facts"]
    assert (facts["num_listed"], facts["num_entries"], facts["num_not_in_pool"]) == (6, 9, 2)
    assert facts["num_rows_by_status"] == {"kept": 3, "not_listed": 26, "decode_error": 1}
    assert receipt["rule"] == {
        "name": "mine", "listed": str(tmp_path / "mine.npy"), "sha256": sha256_file(tmp_path / "mine.npy")
    }  # fmt: skip
    proof = prove(store, "pool", receipt)
    assert (proof.how, proof.is_proved, proof.hash) == ("replayed", True, receipt["hash"])
    judged = Replay(store, "pool", receipt).judged().where(F.col("uid").isin([uid(n) for n in (5, 6, 19, 77)]))
    assert rows_of(judged) == [
        (uid(5), "eligible", None, True), (uid(6), "not_listed", None, False), (uid(19), "decode_error", None, False)
    ]  # fmt: skip
    assert explain(store, "pool", uid(6))["selections"][f"mine {receipt['selection_id']}"] == "not_listed"
    why = compare.diff(store, "pool", second["selection_id"], receipt["selection_id"])["why"]
    assert why["left: now not_listed"] == len(kept(store, second)) - 1
    np.save(tmp_path / "mine.npy", uid_to_u8([uid(5)]))
    assert "wanted sha256" in Replay(store, "pool", receipt).obstacle()
    changed = prove(store, "pool", receipt)
    assert (changed.how, changed.is_proved) == ("stored", True)
    with pytest.raises(UserError, match=r"--uids: wanted .*No such file"):
        listed.of_list(tmp_path / "none.npy", "none")


def test_a_pool_that_grew_says_what_its_new_cut_changed(grown):
    store, first, second = grown
    was, is_ = set(kept(store, first)), set(kept(store, second))
    assert compare.churn(store, "pool", second) == {
        "from": first["selection_id"], "before": 9, "after": 14, "both": len(was & is_), "left": len(was - is_),
        "entered": len(is_ - was), "jaccard": round(len(was & is_) / len(was | is_), 6),
        "threshold": [pytest.approx(0.10), pytest.approx(0.13)],
    }  # fmt: skip
    newer = {**second, "rule": {**second["rule"], "scored_by": {"dfn": ["f", "w"]}}}
    assert compare.churn(store, "pool", newer)["from"] == first["selection_id"], "another version of its filter"
    assert compare.churn(store, "pool", {**second, "rule": {**second["rule"], "seed": 1}}) is None


@pytest.mark.slow
def test_past_retention_the_stored_rows_are_proved(grown):
    """Last: it takes the old versions away."""
    store, first, second = grown
    store.spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    for table in (SCORES, PAIRS, SELECTIONS):
        store.spark.sql(f"VACUUM {store.name('pool', table)} RETAIN 0 HOURS")
    store.spark.conf.unset("spark.databricks.delta.retentionDurationCheck.enabled")
    assert "is gone" in Replay(store, "pool", first).obstacle() and Replay(store, "pool", second).obstacle() is None
    proofs = [prove(store, "pool", receipt) for receipt in (first, second)]
    assert [(p.how, p.is_proved) for p in proofs] == [("stored", True), ("replayed", True)]
    assert "not known" in compare.diff(store, "pool", first["selection_id"], second["selection_id"])["why"]
    assert {first["selection_id"], second["selection_id"]} <= receipts(store, "pool").keys()
    store.spark.sql(f"DELETE FROM {store.name('pool', SELECTIONS)} WHERE uid = '{uid(12)}'")
    assert not prove(store, "pool", first).is_proved
