"""The page of a round: plain data in, one inert page out."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from etl.report.pictures import PairShown, thumbnail
from etl.report.round import Arm, CandidateShown, Report, SearchShown, render, write

SECTIONS = ["headline", "funnel", "scores", "models", "pictures", "ledger", "receipt", "seconds", "limits"]
VOID = {"meta", "link", "img", "br"}
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "handler": "\"><img src=x onerror='alert(1)'>",
    "template": "{{ 7 * 7 }}{% raw %}",
    "closing": "</bdi></main></style><h1>owned",
    "override": "invoice \u202egnp.exe\u202c \u2066x",
    "control": "a\x00b\x1b[31mc\ud800d\ue000",
    "megabyte": "spam " * 200_000,
    "no spaces": "x" * 1_000_000,
    "blank start": " " * 1_000_000 + "z",
}


class Page(HTMLParser):
    """Elements with their attributes, the text of the body, the text of each <bdi>, and whether all tags close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text, self.captions, self.mistakes = "", list[str](), list[str]()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "bdi":
            self.captions.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open[-1:] == [tag]:
            self.open.pop()
        else:
            self.mistakes.append(f"</{tag}> in {self.open[-3:]}")

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "bdi" in self.open:
            self.captions[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 20), color: object = "red", kind: str = "PNG") -> bytes:
    Image.new(mode, size, color).save(out := BytesIO(), kind)
    return out.getvalue()


def pair(caption: str = "a red boat", **changes: object) -> PairShown:
    return replace(PairShown("0" * 31 + "a", caption, 0.5, thumbnail(picture()), True), **changes)


def arm(name: str, mean: float, std: float = 0.01, seeds: int = 8) -> Arm:
    return Arm(name, 3620, 0.475, {"avg": (mean, std, seeds), "recall_at_5": (mean / 2, std, seeds)})


REPORT = Report(
    title="Top 15 % of the pool",
    intro="Captions were permuted: an alignment stress test.",
    funnel=[("read", 1000, ""), ("decoded", 990, "broken"), ("selected", 148, "below the cut")],
    tables={"pairs": {"ok": 990, "truncated_image": 10}, "scores": {"ok": 990}},
    histogram_edges=[-0.5, 0.0, 0.5, 1.0],
    histogram_pool=[400, 442, 148],
    histogram_selected=[0, 0, 148],
    threshold=0.5,
    arms=[arm("whole_pool", 0.063, 0.008), arm("dfn", 0.113, 0.013), arm("random", 0.050, 0.012)],
    headline_metric="avg",
    verdict="Promoted.",
    groups={name: [pair(f"{name} {i}") for i in range(10)] for name in ("top", "around the cut", "bottom")},
    receipt={"selection_id": "s1", "inputs": {"pairs": 3}, "rule": {"unique": ["sha256", "phash"]}, "seed": 20240101},
    seconds={"ingest": 3.25, "embed": 251.4},
    limits=["Frozen towers."],
)


def page(**changes: object) -> Page:
    return Page(render(replace(REPORT, **changes)))


