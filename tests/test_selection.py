"""Selections: which pairs a rule keeps, against numpy, and receipts, against a computation of their own."""

import datetime as dt
import hashlib
import json
import math

import numpy as np
import pandas as pd
import pydantic
import pytest
from helpers import frame, rows_of, uid
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from etl.selection import cut, judging
from etl.selection.cut import find_cut, find_cuts
from etl.selection.rule import Condition
from etl.stage import UserError, content_hash, digest, fold_hash
from etl.stages import selection
from etl.stages.selection import Config, Exclude, Keep, Unique


def random_uids(rng, count):
    return [rng.bytes(16).hex() for _ in range(count)]


def scores_like(rng, kind, count):
    """`count` scores of a kind that a histogram could get wrong."""
    return {
        "normal": lambda: rng.standard_normal(count),
        "ties": lambda: rng.integers(-2, 3, count) / 4,
        "equal": lambda: np.full(count, 0.25),
        "zeros": lambda: rng.choice([0.0, -0.0], count),
        "huge": lambda: rng.choice([-3e38, -1.0, 0.0, 5e-324, 1e-300, 3e38], count) * rng.choice([1.0, 0.5], count),
        "close": lambda: 1 + rng.integers(0, 50, count) * 2.0**-52,
        "outlier": lambda: np.append(rng.standard_normal(count - 1) * 1e-9, 1e30),
    }[kind]()


def first(uids, scores, k):
    """The k first by score descending, then uid ascending; -0.0 and 0.0 are one value."""
    order = sorted(range(len(uids)), key=lambda i: (-(scores[i] + 0.0), uids[i]))
    return [uids[i] for i in order[:k]]


@pytest.mark.parametrize(
    ("kind", "count", "k"),
    [
        ("normal", 1, 1), ("normal", 300, 1), ("normal", 300, 300), ("ties", 300, 97), ("equal", 40, 7),
        ("equal", 40, 40), ("zeros", 50, 13), ("huge", 200, 90), ("close", 200, 61), ("outlier", 200, 30),
    ],
)  # fmt: skip
def test_the_cut_is_that_of_a_sort(spark, kind, count, k):
    rng = np.random.default_rng(hash((count, k)) % 2**32)
    uids, scores = random_uids(rng, count), scores_like(rng, kind, count)
    ranked = spark.createDataFrame(pd.DataFrame({"uid": uids, "rank": scores.astype(float)})).repartition(3)
    threshold, last = find_cut(ranked, k)
    kept = [u for u, s in zip(uids, scores, strict=True) if s > threshold or (s == threshold and u <= last)]
    wanted = first(uids, scores, k)
    assert sorted(kept) == sorted(wanted)
    assert last == wanted[-1]


def test_ties_among_uids_that_start_alike(spark):
    """The prefix search must go to the last digit."""
    uids = [uid(n) for n in (0, 1, 2, 3, 0x10000, 0x10001)] + ["f" * 32]
    ranked = spark.createDataFrame(pd.DataFrame({"uid": uids, "rank": [0.5] * 7}))
    assert [find_cut(ranked, k)[1] for k in (1, 3, 6, 7)] == [uids[0], uids[2], uids[5], "f" * 32]


@pytest.mark.parametrize(
    "keep",
    [{}, {"top_fraction": 0.1, "all": True}, {"top_fraction": 0.1, "random_fraction": 0.1}, {"all": False},
     {"top_fraction": 0}, {"top_fraction": 1.5}, {"random_fraction": -0.1}, {"bottom_fraction": 0.1}],
)  # fmt: skip
def test_keep_refuses(keep):
    with pytest.raises(pydantic.ValidationError):
        Keep(**keep)


F1 = {"scored_by": {"dfn": ("f", "v")}}


