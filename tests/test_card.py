"""Cards and comparisons from tables: planted answers compared whole, and the tiny recipe's card in a browser."""

from pathlib import Path

import mlflow
import pytest
from chromium import Browser
from helpers import frame, picture, places, uid, write_shard

from etl.config import load
from etl.project import Project
from etl.report import card, compare_facts
from etl.report.card import Duplicates, Leaks, Share
from etl.report.card_facts import gather
from etl.report.showing import SHOWN
from etl.report.subject import flagged
from etl.run import Runner
from etl.selection.receipts import receipt_named, receipt_of
from etl.stage import UserError
from etl.stages import selection
from etl.stages.selection import Config, Keep
from etl.tables import CONTAMINATED, DUPLICATES, EVALUATIONS, FETCHES, IMAGE_SIGNALS, PAIRS, RUNS, SCORES, SIGNALS
from models.tracking import answering

RULE = Config(name="half", keep=Keep(top_fraction=0.5), scored_by={"dfn": ("f", "v" * 16)})
F1, G1 = {"filter": "f", "filter_version": "v" * 16}, {"filter": "g", "filter_version": "w" * 16}
WORDS_UNSAFE, PICTURE_UNSAFE, FACE, LEAKED, OPTED_OUT, BLOCKED, BROKEN, NOT_LOOKED_AT = 39, 38, 37, 36, 35, 34, 33, 32
MODEL = {"model": "open_nsfw", "model_version": "m" * 16, "status": "ok"}


