"""Soft-cap sampling and MetaCLIP's balancing: against their definitions in plain Python, and with receipts."""

import hashlib
import json
import math
import struct
from collections import Counter

import numpy as np
import pydantic
import pytest
from helpers import frame, rows_of, uid
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_selection import F1, selected

from etl.run import Runner
from etl.selection import balance, soft_cap
from etl.selection.balance import Balance
from etl.selection.explain import explain
from etl.selection.pinned import pins
from etl.selection.receipts import Replay, prove, receipt_of
from etl.selection.soft_cap import SoftCap, draws
from etl.stage import UserError
from etl.stages import selection
from etl.stages.selection import Config, Exclude, Keep
from etl.store import Store
from etl.tables import PAIRS, SCORES, SELECTIONS

ALL_64 = 2**64 - 1


def mixed(state):
    """The finalizer of splitmix64, on Python's whole numbers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & ALL_64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & ALL_64
    return state ^ (state >> 31)


def single(number):
    return struct.unpack("f", struct.pack("f", number))[0]


def ranks_of(drawn, score, cap, floor):
    """Ranks of one pair's draws, a draw at a time: -log of a sum of exponential waits, each slower than the last."""
    seed, log_time, found = mixed(int(drawn * 2**52)), -math.inf, []
    for k in range(cap.repeats):
        uniform = ((mixed(seed + (k + 1) * 0x9E3779B97F4A7C15 & ALL_64) >> 11) + 0.5) / 2**53
        log_wait = math.log(-math.log(uniform)) + cap.penalty * k
        log_time = max(log_time, log_wait) + math.log1p(math.exp(-abs(log_time - log_wait)))
        rank = single(score * cap.logit_scale - log_time)
        if found and rank >= found[-1]:
            rank = float(np.nextafter(np.float32(found[-1]), np.float32(-np.inf)))
        if rank < floor:
            break
        found.append(rank)
    return found


def sampled(scores, seed, num_samples, cap):
    """uid -> times drawn, by a sort of all draws."""
    draws = []
    for u, score in scores.items():
        drawn = int(hashlib.md5(f"{seed}:{u}".encode()).hexdigest()[:13], 16) / 16**13
        draws += [(-rank, u) for rank in ranks_of(drawn, score, cap, -math.inf)]
    return dict(Counter(u for _, u in sorted(draws)[:num_samples]))


@pytest.mark.parametrize(
    ("cap", "seed"),
    [
        (SoftCap(samples=2.5, penalty=0.4, logit_scale=3.0), 0),
        (SoftCap(samples=3.99, penalty=0.0, repeats=4, logit_scale=8.0), 7),
        (SoftCap(samples=0.3), 1),
    ],
    ids=lambda value: str(value.samples) if isinstance(value, SoftCap) else None,
)
def test_the_draws_are_those_of_a_sort_over_any_partitions(spark, monkeypatch, cap, seed):
    if seed == 7:
        monkeypatch.setattr(soft_cap, "FEW", 5)  # a sample of few pairs, or of none, tells how deep to look
    pairs = [{"uid": uid(n), "status": "ok" if n else "decode_error"} for n in range(41)]
    scores = [{"uid": uid(n), "score": (n % 7) / 4 if n != 40 else None, "status": "ok"} for n in range(41)]
    eligible = {row["uid"]: row["score"] for row in scores[1:40]}
    num_samples = math.floor(cap.samples * 39)
    wanted = sampled(eligible, seed, num_samples, cap)
    config = Config(keep=Keep(soft_cap=cap), seed=seed, exclude=Exclude(contaminated=False), **F1)
    partitions = (1, 13) if seed == 0 else (4,)
    found = [selected(spark, config, pairs, scores, partitions=p) for p in partitions]
    assert found[1:] == found[:1] * (len(partitions) - 1)
    facts, rows, (receipt,) = found[0]
    assert [row[1:] for row in rows] == [(u, eligible[u], n) for u, n in sorted(wanted.items())]
    assert (facts["num_samples"], facts["num_eligible"], facts["threshold"]) == (num_samples, 39, None)
    by_status = {"kept": len(wanted), "below_cut": 39 - len(wanted), "decode_error": 1, "no_score": 1}
    assert facts["num_rows_by_status"] == by_status and receipt["num_rows"] == len(wanted)
    total = sum(int(hashlib.md5(f"{u}\0{n}".encode()).hexdigest(), 16) for u, n in wanted.items())
    assert receipt["hash"] == f"{total % 2**128:032x}"