def selected(
    spark, config, pairs, scores=(), contaminated=(), duplicates=(), signals=(), image_signals=(), inputs=(),
    partitions=None,
):  # fmt: skip
    """(facts, kept rows, receipt) of a stage run, which reads only what the rule asks for."""
    rows = {"pairs": pairs, "signals": signals, "image_signals": image_signals, "scores": scores,
            "contaminated": contaminated, "duplicates": duplicates, "inputs": inputs}  # fmt: skip
    scored = [{"filter": "f", "filter_version": "v", **row} for row in scores]
    rows["scores"] = scored
    wanted = [name for name, read in selection.STAGE.reads.items() if read.is_read(config)]
    inputs = {name: frame(spark, selection.STAGE.reads[name].table, list(rows[name]), partitions) for name in wanted}
    facts = selection.prepare(**inputs, config=config)
    facts |= {"key": "0123456789abcdef" * 4, "inputs": {"pool.pairs": 3, "pool.scores": 5}}
    selections, receipts = selection.transform(**inputs, config=config, facts=facts)
    return facts, rows_of(selections), [row.asDict() for row in receipts.collect()]


def kept_numbers(rows):
    return [int(row[1], 16) for row in rows]


def receipt_hash(uids, num_repeats=1):
    """As the receipts table states it, from nothing but that statement."""
    total = sum(int(hashlib.md5(f"{u}\0{num_repeats}".encode()).hexdigest(), 16) for u in uids)
    return f"{total % 2**128:032x}"


def pool(count=60):
    """Every status, verdict and kind of score: of 60 pairs."""
    statuses = {50: "metadata_only", 51: "decode_error", 52: "missing_text", 53: "missing_text"}
    pairs = [{"uid": uid(n), "status": statuses.get(n, "ok")} for n in range(count)]
    scores = [{"uid": uid(n), "score": (n * 7 % 20) / 10 - 1, "status": "ok"} for n in range(count) if n != 54]
    scores[10] |= {"score": None, "status": "invalid_output"}
    scores[11] |= {"score": math.nan}  # No table takes it; nothing must come of it all the same.
    scores[12] |= {"score": 9.0, "status": "no_vectors"}
    contaminated = [{"uid": uid(n), "eval_set": s, "method": "phash"} for n in (0, 1, 50) for s in ("a", "b")]
    duplicates = [{"uid": uid(n), "group_uid": uid(20), "method": "sha256"} for n in (20, 21, 22)]
    duplicates += [{"uid": uid(n), "group_uid": uid(22), "method": "phash"} for n in (22, 23)]
    return {"pairs": pairs, "scores": scores, "contaminated": contaminated, "duplicates": duplicates}


GONE = {10, 11, 12, 54, 50, 51, 52, 53}  # of `pool`: no score, or not ok
ALL_NOT_OK = {"metadata_only": 1, "decode_error": 1, "missing_text": 2}


def test_top_fraction_is_the_same_over_any_partitions_and_has_its_receipt(spark):
    config = Config(keep=Keep(top_fraction=0.4), unique=Unique(by=("sha256",)), seed=3, **F1)
    eligible = [n for n in range(60) if n not in GONE | {0, 1, 21, 22}]
    score = {n: float(np.float32((n * 7 % 20) / 10 - 1)) for n in eligible}
    kept = sorted(eligible, key=lambda n: (-score[n], uid(n)))[: int(len(eligible) * 0.4)]
    found = [selected(spark, config, **pool(), partitions=partitions) for partitions in (1, 4, 13)]
    facts, rows, receipts = found[0]
    assert found[1:] == [found[0]] * 2
    assert rows == [("0123456789abcdef", uid(n), score[n], 1) for n in sorted(kept)]
    by_status = {"kept": 19, "below_cut": 29, "contaminated": 2, "duplicate": 2, "no_score": 4, **ALL_NOT_OK}
    found = {"threshold": score[kept[-1]], "threshold_uid": uid(kept[-1]), "num_eligible": 48, "tops": []}
    found |= {"cuts": {"": [score[kept[-1]], uid(kept[-1])]}, "num_rows_by_status": by_status}
    assert {k: v for k, v in facts.items() if k not in ("key", "inputs")} == found
    assert sum(by_status.values()) == 60
    (receipt,) = receipts
    assert json.loads(receipt.pop("facts")) == found
    assert Config.model_validate_json(receipt.pop("rule")) == config
    assert receipt == {
        "selection_id": "0123456789abcdef", "inputs": {"pool.pairs": 3, "pool.scores": 5}, "seed": 3, "num_rows": 19,
        "hash": receipt_hash(uid(n) for n in kept),
    }  # fmt: skip