def test_every_section_is_there_with_a_heading_and_a_link_to_it():
    shown = page()
    assert shown.mistakes == [] and shown.open == []
    assert [section["id"] for section in shown.all("section")] == SECTIONS
    assert [section["aria-labelledby"] for section in shown.all("section")] == [h2["id"] for h2 in shown.all("h2")]
    assert {f"#{name}" for name in SECTIONS} <= {a["href"] for a in shown.all("a")}
    assert len(shown.all("main")) == len(shown.all("h1")) == len(shown.all("header")) == len(shown.all("nav")) == 1
    assert len(shown.all("caption")) == len(shown.all("table"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in shown.all("svg"))
    assert len(shown.all("details")) == len(shown.all("svg")) == 2
    assert len(shown.all("img")) == 30 and all(img["alt"] for img in shown.all("img"))
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_search_has_a_section_of_its_own_with_what_each_rung_found():
    rungs = [
        [CandidateShown("<b>steps=1</b>", 0.2, 0.0, 1, 0.1, True), CandidateShown("steps=9", 0.1, 0.0, 1, 0.4, False)],
        [CandidateShown("<b>steps=1</b>", 0.25, 0.0625, 3, 0.1, True)],
    ]
    shown = page(search=SearchShown("stamps.r5", "<b>steps=1</b>", 5120, 6000, rungs))
    assert shown.mistakes == [] and shown.open == []
    assert [section["id"] for section in shown.all("section")] == [*SECTIONS[:4], "search", *SECTIONS[4:]]
    assert "#search" in {a["href"] for a in shown.all("a")} and "#search" not in {a["href"] for a in page().all("a")}
    text = " ".join(shown.text.split())
    assert "<b>steps=1</b> is the challenger" in text and "5,120 of 6,000 samples seen" in text
    assert "Rung 1: 2 candidates, 1 seeds each" in text
    for row in (
        "<b>steps=1</b>0.2000\N{EN DASH}0.1000yes",
        "steps=90.1000\N{EN DASH}0.4000 ",
        "<b>steps=1</b>0.25000.06250.1000yes",
    ):
        assert row in text


def test_the_page_needs_no_network_and_no_script():
    shown = page()
    policy = next(meta["content"] for meta in shown.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    names = {tag for tag, _ in shown.elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "base", "video", "audio"}
    for _, attributes in shown.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in {"src", "href"} & attributes.keys():
            assert str(attributes[name]).startswith(("data:", "#"))
    html = render(REPORT)
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html


@pytest.mark.parametrize("caption", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_inert_wherever_it_stands(caption):
    everywhere = replace(
        REPORT,
        title=caption,
        intro=caption,
        funnel=[(caption, 10, caption)],
        tables={caption: {caption: 3}},
        arms=[replace(arm("", 0.1), name=caption), Arm("b", 1, None, {"avg": (0.2, 0.1, 2), caption: (0.1, 0.1, 2)})],
        verdict=caption,
        groups={caption: [pair(caption, uid=caption)]},
        receipt={caption: {"deep": [caption, {"deeper": caption}]}},
        seconds={caption: 1.0},
        limits=[caption],
    )
    html = render(everywhere)
    shown, calm = Page(html), render(REPORT)
    assert shown.mistakes == [] and shown.open == []
    assert {tag for tag, _ in shown.elements} <= {tag for tag, _ in Page(calm).elements}
    assert len(shown.all("h1")) == len(shown.all("style")) == 1 and len(shown.all("img")) == 1
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert not set(html) & {*map(chr, range(9)), "\x1b", *map(chr, range(0x202A, 0x202F)), "\u2066", "\ud800", "\ue000"}
    assert len(shown.captions[0]) <= 200 and len(html) < len(calm) + 100_000
    html.encode("utf-8")


def test_captions_are_shown_as_they_are_and_cut_with_an_ellipsis():
    arabic, emoji = "قارب شراعي صغير", "a family 👨\u200d👩\u200d👧"
    captions = [HOSTILE["script"], HOSTILE["template"], arabic, emoji, "two\nlines", "", "y" * 200, "y" * 201]
    shown = page(groups={"top": [pair(caption) for caption in captions]})
    assert shown.captions[:6] == [*captions[:4], "two lines", "no caption"]
    assert shown.captions[6:] == ["y" * 200, "y" * 199 + "…"]
    assert all(bdi["dir"] == "auto" for bdi in shown.all("bdi"))
    assert page(groups={"top": [pair(HOSTILE["megabyte"])]}).captions[0].endswith("spam…")


def test_the_numbers_of_arms_funnel_ledger_and_receipt_appear():
    text = page().text
    for words in ("0.113 ± 0.013 (8)", "0.063 ± 0.008 (8)", "0.025 ± 0.012 (8)", "47.5\u00a0%", "3,620"):
        assert words in text
    for words in (
        "truncated_image",
        "1,000",
        "below the cut",
        "842",
        "20240101",
        "sha256",
        "251.4",
        "4\u00a0min 15\u00a0s",
    ):
        assert words in text
    assert "10 of 10 match" in text and "Frozen towers." in text


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        (REPORT.arms, "dfn won: 0.050 ahead of whole_pool, 3.8 times the spread over seeds."),
        ([arm("a", 0.110, 0.02), arm("b", 0.105, 0.01)], "a and b cannot be told apart"),
        ([arm("a", 0.11), arm("b", 0.11)], "a and b cannot be told apart"),
        ([arm("a", 0.2, 0.0, 1), arm("b", 0.1, 0.0, 1)], "too few seeds"),
        ([arm("a", 0.2, math.nan), arm("b", 0.1)], "too few seeds"),
        ([arm("a", 0.2, 0.0), arm("b", 0.1, 0.0)], "a won: 0.100 ahead of b."),
        ([arm("a", math.nan), arm("b", 0.1)], "nothing to compare"),
        ([arm("a", -0.1), arm("b", -0.3)], "a won"),
        ([Arm("a", 1, None, {})], "nothing to compare"),
        ([], "No induced model was trained."),
    ],
)
def test_the_headline_says_in_plain_words_which_arm_won(arms, words):
    shown = page(arms=arms)
    assert words in shown.text
    assert shown.mistakes == [] and "nan" not in shown.text.lower()


@pytest.mark.parametrize("threshold", [None, 0.5, -9.0, math.nan])
@pytest.mark.parametrize(
    ("edges", "pool", "selected"),
    [([], [], []), ([0.5], [], []), ([0.5, 0.5], [7], [3]), ([0.0, 1.0], [0], [0]), ([-1.0, 0.0, 1.0], [5, 1], [0, 1])],
)
def test_any_histogram_can_be_drawn(edges, pool, selected, threshold):
    changes = {"histogram_edges": edges, "histogram_pool": pool, "histogram_selected": selected}
    shown = page(**changes, threshold=threshold)
    plots = [svg for svg in shown.all("svg") if "Histogram" in str(svg["aria-label"])]
    assert len(plots) == (1 if pool else 0)
    lines = [line for line in shown.all("line") if line["class"] == "cut"]
    assert len(lines) == (1 if pool and threshold is not None and edges[0] <= threshold <= edges[-1] else 0)
    numbers = [value for tag in ("line", "path", "text", "rect") for a in shown.all(tag) for value in a.values()]
    assert not any("nan" in str(value) or "inf" in str(value) for value in numbers)


def test_the_selected_bars_are_as_high_as_their_counts():
    bars = {path["class"]: str(path["d"]) for path in page().all("path") if path["class"] in ("pool", "selected")}
    assert bars["pool"].count("M") == 3 and bars["selected"].count("M") == 1
    assert bars["pool"].endswith(bars["selected"]), "the last bin is selected whole: same place, same height"


def test_a_histogram_that_does_not_fit_its_edges_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"len\(edges\)=4, len\(pool\)=1"):
        page(histogram_pool=[1])


