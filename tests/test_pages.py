"""The card and the comparison: plain data in, a page out that a browser opens without a word."""

from dataclasses import replace
from io import BytesIO

import pyarrow as pa
import pytest
from chromium import Browser
from PIL import Image
from test_report import HOSTILE, Page, pair

from etl.dedup.calibrate import Calibration, Drawn, Nearest
from etl.report import calibration, card, compared
from etl.report.calibration import Beside
from etl.report.card import Card, Duplicates, FilterPair, Leaks, Measured, Share
from etl.report.compared import Compared, Side
from etl.report.measures import BINS, MAX_FILTERS, VALUES_SHOWN
from etl.report.pictures import MAX_THUMBNAIL_BYTES
from etl.report.plots import Scores
from etl.report.showing import SHOWN, SIZE_PX
from models.calibration import Cost

SCORES = Scores([-0.5, 0.0, 0.5, 1.0], [400, 442, 148], [0, 0, 148], 0.5, "dfn 01234567")
CARD = Card(
    title="demo: dfn",
    intro="Real pictures.",
    num_pool=990,
    num_pairs=148,
    num_samples=200,
    ranked_by="dfn 01234567",
    threshold=0.5,
    is_intact=True,
    precision=0.75,
    funnel=[("pairs in the pool", 1000, ""), ("not decode_error", 990, "10 decode_error"), ("kept", 148, "842 below")],
    scores=[SCORES, replace(SCORES, name="cosine 89abcdef", threshold=None)],
    groups={name: [pair(f"{name} {i}") for i in range(10)] for name in ("top", "bottom")},
    columns={"Languages": [Share("en", 700, 130), Share("ar", 290, 18)], "Domains": [Share("example.org", 990, 148)]},
    duplicates=[Duplicates("phash", 17, 8, 5, 2)],
    leaks=[Leaks("things", "sha256", 3, 1)],
    repeats={1: 100, 2: 44, 3: 4},
    filters=[FilterPair("dfn 01234567", "cosine 89abcdef", 990, 0.42, 0.81, -0.125)],
    measured=[
        Measured("things.r5", 0.06, 0.0103, 0.1097, "3 seeds"),
        Measured("things.top1", 0.1, None, None, "one seed: not known"),
    ],
    receipt={"selection_id": "0123456789abcdef", "inputs": {"pool.pairs": 3}},
    lineage={"filters": {"dfn": {"run": "r1"}}},
    limits=["12 pairs of the selection have no pixels yet."],
)  # fmt: skip
COMPARED = Compared(
    before=Side("dfn", "a" * 16, 60, 0.1),
    after=Side("dfn", "b" * 16, 70, None),
    both=40,
    why=[("entered", "new in pool", 25), ("entered", "score moved", 5), ("left", "now duplicate", 20)],
    scores=[SCORES],
    entered={"new in pool": [pair("new")], "score moved": [pair("moved")]},
    left={"now duplicate": [pair("twice")]},
    rules=[("rule.keep.top_fraction", 0.15, 0.2), ("version of pool.pairs", 3, 5)],
    limits=["Pictures are a few."],
)
CALIBRATION = Calibration(
    limits={"phash": 4.0, "semantic_phash": 0.31},
    recall={"crop 5%": {"phash": 0.0, "semantic": 0.0, "semantic_phash": 0.9, "any": 0.9},
            "grey all": {"phash": 1.0, "semantic": 0.0, "semantic_phash": 0.5, "any": 1.0}},
    flags={"phash": 0.001, "semantic": 0.0, "semantic_phash": 0.012, "any": 0.0125},
    costs=[Cost("phash", 3.0, 0.001, 0.42), Cost("semantic", 0.07, 0.005, 0.61)],
    nearest=[],
    pool=Drawn("pool", "", pa.table({"uid": ["a"] * 2000}), 2000),
    sets=[Drawn("things", "", pa.table({"uid": ["b"] * 90}), 30)],
    num_originals=20,
    edits=("mirrored", "cropped"),
)  # fmt: skip
NEAREST = Nearest(0, 0, 0, "mirrored", 13, 0.17, 0.249, ("phash", "semantic_phash"))
BESIDE = Beside(pair().thumbnail_png, None, "things", "flagged by hash, hash and vector", NEAREST)