def test_all_ranks_nothing_and_heeds_the_rule_alone(spark):
    given = pool()
    not_ok = {50, 51, 52, 53}
    # By phash 23 goes and 22, smallest of its group, stays; by sha256 21 and 22 go.
    rules = [(False, (), set()), (True, ("phash",), {0, 1, 23}), (False, ("sha256", "phash"), {21, 22, 23})]
    for exclude, by, gone in rules:
        config = Config(
            keep=Keep(all=True), exclude=Exclude(contaminated=exclude), unique=Unique(by=by) if by else None
        )
        facts, rows, receipts = selected(spark, config, **given)
        kept = [n for n in range(60) if n not in gone | not_ok]
        assert rows == [("0123456789abcdef", uid(n), None, 1) for n in kept]
        assert facts["cuts"] is facts["threshold"] is None
        assert sum(facts["num_rows_by_status"].values()) == 60
        assert receipts[0]["hash"] == receipt_hash(uid(n) for n in kept)


def test_a_random_share_follows_from_the_seed_alone(spark):
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(200)]
    one = [selected(spark, Config(keep=Keep(random_fraction=0.3), seed=1), pairs, partitions=p) for p in (1, 4, 13)]
    other = selected(spark, Config(keep=Keep(random_fraction=0.3), seed=2), pairs)
    assert one[1:] == [one[0]] * 2

    def drawn(seed):
        """The 60 with the largest numbers: what `draw` states, by hashlib."""
        number = {
            u: int(hashlib.md5(f"{seed}:{u}".encode()).hexdigest()[:13], 16) / 16**13 for u in map(uid, range(200))
        }
        return sorted((u, number[u]) for u in sorted(number, key=lambda u: (-number[u], u))[:60])

    assert [row[1:3] for row in one[0][1]] == drawn(1)
    assert [row[1:3] for row in other[1]] == drawn(2)
    assert 5 < len({row[1] for row in one[0][1]} & {row[1] for row in other[1]}) < 35  # 18 are expected


@pytest.mark.parametrize(("fraction", "count", "kept"), [(0.29, 100, 29), (0.15, 6, 0), (1.0, 3, 3)])
def test_the_number_kept_is_the_floor_of_what_is_meant(spark, fraction, count, kept):
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(count)]
    scores = [{"uid": uid(n), "score": n / 1000, "status": "ok"} for n in range(count)]
    facts, rows, receipts = selected(spark, Config(keep=Keep(top_fraction=fraction), **F1), pairs, scores)
    assert [row[1] for row in rows] == [uid(n) for n in range(count - kept, count)]
    assert facts["num_rows_by_status"] == {"kept": kept, "below_cut": count - kept}
    assert (receipts[0]["num_rows"], receipts[0]["hash"]) == (kept, receipt_hash(row[1] for row in rows))


def test_of_nothing_nothing_is_kept(spark):
    facts, rows, receipts = selected(spark, Config(**F1), [])
    assert rows == []
    assert facts["num_rows_by_status"] == {"kept": 0, "below_cut": 0}
    assert (receipts[0]["num_rows"], receipts[0]["hash"]) == (0, "0" * 32)