def test_each_language_has_its_own_draws_up_to_its_quota(spark):
    languages = ["en", "de", None]
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(30)]
    signals = [{"uid": uid(n), "language": languages[n % 3]} for n in range(30)]
    scores = [{"uid": uid(n), "score": n / 10, "status": "ok"} for n in range(30)]
    cap = SoftCap(samples=3.0)
    config = Config(keep=Keep(soft_cap=cap, per="language", at_most=17), exclude=Exclude(contaminated=False), **F1)
    facts, rows, _ = selected(spark, config, pairs, scores, signals=signals)
    groups = [{uid(n): float(np.float32(n / 10)) for n in range(g, 30, 3)} for g in range(3)]
    wanted = {u: n for group in groups for u, n in sampled(group, 0, 17, cap).items()}
    assert {row[1]: row[3] for row in rows} == wanted and facts["num_samples"] == 51


def test_the_earliest_draws_are_distributed_as_draws_in_turn():
    """Shechter and Carmon's loop, one draw a round: the same mean and spread of each pair's repeats, to four sigmas."""
    rng, logits, num_samples, rounds = np.random.default_rng(5), np.linspace(-2, 2, 6), 15, 600
    for cap in (SoftCap(penalty=0.3), SoftCap(penalty=0.1, repeats=5)):
        in_turn, at_once = np.zeros((2, rounds, 6))
        for n in range(rounds):
            for _ in range(num_samples):
                weights = np.exp(logits - cap.penalty * in_turn[n]) * (in_turn[n] < cap.repeats)
                in_turn[n, rng.choice(6, p=weights / weights.sum())] += 1
            rows, ranks = draws(rng.random(6), logits, np.full(6, -np.inf), cap)
            at_once[n] = np.bincount(rows[ranks >= np.sort(ranks)[-num_samples]], minlength=6)
        assert at_once.sum() == in_turn.sum() == rounds * num_samples
        error = np.sqrt((in_turn.var(0) + at_once.var(0)) / rounds) + 1e-9
        assert (np.abs(in_turn.mean(0) - at_once.mean(0)) / error).max() < 4
        assert np.abs(in_turn.std(0) - at_once.std(0)).max() < 0.15


@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([math.nan, 3e38, -3e38, 0.0, 0.3, -4.0]),
                  st.sampled_from([-math.inf, -2.0, 0.5, 1e9])),
        max_size=8,
    ),
    cap=st.sampled_from([SoftCap(repeats=20), SoftCap(penalty=0.0, repeats=3), SoftCap(penalty=9.0, logit_scale=50.0)]),
)  # fmt: skip
@settings(deadline=None)
@example(rows=[], cap=SoftCap())
def test_ranks_of_any_pairs_fall_and_are_those_of_one_pair_alone(rows, cap):
    columns = [np.array(column, np.float64) for column in zip(*rows, strict=True)] or [np.empty(0)] * 3
    numbers, ranks = draws(*columns, cap)
    for n, (drawn, score, floor) in enumerate(rows):
        own = ranks[numbers == n]
        assert (np.diff(own) < 0).all() and len(own) <= cap.repeats and np.isfinite(own).all()
        if abs(score) < 1e9:
            assert own.tolist() == pytest.approx(ranks_of(drawn, score, cap, floor), rel=1e-6)


def test_draws_of_one_rank_go_by_uid(spark):
    """Scores so high that no wait tells in single precision: all first draws are equal, and so are all second ones."""
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(5)]
    scores = [{"uid": uid(n), "score": 3e38, "status": "ok"} for n in range(5)]
    config = Config(keep=Keep(soft_cap=SoftCap(samples=1.4)), exclude=Exclude(contaminated=False), **F1)
    _, rows, _ = selected(spark, config, pairs, scores)
    assert [row[3] for row in rows] == [2, 2, 1, 1, 1]