def calibrated(data: Calibration, beside: Beside = BESIDE) -> str:
    return calibration.render(data, {"flagged": [beside], "not flagged": []})


PAGES = {
    "card": (card.render, CARD, card.SECTIONS), "compared": (compared.render, COMPARED, compared.SECTIONS),
    "calibration": (calibrated, CALIBRATION, calibration.SECTIONS),
}  # fmt: skip
by_page = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def everywhere(caption: str) -> dict[str, str]:
    """The pages with a text wherever a text can stand."""
    shown = {caption: [pair(caption, uid=caption)]}
    scores = [replace(SCORES, name=caption)]
    hostile = replace(
        CARD, title=caption, intro=caption, ranked_by=caption, funnel=[(caption, 1, caption)], groups=shown,
        columns={caption: [Share(caption, 1, 1)]}, duplicates=[Duplicates(caption, 1, 1, 1, 1)], scores=scores,
        leaks=[Leaks(caption, caption, 1, 1)], filters=[FilterPair(caption, caption, 1, 1.0, 1.0, None)],
        measured=[Measured(caption, 1.0, None, None, caption)], receipt={caption: [caption]}, limits=[caption],
        lineage={caption: {caption: caption}},
    )  # fmt: skip
    sides = [replace(side, name=caption, selection_id=caption) for side in (COMPARED.before, COMPARED.after)]
    other = replace(
        COMPARED, before=sides[0], after=sides[1], why=[("left", caption, 1)], scores=scores, entered=shown, left=shown,
        rules=[(caption, caption, caption)], limits=[caption],
    )  # fmt: skip
    named = replace(CALIBRATION, pool=replace(CALIBRATION.pool, name=caption), recall={caption: CALIBRATION.flags})
    return {"card": card.render(hostile), "compared": compared.render(other),
            "calibration": calibrated(named, replace(BESIDE, eval_set=caption, flagged_by=caption))}  # fmt: skip