def test_the_hash_of_rows_is_a_sum_of_md5(spark):
    rng = np.random.default_rng(0)
    rows = [(u, int(n)) for u, n in zip(random_uids(rng, 500), rng.integers(1, 9, 500), strict=True)]
    total = sum(int(hashlib.md5(f"{u}\0{n}".encode()).hexdigest(), 16) for u, n in rows) % 2**128
    for part in (rows, rows[::-1]):
        sums = spark.createDataFrame(part, "uid string, n int").repartition(5).agg(*content_hash("uid", "n")).first()
        assert fold_hash(*sums) == f"{total:032x}"


def test_the_hash_tells_null_from_text_and_one_row_twice_from_once(spark):
    made = spark.createDataFrame([("a", None), ("a", ""), ("a", "x"), ("a", "x")], "u string, v string")
    hashes = {
        fold_hash(*made.where(condition).agg(*content_hash("u", "v")).first())
        for condition in ("v IS NULL", "v = ''", "v = 'x'")
    }
    assert len(hashes) == 3
    assert fold_hash(None, None) == "0" * 32


@pytest.mark.parametrize(
    ("few", "kind"),
    [(1, "normal"), (5, "normal"), (1000, "normal"), (1, "huge"), (1, "close"), (5, "outlier"), (1, "zeros")],
)
def test_the_cut_of_each_group_is_that_of_a_sort_of_it(spark, monkeypatch, few, kind):
    """With FEW small, every group is refined by histograms first, and many equals by their uids."""
    monkeypatch.setattr(cut, "FEW", few)
    rng = np.random.default_rng(few)
    groups = rng.choice(["", "de", "en"], 400, p=[0.1, 0.3, 0.6])
    uids, scores = random_uids(rng, 400), np.where(rng.random(400) < 0.3, 0.5, scores_like(rng, kind, 400))
    rows = list(zip(groups.tolist(), scores.tolist(), uids, strict=True))
    ranked = spark.createDataFrame(rows, "group string, rank double, uid string").repartition(3)
    sizes = {group: sum(g == group for g in groups) for group in ("", "de", "en")}
    wanted = {"": 1, "de": sizes["de"] // 2, "en": sizes["en"], "fr": 0}
    found = find_cuts(ranked, wanted)
    assert found.keys() == {"", "de", "en"}
    for group, cut_ in found.items():
        own = [(r, u) for g, r, u in rows if g == group]
        last = first([u for _, u in own], [r for r, _ in own], wanted[group])[-1]
        assert (cut_.uid, cut_.rank) == (last, {u: r for r, u in own}[last])


def test_rows_that_change_between_two_scans_are_told(spark, monkeypatch):
    """Not an endless search, and no cut of other rows."""
    monkeypatch.setattr(cut, "FEW", 1)
    monkeypatch.setattr(cut, "_within", lambda ranked, spans: ranked.where("rank < 0.0001"))
    ranked = spark.range(50).selectExpr("'' AS `group`", "id / 100000 AS rank", "lpad(hex(id), 32, '0') AS uid")
    with pytest.raises(AssertionError, match="changed under a pinned version"):
        find_cuts(ranked, {"": 40})


def test_quotas_are_taken_of_each_group_by_itself(spark):
    languages = [["en", "de", None][n % 3] for n in range(60)]
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(60)]
    signals = [{"uid": uid(n), "language": languages[n], "status": "ok"} for n in range(60)]
    scores = [{"uid": uid(n), "score": (n * 7 % 60) / 60, "status": "ok"} for n in range(60)]
    keep = Keep(top_fraction=0.5, per="language", at_most=7)
    facts, rows, _ = selected(spark, Config(keep=keep, **F1), pairs, scores, signals=signals)
    best = {
        c: sorted((n for n in range(60) if languages[n] == c), key=lambda n: -(n * 7 % 60))[:7]
        for c in ("en", "de", None)
    }
    assert kept_numbers(rows) == sorted(n for group in best.values() for n in group)
    assert facts["num_rows_by_status"] == {"kept": 21, "below_cut": 39} and facts["threshold"] is None
    keep = Keep(all=True, per="language", at_most=7)
    drawn = [
        selected(spark, Config(keep=keep, seed=s), pairs, signals=signals, partitions=p)[1]
        for s, p in ((0, 1), (0, 7), (1, 7))
    ]
    assert len(drawn[0]) == 21 and drawn[0] == drawn[1] != drawn[2]