def test_more_samples_than_repeats_allow_are_refused(spark):
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(3)]
    scores = [{"uid": uid(n), "score": 0.0, "status": "ok"} for n in range(3)]
    config = Config(keep=Keep(soft_cap=SoftCap(samples=4.0, repeats=3)), exclude=Exclude(contaminated=False), **F1)
    with pytest.raises(UserError, match="wanted 12 samples; found pairs for 9"):
        selected(spark, config, pairs, scores)
    for wrong in ({"penalty": -1}, {"samples": 0}, {"repeats": 0}, {"logit_scale": 0}):
        with pytest.raises(pydantic.ValidationError):
            SoftCap(**wrong)
    with pytest.raises(pydantic.ValidationError, match="exactly one of top_fraction, soft_cap"):
        Keep(soft_cap=SoftCap(), top_fraction=0.1)


def spaced(text):
    """As MetaCLIP has it: a blank on either side, and around what could touch a word."""
    text = f" {text} "
    for mark in ",.;:?!`":
        text = text.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        text = text.replace(blank, " ")
    return text


WORD = st.text("aB. ,\tü!", min_size=1, max_size=6)


@given(entries=st.lists(WORD, min_size=1, max_size=8), texts=st.lists(st.text("aB. ,\tü!\n", max_size=20), max_size=6))
@example(entries=["a", "a B", "B", ".", "a  B", "St. B"], texts=["a B.", "a  B", "St. B", "aB", "A b", "", "a B a B"])
@settings(deadline=None)
def test_an_entry_is_matched_where_a_search_for_substrings_finds_it(tmp_path_factory, entries, texts):
    path = tmp_path_factory.mktemp("entries") / "entries.json"
    path.write_text(json.dumps([*entries, "fox"]))
    match = balance.matcher(str(path), frozenset())
    for text in texts:
        wanted = {entry for entry in entries if entry.strip(" ") and f" {entry} " in spaced(text)}
        assert set(match(text)) == wanted and len(match(text)) == len(wanted)


def balanced(spark, path, t, seed, partitions=None):
    """(facts, kept numbers) of 90 captions: `a photo` in 60, `fox` in 40, `tench` in 3, and 10 that hold nothing."""
    held = {"a photo": range(60), "fox": range(40, 80), "tench": (1, 50, 79)}
    texts = [" and ".join(what for what, where in held.items() if n in where) or "Photo, foxes" for n in range(90)]
    pairs = [{"uid": uid(n), "status": "ok", "text": text} for n, text in enumerate(texts)]
    pairs += [{"uid": uid(90), "status": "ok"}, {"uid": uid(91), "status": "decode_error", "text": "fox"}]
    config = Config(
        keep=Keep(all=True), balance=Balance(entries=path, t=t), seed=seed, exclude=Exclude(contaminated=False)
    )
    facts, rows, _ = selected(spark, config, pairs, partitions=partitions)
    return facts, [int(row[1], 16) for row in rows]


@pytest.mark.slow
def test_head_entries_are_thinned_and_tail_entries_are_kept(spark, tmp_path):
    path = tmp_path / "entries.txt"
    path.write_text("photo\nfox\n\ntench\nunicorn\nphoto\n")
    counts = {"photo": 60, "fox": 40, "tench": 3}

    def keeps(n, entry, seed):
        return int(hashlib.md5(f"{seed}:{uid(n)}:{entry}".encode()).hexdigest()[:13], 16) * counts[entry] < 10 * 16**13

    for seed, partitions in ((0, 1), (3, 13)):
        facts, kept = balanced(spark, path, 10, seed, partitions)
        wanted = [
            n for n in range(80)
            if (n < 60 and keeps(n, "photo", seed)) or (n >= 40 and keeps(n, "fox", seed)) or n in (1, 50, 79)
        ]  # fmt: skip
        assert kept == wanted
        assert facts["balance"] == {"num_entries": 4, "num_matched": 3, "num_head": 2, "num_tail": 1,
                                    "heads": {"fox": 40, "photo": 60}}  # fmt: skip
        by_status = {
            "kept": len(kept),
            "below_cut": 0,
            "no_entry": 11,
            "balanced_out": 80 - len(kept),
            "decode_error": 1,
        }
        assert facts["num_rows_by_status"] == by_status
    assert balanced(spark, path, 60, 0)[1] == list(range(80))  # t is met: nothing is a head