def test_what_is_empty_or_unknown_is_said_and_never_nan():
    blank = replace(
        REPORT, funnel=[], tables={}, histogram_edges=[], histogram_pool=[], histogram_selected=[], threshold=None
    )
    blank = replace(blank, arms=[], groups={"top": [], "bottom": []}, receipt={}, seconds={}, limits=[])
    shown = Page(render(blank))
    assert [section["id"] for section in shown.all("section")] == SECTIONS
    assert shown.text.count("No pairs in this group.") == 2 and shown.mistakes == []
    assert "No pairs to show." in Page(render(replace(blank, groups={}))).text
    unknown = pair(score=math.nan, thumbnail_png=None, is_true=None)
    arms = [Arm("a", 0, math.nan, {"avg": (math.nan, math.nan, 0)}), arm("b", 0.1, math.nan)]
    receipt = {"threshold": math.nan, "nothing": None, "set": {"b", "a"}}
    shown = page(groups={"top": [unknown, pair(score=None)]}, arms=arms, seconds={"x": math.nan}, receipt=receipt)
    assert "nan" not in shown.text.lower() and "None" not in shown.text
    assert "no picture" in shown.text and "no score" in shown.text and "1 of 1 match" in shown.text
    zero = page(funnel=[("read", 0, ""), ("kept", 0, "")], seconds={"x": 0.0}, tables={"pairs": {}})
    assert "nan" not in zero.text.lower() and zero.mistakes == []