def judged_by(spark, where, pairs, **rows):
    """Numbers of the pairs that fulfil a condition."""
    config = Config(
        keep=Keep(all=True),
        where=Condition.model_validate(where),
        exclude=Exclude(contaminated=False),
        **rows.pop("known", {}),
    )
    return kept_numbers(selected(spark, config, pairs, **rows)[1])


def test_conditions_join_and_a_missing_value_fails_its_leaf(spark):
    sizes = [(200, 600), (199, 300), (200, 601), (None, 300), (0, 0), (600, 200)]
    pairs = [
        {"uid": uid(n), "status": "ok", "width_px": w, "height_px": h, "source": "ab"[n % 2]}
        for n, (w, h) in enumerate(sizes)
    ]
    big, flat = {"of": "min_side_px", "at_least": 200}, {"of": "aspect_ratio", "at_most": 3}
    assert judged_by(spark, big, pairs) == [0, 2, 5]
    assert judged_by(spark, {"all": [big, flat]}, pairs) == [0, 5]
    assert judged_by(spark, {"any": [big, flat]}, pairs) == [0, 1, 2, 5]
    assert judged_by(spark, {"not": big}, pairs) == [1, 3, 4]
    assert judged_by(spark, {"all": [{"of": "source", "is_in": ["a"]}, {"not": {"any": [flat]}}]}, pairs) == [2, 4]
    assert judged_by(spark, {"of": "min_side_px", "above": 0, "below": 200}, pairs) == [1]


def test_a_bound_is_met_by_the_same_number_in_a_table_of_floats(spark):
    """A stored 0.7 is 0.69999999 in double precision, and a stored 0.1 is more than 0.1."""
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(4)]
    scores = [{"uid": uid(n), "score": s, "status": "ok"} for n, s in enumerate((0.7, 0.1, 0.6999, 0.1001))]
    known = {"scores": scores, "known": F1}
    assert judged_by(spark, {"of": "dfn", "at_least": 0.7}, pairs, **known) == [0]
    assert judged_by(spark, {"of": "dfn", "at_most": 0.1}, pairs, **known) == [1]


@pytest.mark.slow
def test_a_share_within_a_condition_is_of_the_whole_pool(spark):
    """`ties: all` is DataComp's: the threshold is the value at index int(n * fraction), and all not below are kept."""
    values = [0.9, 0.8, 0.8, 0.8, 0.5, 0.4, None, 0.3, 0.2, 0.1]
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(10)]
    scores = [{"uid": uid(n), "score": v, "status": "ok" if v else "no_vectors"} for n, v in enumerate(values)]
    known = {"scores": scores, "known": F1}
    for fraction, exact, tied in ((0.2, [0, 1], [0, 1, 2, 3]), (0.4, [0, 1, 2, 3], [0, 1, 2, 3, 4]), (1.0, None, None)):
        for ties, wanted in (("uid", exact), ("all", tied)):
            where = {"of": "dfn", "top_fraction": fraction, "ties": ties}
            assert judged_by(spark, where, pairs, **known) == (wanted or [0, 1, 2, 3, 4, 5, 7, 8, 9])
    both = {"all": [{"of": "dfn", "top_fraction": 0.4}, {"of": "dfn", "below": 0.85}]}
    assert judged_by(spark, both, pairs, **known) == [1, 2, 3]