@pytest.fixture(scope="module")
def planted(spark, tmp_path_factory):
    """(project, receipt of the upper half, receipt of the upper quarter) of 40 pairs; pair n has score n / 100."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "in").mkdir()
    (folder / "never.txt").write_text(uid(BLOCKED) + "\n")
    write_shard(folder / "in" / "a.tar", {f"{n:02}": {"png": picture(n)} for n in range(40)})
    at = places(folder / "in" / "a.tar")
    settings = [f"output={folder}/out", "datasets.pool.kind=pool", f"datasets.pool.shards={folder}/in/*.tar",
                f"stages.selection.exclude.blocklists=[{folder}/never.txt]"]  # fmt: skip
    project = Project(load([], settings))
    store = project.store

    def put(table, rows):
        store.create("pool", table)
        store.append_once(frame(spark, table, rows), "pool", table, content="1", note={"slice": {}})

    def row(n):
        place = dict(zip(("offset_bytes", "size_bytes"), at[f"{n:02}.png"], strict=True))
        status = {"status": "decode_error", "status_reason": "cut"} if n == BROKEN else {"status": "ok"}
        host = "www.cats.example" if n < 30 else "dogs.example:8080"
        size = {"width_px": 8 if n < 10 else 2000, "height_px": 3000, "image_format": "png"}
        named = {"uid": uid(n), "text": f"caption {n}", "url": f"https://{host}/{n}.png", "source": "s"}
        return {**named, **size, **place, **status, "shard": "a.tar"}

    put(PAIRS, [row(n) for n in range(40)])
    put(SCORES, [{**by, "uid": uid(n), "score": sign * n / 100, "status": "ok"} for n in range(40)
                 for by, sign in ((F1, 1), (G1, -1))])  # fmt: skip
    put(SIGNALS, [{"uid": uid(n), "language": "en" if n % 4 else "ar", "num_words": 2, "status": "ok",
                   "nsfw_text_score": 0.5 if n == WORDS_UNSAFE else 0.0} for n in range(40)])  # fmt: skip
    put(IMAGE_SIGNALS, [
        {**MODEL, "uid": uid(n), "nsfw_score": 0.9 if n == PICTURE_UNSAFE else 0.01,
         "face_boxes": [[0.0, 0.0, 1.0, 1.0]] if n == FACE else []}
        for n in range(40) if n != NOT_LOOKED_AT
    ])  # fmt: skip
    put(CONTAMINATED, [{"eval_set": "things", "method": "sha256", "uid": uid(LEAKED), "distance": 0.0}])
    put(DUPLICATES, [{"method": "sha256", "uid": uid(n), "group_uid": uid(group), "distance": 0.0}
                     for n, group in ((31, 30), (30, 30), (5, 4), (4, 4), (19, 18), (18, 18))])  # fmt: skip
    fetched = {"url": "https://x.example/", "status": "ok", "num_attempts": 1, "shard": "a.tar", "fetched_at": None}
    now = spark.sql("SELECT current_timestamp()").collect()[0][0]
    put(FETCHES, [{**fetched, "fetched_at": now, "uid": uid(OPTED_OUT), "opt_out_evidence": "noai"}])
    runner = Runner(store, {"pool": "pool"})
    quarter = RULE.model_copy(update={"name": "quarter", "keep": Keep(top_fraction=0.25)})
    ids = [str(runner.run(selection.STAGE, "pool", rule).slice["selection_id"]) for rule in (RULE, quarter)]
    return project, *(receipt_of(store, "pool", id_) for id_ in ids)


@pytest.fixture(scope="module")
def found(planted):
    return gather(planted[0], "pool", planted[1])


def numbers(groups):
    return {name: [int(shown.uid, 16) for shown in pairs] for name, pairs in groups.items()}


@pytest.mark.slow
def test_each_reason_to_hide_a_pair_hides_it(planted):
    hidden = {int(row["uid"], 16) for row in flagged(planted[0], "pool", 0.1).collect()}
    assert hidden == {WORDS_UNSAFE, PICTURE_UNSAFE, FACE, LEAKED, OPTED_OUT, BLOCKED, NOT_LOOKED_AT}


@pytest.mark.slow
def test_the_grids_hold_what_they_say_and_no_pair_that_is_flagged(found):
    """Kept are the 19 highest of 38: 39 to 19 without the broken and the leaked one, 6 of them flagged."""
    shown = numbers(found.groups)
    random = shown.pop("random, of those kept")
    assert shown == {
        "top": list(range(31, 21, -1)),
        "last to be kept": [23, 22, 21, 20, 19],
        "first to be left out": [18, 17, 16, 15, 14],
        "just below the threshold": list(range(13, 3, -1)),
        "bottom": list(range(9, -1, -1)),
    }
    assert len(set(random)) == 10 and set(random) <= set(range(19, 32)) and random != shown["top"]
    pairs = {pair.uid: pair for group in found.groups.values() for pair in group}
    assert all(pair.thumbnail_png and pair.caption == f"caption {int(pair.uid, 16)}" for pair in pairs.values())
    assert pairs[uid(20)].score == pytest.approx(0.2)


@pytest.mark.slow
def test_the_counts_are_those_that_were_planted(found):
    assert (found.num_pool, found.num_pairs, found.num_samples, found.repeats) == (40, 19, 19, {1: 19})
    assert found.threshold == pytest.approx(0.19) and found.is_intact and found.ranked_by == "f vvvvvvvv"
    assert found.funnel == [
        ("pairs in the pool", 40, ""),
        ("not contaminated", 39, "1 contaminated"),
        ("not decode_error", 38, "1 decode_error"),
        ("kept by the rule", 19, "19 below the cut"),
    ]
    assert found.columns == {
        "Languages": [Share("en", 30, 15), Share("ar", 10, 4)],
        "Domains": [Share("cats.example", 30, 11), Share("dogs.example", 10, 8)],
        "Shorter side, px": [Share("under 64", 10, 0), Share("1024 and more", 30, 19)],
        "Formats": [Share("png", 40, 19)],
        "Sources": [Share("s", 40, 19)],
        "Words in the caption": [Share("1 to 2", 40, 19)],
    }
    assert found.duplicates == [Duplicates("sha256", 6, 3, 3, 1)]
    assert found.leaks == [Leaks("things", "sha256", 1, 0)]
    assert [(sum(s.pool), sum(s.selected), s.name) for s in found.scores] == [
        (40, 19, "f vvvvvvvv"),
        (40, 19, "g wwwwwwww"),
    ]
    own, other = found.scores
    assert (own.edges[0], own.edges[-1], own.threshold) == (0.0, pytest.approx(0.39), found.threshold)
    assert own.selected[:29] == [0] * 29 and other.threshold is None


@pytest.mark.slow
def test_two_filters_of_which_one_is_the_other_upside_down(found):
    (pair,) = found.filters
    assert (pair.first, pair.second, pair.num_pairs) == ("f vvvvvvvv", "g wwwwwwww", 40)
    # Of 40 each would keep 19, none in common; both leave out two.
    assert (pair.overlap, pair.agreement, pair.correlation) == (0.0, pytest.approx(2 / 40), pytest.approx(-1.0))


@pytest.mark.slow
def test_the_limits_are_told_from_facts(found, planted):
    project, receipt, _ = planted
    limits = " ".join(found.limits)
    assert "8 pairs of the pool are flagged or cannot be shown" in limits
    assert "The rule keeps duplicates" in limits and "No model looked" not in limits and "faces" not in limits
    rows = project.store.read("pool", PAIRS)
    assert rows.count() == 40
    changed = gather(project, "pool", {**receipt, "hash": "0" * 32, "inputs": {}})
    assert not changed.is_intact and changed.limits[0].startswith("The rule cannot be applied again")
    assert numbers(changed.groups)["top"] == numbers(found.groups)["top"]


@pytest.mark.slow
def test_a_card_is_found_by_name_where_one_only_has_it(planted):
    project, receipt, _ = planted
    assert receipt_named(project.store, "pool", "half") == receipt
    assert receipt_named(project.store, "pool", receipt["selection_id"]) == receipt
    with pytest.raises(UserError, match="found no 'third'"):
        receipt_named(project.store, "pool", "third")


@pytest.mark.slow
def test_a_comparison_shows_who_left_and_why_and_no_flagged_pair(planted):
    project, half, quarter = planted
    made = compare_facts.gather(project, "pool", half, quarter)
    assert (made.both, made.why) == (9, [("left", "threshold moved", 10)])
    assert (numbers(made.left), made.entered) == ({"threshold moved": list(range(28, 18, -1))}, {})
    assert made.rules == [("rule.name", "half", "quarter"), ("rule.keep.top_fraction", 0.5, 0.25)]


def read_in_a_browser(page: Path, profile: Path, shot: Path | None = None) -> str:
    """A card's text, once it was opened: no message, no request, all sections, all pictures."""
    with Browser(profile) as browser:
        opened = browser.open(page)
        assert (opened.console, opened.requests, opened.dialogs) == ([], [], [])
        seen = browser.evaluate("[...document.querySelectorAll('main section')].map(section => section.id)")
        assert seen == [id_ for id_, _ in card.SECTIONS]
        assert browser.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length") == 5 * SHOWN
        if shot:
            browser.screenshot(shot)
        return browser.evaluate("document.body.innerText")