def test_equal_reports_give_equal_bytes_in_any_process():
    code = "import test_report as t, sys; sys.stdout.buffer.write(t.render(t.SETS).encode())"
    command, here = [sys.executable, "-c", code], Path(__file__).parent
    runs = [
        subprocess.run(command, cwd=here, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout == render(SETS).encode()


SETS = replace(REPORT, receipt={"uids": {f"{i:032x}" for i in range(50)}})


def test_no_spark_is_imported():
    code = "import etl.report.card, etl.report.compared, etl.report.round, sys; "
    code += "sys.exit('pyspark' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_write_replaces_the_page_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(ValueError):
        write(replace(REPORT, histogram_pool=[]), target)
    assert target.read_text() == "old"
    write(REPORT, target)
    assert target.read_text(encoding="utf-8") == render(REPORT)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def opened(png: bytes | None) -> Image.Image:
    assert png is not None
    image = Image.open(BytesIO(png))
    assert image.format == "PNG" and image.mode == "RGB"
    return image


def test_thumbnails_are_small_and_stand_on_white():
    clear = opened(thumbnail(picture("RGBA", (300, 100), (255, 0, 0, 0))))
    assert clear.size == (96, 32) and clear.getpixel((5, 5)) == (255, 255, 255)
    assert opened(thumbnail(picture("RGBA", color=(255, 0, 0, 128)))).getpixel((5, 5)) == (255, 127, 127)
    assert opened(thumbnail(picture("RGB", (40, 20)))).size == (40, 20), "never enlarged"
    assert opened(thumbnail(picture("RGB", (4000, 3), "blue"), 32)).size == (32, 1)
    assert opened(thumbnail(picture("L", color=7))).getpixel((0, 0)) == (7, 7, 7)
    assert opened(thumbnail(picture("I;16", color=0x8000))).getpixel((0, 0)) == (128, 128, 128)


def test_a_thumbnail_that_is_too_heavy_is_made_smaller():
    Image.effect_noise((400, 300), 90).save(out := BytesIO(), "PNG")
    heavy, light = (thumbnail(out.getvalue(), 192, max_bytes) for max_bytes in (1 << 20, 4000))
    assert opened(heavy).size == (192, 144) and len(heavy) > 10_000
    assert len(light) <= 4000 and 20 < opened(light).width < 192


def test_thumbnails_of_cmyk_and_turned_jpegs():
    red, green, blue = opened(thumbnail(picture("CMYK", color=(0, 255, 255, 0), kind="JPEG"))).getpixel((5, 5))
    assert red > 240 and green < 15 and blue < 15
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    Image.new("RGB", (400, 200)).save(out := BytesIO(), "JPEG", exif=exif, icc_profile=b"not a profile")
    turned = opened(thumbnail(out.getvalue()))
    assert turned.size == (48, 96) and turned.info == {}


def test_thumbnail_refuses_what_cannot_be_shown():
    noise = Image.effect_noise((200, 200), 90)
    noise.save(out := BytesIO(), "JPEG")
    whole = out.getvalue()
    assert thumbnail(whole) is not None
    for broken in (b"", b"not an image", whole[: len(whole) // 2], picture()[:40], b"<svg xmlns='x'/>"):
        assert thumbnail(broken) is None
    assert thumbnail(picture("1", (10_000, 5_001), 0)) is None, "over 50 Mpx"
    for kind in ("EPS", "PPM", "PCX"):
        assert thumbnail(picture("RGB", kind=kind)) is None, "not on the list: EPS would start Ghostscript"