def test_a_draw_keeps_t_of_n():
    kept = sum(balance.is_drawn(0, uid(n), "fox", 100, 30) for n in range(4000))
    assert abs(kept - 1200) < 4 * math.sqrt(4000 * 0.3 * 0.7)
    assert all(balance.is_drawn(0, uid(n), "fox", 30, 30) for n in range(100))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("a.json", "{}", "another JSON"), ("a.json", "[1]", "another JSON"), ("a.json", "fox", "a.json: Expecting"),
     ("a.txt", "\n \n", "none in"), ("a.txt", b"\xff\xfe", "wanted text")],
)  # fmt: skip
def test_entries_that_are_none_are_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"balance.entries: .*{says}"):
        balance.read_entries(str(tmp_path / name), {})


@pytest.mark.slow
def test_what_was_drawn_and_balanced_is_replayed_and_explained(spark, tmp_path):
    """On tables, until the list of entries changes: from then on the stored rows are proved."""
    store, entries = Store(spark, str(tmp_path / "tables")), tmp_path / "entries.txt"
    entries.write_text("fox\n")
    texts = ["a fox"] * 20 + ["a hen"]
    pairs = [{"uid": uid(n), "status": "ok", "text": t, "shard": "a.tar", "offset_bytes": n * 512, "size_bytes": 1}
             for n, t in enumerate(texts)]  # fmt: skip
    scores = [{"filter": "f", "filter_version": "v", "uid": uid(n), "score": n / 10, "status": "ok"} for n in range(21)]
    for table, rows in ((PAIRS, pairs), (SCORES, scores)):
        store.create("pool", table)
        store.append_once(frame(spark, table, rows), "pool", table, content=table.name, note={"slice": {}})
    drawn = Config(keep=Keep(soft_cap=SoftCap(samples=2.0)), balance=Balance(entries=entries, t=10),
                   exclude=Exclude(contaminated=False), **F1)  # fmt: skip
    rule = drawn.model_copy(update={"files_sha256": pins(drawn.files())})
    runner = Runner(store, {"pool": "pool"})
    receipt = receipt_of(store, "pool", str(runner.run(selection.STAGE, "pool", rule).slice["selection_id"]))
    kept = [n for n in range(20) if balance.is_drawn(0, uid(n), "fox", 20, 10)]
    wanted = sampled({uid(n): float(np.float32(n / 10)) for n in kept}, 0, 2 * len(kept), SoftCap())
    stored = store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]})
    assert rows_of(stored, "uid", "num_repeats") == sorted(wanted.items())
    assert 0 < len(wanted) < len(kept) and max(wanted.values()) > 2
    proof = prove(store, "pool", receipt)
    assert (proof.how, proof.is_proved) == ("replayed", True)
    judged = {row["uid"]: row for row in Replay(store, "pool", receipt).judged().collect()}
    assert {u for u, row in judged.items() if row["is_kept"]} == wanted.keys()
    verdicts = {n: "eligible" if n in kept else "balanced_out" for n in range(20)} | {20: "no_entry"}
    assert {int(u, 16): row["verdict"] for u, row in judged.items()} == verdicts
    (said,) = explain(store, "pool", min(wanted))["selections"].values()
    assert said.startswith(f"drawn {wanted[min(wanted)]} times (score ")
    entries.write_text("fox\nhen\n")
    assert "found another" in Replay(store, "pool", receipt).obstacle()
    proof = prove(store, "pool", receipt)
    assert (proof.how, proof.is_proved) == ("stored", True)
    with pytest.raises(UserError, match="as it was when the rule was made"):
        runner.run(selection.STAGE, "pool", rule.model_copy(update={"seed": 1}))