@pytest.mark.parametrize(
    "where",
    [{}, {"of": "num_words"}, {"at_least": 1}, {"of": "language", "at_least": 1}, {"of": "num_words", "is_in": ["a"]},
     {"of": "dfn", "top_fraction": 0.1, "at_least": 0}, {"of": "dfn", "at_least": 0, "all": []},
     {"all": [{"of": "dfn", "top_fraction": 2}]}, {"not": {"nothing": 1}}],
)  # fmt: skip
def test_a_condition_refuses(where):
    with pytest.raises(pydantic.ValidationError):
        Condition.model_validate(where)


def test_of_duplicates_the_best_by_the_stated_order_stays_of_those_that_the_rule_keeps(spark):
    pairs = [{"uid": uid(n), "status": "ok", "width_px": 10 + n % 4, "height_px": 10} for n in range(8)]
    duplicates = [{"uid": uid(n), "group_uid": uid(n // 4 * 4), "method": "sha256"} for n in range(8)]
    scores = [{"uid": uid(n), "score": (0.1, 0.9, 0.5, 0.5, 0.2, 0.2, 0.9, 0.9)[n], "status": "ok"} for n in range(8)]
    contaminated = [{"uid": uid(n), "eval_set": "e", "method": "phash"} for n in (1, 4)]

    def kept(**unique):
        config = Config(keep=Keep(all=True), unique=Unique(by=("sha256",), **unique), **F1)
        return kept_numbers(selected(spark, config, pairs, scores, contaminated, duplicates)[1])

    assert kept() == [0, 5]  # 4, the smallest, is contaminated
    assert kept(keep="largest_image") == [3, 7]
    assert kept(highest="dfn") == [2, 6]


def test_of_duplicates_the_one_ingested_first_stays(spark):
    """Shards of one name in two folders; a tie; a pair without pixels, and one whose shard no ledger names."""
    shards = ["0.tar", "b/0.tar", None, "gone.tar", "b/0.tar", "b/0.tar", None, "gone.tar", None]
    statuses = ["ok" if shard else "metadata_only" for shard in shards]
    pairs = [{"uid": uid(n), "status": statuses[n], "shard": shard} for n, shard in enumerate(shards)]
    duplicates = [{"uid": uid(n), "group_uid": uid(n // 4 * 4), "method": "url_text"} for n in range(len(shards))]
    days = {"/pool/0.tar": 3, "/pool/b/0.tar": 2, "/pool/b/1.tar": 1, "/metadata/0.parquet": 1}
    inputs = [{"uri": uri, "ingested_at": dt.datetime(2026, 1, day, tzinfo=dt.UTC)} for uri, day in days.items()]
    unique = Unique(by=("url_text",), keep="oldest")
    config = Config(keep=Keep(all=True), unique=unique, among=("ok", "metadata_only"))
    assert kept_numbers(selected(spark, config, pairs, duplicates=duplicates, inputs=inputs)[1]) == [1, 4, 8]


def test_blocklists_name_uids_hashes_urls_and_domains(spark, tmp_path):
    urls = ["http://a.example/1.png", "https://x.B.example:80/2", "http://b.example.org/", None, "http://u@c.example/q?b.example",
            "http://nob.example/"]  # fmt: skip
    pairs = [{"uid": uid(n), "status": "ok", "url": url, "sha256": f"{n:064x}"} for n, url in enumerate(urls)]

    def kept(*lines):
        path = tmp_path / "list.txt"
        path.write_text("\n".join(lines))
        lines_sha256 = digest(judging.blocklist((path,)))
        config = Config(keep=Keep(all=True), exclude=Exclude(blocklists=(path,)), blocklist_sha256=lines_sha256)
        facts, rows, _ = selected(spark, config, pairs)
        assert facts["num_rows_by_status"].get("blocked", 0) == 6 - len(rows)
        return kept_numbers(rows)

    assert kept("# a comment", "") == [0, 1, 2, 3, 4, 5]
    assert kept("b.example") == [0, 2, 3, 4, 5]
    assert kept("http://a.example/1.png", f"{2:064X}", uid(3)) == [1, 4, 5]
    assert kept("c.example") == [0, 1, 2, 3, 5]
    with pytest.raises(UserError, match="others"):
        judging.blocklist((tmp_path / "list.txt",), "0" * 64)


def test_an_image_model_can_exclude(spark):
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(4)]
    image_signals = [
        {"uid": uid(n), "model": m, "nsfw_score": s}
        for n, m, s in ((0, "a", 0.05), (0, "b", 0.2), (1, "a", 0.1), (2, "a", None))
    ]
    config = Config(keep=Keep(all=True), exclude=Exclude(contaminated=False, nsfw_above=0.1))
    facts, rows, _ = selected(spark, config, pairs, image_signals=image_signals)
    assert kept_numbers(rows) == [1, 2, 3] and facts["num_rows_by_status"]["nsfw"] == 1


def test_a_rule_can_count_faces_of_which_the_model_that_sees_most_is_heard(spark):
    pairs = [{"uid": uid(n), "status": "ok"} for n in range(5)]
    face = [0.0, 0.0, 0.5, 0.5]
    boxes = ((0, "a", []), (0, "b", [face]), (1, "a", [face, face]), (2, "a", []), (2, "b", None), (3, "b", None))
    image_signals = [{"uid": uid(n), "model": m, "face_boxes": found, "nsfw_score": 0.0} for n, m, found in boxes]

    def kept(**test):
        config = Config(
            where=Condition(of="num_faces", **test), keep=Keep(all=True), exclude=Exclude(contaminated=False)
        )
        return kept_numbers(selected(spark, config, pairs, image_signals=image_signals)[1])

    assert (kept(at_most=0), kept(at_least=1), kept(above=1)) == ([2], [0, 1], [1])


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["ok", "ok", "ok", "decode_error"]),
        st.sampled_from([None, -1.0, 0.0, 0.25, 0.25, 0.5, math.nan, math.inf]),
        st.booleans(),
        st.integers(0, 4),
        st.sampled_from(["en", "de", None]),
    ),
    max_size=40,
)


@given(rows=ROWS, fraction=st.sampled_from([0.1, 0.34, 0.5, 1.0]), seed=st.integers(0, 2**32))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(rows=[], fraction=0.5, seed=0)
@example(rows=[("ok", 0.25, False, 4, "en")], fraction=1.0, seed=0)
def test_any_pool_is_cut_as_a_sort_cuts_it_and_every_exclusion_is_honoured(spark, rows, fraction, seed):
    uids = random_uids(np.random.default_rng(seed), len(rows))
    table = list(zip(uids, rows, strict=True))
    pairs = [{"uid": u, "status": status} for u, (status, *_) in table]
    scores = [{"uid": u, "score": score, "status": "ok"} for u, (_, score, *_) in table]
    contaminated = [{"uid": u, "eval_set": "e", "method": "phash"} for u, (_, _, is_bad, *_) in table if is_bad]
    signals = [{"uid": u, "num_words": words, "language": language} for u, (*_, words, language) in table]
    where = {"any": [{"of": "num_words", "above": 2}, {"not": {"of": "language", "is_in": ["de"]}}]}
    config = Config(keep=Keep(top_fraction=fraction), where=Condition.model_validate(where), **F1)
    facts, found, (receipt,) = selected(spark, config, pairs, scores, contaminated, signals=signals, partitions=3)
    eligible = {}
    for u, (status, score, is_bad, words, language) in table:
        is_number = score is not None and math.isfinite(score)
        if status == "ok" and not is_bad and (words > 2 or language != "de") and is_number:
            eligible[u] = score
    kept = sorted(eligible, key=lambda u: (-eligible[u], u))[: math.floor(round(fraction * len(eligible), 6))]
    assert [row[1] for row in found] == sorted(kept)
    assert (receipt["hash"], sum(facts["num_rows_by_status"].values())) == (receipt_hash(kept), len(rows))