@by_page
def test_every_section_is_there_with_a_heading_and_a_link_to_it(name):
    render, data, sections = PAGES[name]
    shown, ids = Page(render(data)), [id_ for id_, _ in sections]
    assert shown.mistakes == [] and shown.open == []
    assert [section["id"] for section in shown.all("section")] == ids
    assert [section["aria-labelledby"] for section in shown.all("section")] == [h2["id"] for h2 in shown.all("h2")]
    assert [a["href"] for a in shown.all("a")] == ["#main", *(f"#{id_}" for id_ in ids)]
    assert len(shown.all("main")) == len(shown.all("h1")) == len(shown.all("nav")) == 1
    assert len(shown.all("caption")) == len(shown.all("table"))
    assert all(th.get("scope") in ("row", "col") for th in shown.all("th"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in shown.all("svg"))
    assert all(img["alt"] for img in shown.all("img")) and len(shown.all("figcaption")) == len(shown.all("figure"))


def words(html: str) -> str:
    return " ".join(Page(html.replace("</td>", " </td>").replace("</th>", " </th>")).text.split())


def test_the_card_tells_its_numbers():
    text = words(card.render(CARD))
    for told in (
        "148 of 990 pairs, 14.9 %: the eligible ones that dfn 01234567 scores 0.5000 or more.",
        "The stored rows hash to what the receipt says.",
        "990 99.0 % 10 10 decode_error",
        "en 700 70.7 % 130 87.8 %",
        "phash 17 8 5 2",
        "things sha256 3 1",
        "2 44",
        "dfn 01234567 cosine 89abcdef 0.420 0.810 \N{MINUS SIGN}0.125 990",
        "things.r5 0.0600 0.0103 0.1097 3 seeds",
        "things.top1 0.1000 \N{EN DASH} \N{EN DASH} one seed: not known",
        "12 pairs of the selection have no pixels yet.",
    ):
        assert told in text, told
    assert "NOT those of the receipt" in words(card.render(replace(CARD, is_intact=False)))


def test_the_comparison_tells_who_came_and_went_and_why():
    text = words(compared.render(COMPARED))
    for told in (
        "30 pairs entered and 20 left; 40 stayed.",
        "44.4 %",
        "before dfn aaaaaaaaaaaaaaaa 60 0.1000",
        "entered new in pool 25",
        "left now duplicate 20",
        "rule.keep.top_fraction 0.15 0.2",
    ):
        assert told in text, told


def test_the_calibration_tells_what_is_found_and_flagged():
    text = words(calibrated(CALIBRATION))
    for told in (
        "95.0 % of edited copies are found; 1.2 % of the pool is flagged.",
        "pictures of pool were held against 30",
        "Edit hash hash and vector any of them",
        "threshold 4 0.31",
        "crop 5% 0.0 % 90.0 % 90.0 %",
        "all edits 50.0 % 70.0 % 95.0 %",
        "the pool's pictures flagged 0.1 % 1.2 % 1.2 %",
        "13 bits, 0.17 by vector",
        "flagged by hash, hash and vector; nearest mirrored",
        "vector 0.07 0.5 % 61.0 %",
        "None.",
    ):
        assert told in text, told
    as_it_is = replace(BESIDE, nearest=NEAREST._replace(edit=""))
    assert "; nearest" not in words(calibrated(CALIBRATION, as_it_is))


def test_what_is_empty_or_unknown_is_said():
    nothing = {
        "funnel": [], "scores": [], "groups": {}, "columns": {}, "duplicates": [], "leaks": [], "repeats": {},
        "filters": [], "measured": [], "receipt": {}, "lineage": {}, "limits": [],
    }  # fmt: skip
    shown = Page(card.render(replace(CARD, **nothing, num_pool=0, num_pairs=0, ranked_by="", threshold=None)))
    assert (
        shown.mistakes == [] and "nan" not in shown.text.lower() and "None" not in shown.text.replace("None were", "")
    )
    for told in ("No pairs to show.", "No duplicates are known.", "No leaks are known.", "No model is known"):
        assert told in shown.text
    same = replace(
        COMPARED, both=0, before=replace(COMPARED.before, num_pairs=0), after=replace(COMPARED.after, num_pairs=0)
    )
    shown = Page(compared.render(replace(same, why=[], scores=[], entered={}, left={}, rules=[], limits=[])))
    assert shown.mistakes == [] and "Nothing: the same rule on the same inputs." in shown.text


@by_page
def test_a_browser_opens_it_without_a_word_and_asks_nobody(name, browser, tmp_path):
    render, data, sections = PAGES[name]
    (page := tmp_path / f"{name}.html").write_text(render(data))
    opened = browser.open(page)
    assert (opened.console, opened.requests, opened.dialogs) == ([], [], [])
    seen = browser.evaluate(
        "[...document.querySelectorAll('main section')].filter(s => s.offsetHeight > 20).map(s => s.id)"
    )
    assert seen == [id_ for id_, _ in sections]
    loaded = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    assert browser.evaluate(loaded) is True and browser.evaluate("document.images.length") > 0
    for is_dark, paper in ((False, "rgb(251, 250, 247)"), (True, "rgb(21, 24, 27)")):
        browser.screenshot(tmp_path / "shot.png", width=390, is_dark=is_dark, height=200)
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390, "it scrolls sideways on a telephone"


def test_the_heaviest_card_that_there_can_be_is_under_10_mb(browser, tmp_path, capsys):
    """As many pairs as there can be, thumbnails as heavy as they may be, all values and bins, filters and models.

    Prints the seconds to first paint: a machine's, so not asserted.
    """
    Image.effect_noise((SIZE_PX, SIZE_PX), 200).save(out := BytesIO(), "PNG")
    heavy = out.getvalue() + bytes(MAX_THUMBNAIL_BYTES - len(out.getvalue()))
    pairs = [pair("caption " * 100, thumbnail_png=heavy)] * SHOWN
    bins = Scores([n / BINS for n in range(BINS + 1)], [12_345_678] * BINS, [1_234_567] * BINS, 0.5, "a filter")
    column = [Share("v" * 200, 123_456_789, 12_345_678)] * (VALUES_SHOWN + 1)
    data = replace(
        CARD, scores=[bins] * MAX_FILTERS, groups={f"group {n}": pairs for n in range(6)},
        columns={f"column {n}": column for n in range(6)}, filters=CARD.filters * 15, measured=CARD.measured * 100,
    )  # fmt: skip
    (page := tmp_path / "heavy.html").write_text(card.render(data))
    assert 5_000_000 < page.stat().st_size < 10_000_000
    opened = browser.open(page)
    assert (opened.console, opened.requests) == ([], []) and opened.first_paint_seconds
    assert browser.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length") == 6 * SHOWN
    with capsys.disabled():
        print(f"\n{page.stat().st_size:,} bytes, first paint after {opened.first_paint_seconds:.2f} s")


@pytest.mark.parametrize("caption", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_does_nothing_wherever_it_stands(caption, browser, tmp_path):
    for name, html in everywhere(caption).items():
        calm = PAGES[name][0](PAGES[name][1])
        shown = Page(html)
        assert shown.mistakes == [] and shown.open == []
        assert {tag for tag, _ in shown.elements} <= {tag for tag, _ in Page(calm).elements}
        assert not set(html) & {*map(chr, range(9)), "\x1b", *map(chr, range(0x202A, 0x202F)), "\u2066", "\ud800"}
        assert len(html) < len(calm) + 100_000
        (page := tmp_path / f"{name}.html").write_text(html)
        opened = browser.open(page)
        assert (opened.console, opened.requests, opened.dialogs) == ([], [], [])
        assert browser.evaluate("[document.scripts.length, document.querySelectorAll('h1').length]") == [0, 1]
        assert browser.evaluate("document.documentElement.scrollWidth") <= browser.evaluate("innerWidth")


def test_a_caption_that_runs_from_right_to_left_stays_within_its_own_lines(browser, tmp_path):
    arabic = "قارب شراعي صغير"
    (page := tmp_path / "card.html").write_text(
        card.render(replace(CARD, groups={"top": [pair(arabic), pair("a boat")]}))
    )
    browser.open(page)
    of = "[...document.querySelectorAll('.pairs figcaption')]"
    of += ".map(c => [c.querySelector('bdi'), c.querySelector('.facts')])"
    told = browser.evaluate(f"{of}.map(pair => pair.map(e => getComputedStyle(e).direction))")
    assert told == [["rtl", "ltr"], ["ltr", "ltr"]]
    isolated = browser.evaluate(f"{of}.map(([bdi]) => getComputedStyle(bdi).unicodeBidi)")
    assert set(isolated) <= {"isolate", "plaintext"}


def test_a_browser_notices_what_the_pages_must_not_do(browser, tmp_path):
    """The tests above would see a script, a picture from elsewhere and a dialog."""
    (page := tmp_path / "bad.html").write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.log('hello')</script>"
    )
    opened = browser.open(page)
    assert opened.requests == ["http://127.0.0.1:9/x.png"] and any("hello" in line for line in opened.console)
    html = card.render(CARD).replace("<main", "<script>console.log(1)</script><main")
    page.write_text(html)
    assert any("Content Security Policy" in line for line in browser.open(page).console)