def test_the_round_leaves_a_card_that_a_browser_opens(tiny, tiny_output, tmp_path):
    project, ended, _ = tiny
    receipt = ended.arms["dfn"].receipts[0]
    page = tiny_output / "cards" / f"{receipt['selection_id']}.html"
    told = read_in_a_browser(page, tmp_path / "profile")
    for words in (receipt["hash"], f"{receipt['num_rows']} of 400 pairs", "things.r5", "items, one seed"):
        assert words in told
    with answering(project.tracking_uri):
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("tiny").experiment_id
        (run,) = client.search_runs([experiment], "tags.kind = 'round'")
        held = client.download_artifacts(run.info.run_id, f"cards/{page.name}")
    assert Path(held).read_bytes() == page.read_bytes()


def test_a_selection_that_induced_several_models_has_an_interval_over_their_seeds(tiny):
    """The whole pool is one selection for all seeds."""
    from etl.report.induced import measured

    project, ended, _ = tiny
    receipts = ended.arms["whole_pool"].receipts
    assert len({receipt["selection_id"] for receipt in receipts.values()}) == 1
    found, why_none = measured(project, receipts[0])
    values = list(ended.arms["whole_pool"].metrics["things.r5"].values())
    first = found[0]
    assert (first.metric, first.how, why_none) == ("things.r5", "3 seeds", None)
    assert first.mean == pytest.approx(sum(values) / 3)
    spread = (sum((value - first.mean) ** 2 for value in values) / 2) ** 0.5
    assert (first.low, first.high) == pytest.approx(
        (first.mean - 2.4841 * spread, first.mean + 2.4841 * spread), abs=1e-4
    )
    tables = project.store.read("", EVALUATIONS).join(project.store.read("", RUNS), on="run_id", how="inner")
    assert len(found) == tables.where("name = 'induced'").select("task", "metric").distinct().count()
