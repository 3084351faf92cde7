"""The data card of a selection: plain data in, one self-contained HTML page out. No script, no network, no Spark.

`report.html.j2` holds the page; this file holds what it says. Every value that the template prints passes `_clean` and
then jinja's escaping, because captions are hostile. Equal reports give equal bytes: nothing here looks at the clock.
"""

import math
import os
import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Undefined
from markupsafe import Markup
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # and no others: an EPS would start Ghostscript
MAX_CAPTION_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 2000
HARMLESS = "\u200c\u200d\u200e\u200f\u00ad"  # format characters that honest captions need: emoji, Persian, Hebrew
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BASE = 56.0, 748.0, 34.0, 252.0  # of the histogram, in units of its viewBox
BAR_LEFT, BAR_RIGHT, BAR_ROW = 150.0, 600.0, 38.0  # of the arms
NONE, MINUS, SPACE = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
TIMES, SIGMA = SPACE + "\N{MULTIPLICATION SIGN}", SPACE + "\N{GREEK SMALL LETTER SIGMA}"


@dataclass(frozen=True)
class PairShown:
    uid: str
    caption: str
    score: float | None
    thumbnail_png: bytes | None
    is_true: bool | None
    """Planted truth: does the caption belong to the picture? None when unknown."""


@dataclass(frozen=True)
class Arm:
    name: str
    num_pairs: int
    precision: float | None
    metrics: dict[str, tuple[float, float, int]]
    """Metric -> (mean, standard deviation, number of seeds). Higher is better."""


@dataclass(frozen=True)
class CandidateShown:
    name: str
    mean: float
    std: float
    num_seeds: int
    own: float
    """Its filters' own value: shown, not used."""
    goes_on: bool


@dataclass(frozen=True)
class SearchShown:
    """How the challenger was found."""

    metric: str
    winner: str
    samples_seen: int
    budget: int
    rungs: list[list[CandidateShown]]
    """Best first."""


@dataclass(frozen=True)
class Report:
    title: str
    intro: str
    """One paragraph: what was selected from what, and what was planted."""
    funnel: list[tuple[str, int, str]]
    """Step, rows left, why the others left."""
    tables: dict[str, dict[str, int]]
    """Table -> status -> rows."""
    histogram_edges: list[float]
    histogram_pool: list[int]
    histogram_selected: list[int]
    threshold: float | None
    arms: list[Arm]
    headline_metric: str
    verdict: str
    """The gate's decision in one sentence."""
    groups: dict[str, list[PairShown]]
    """'top', 'around the cut', 'bottom' -> pairs."""
    receipt: dict[str, object]
    seconds: dict[str, float]
    limits: list[str]
    search: SearchShown | None = None


def thumbnail(data: bytes, size_px: int = 96) -> bytes | None:
    """A small PNG, composited on white; None for what Pillow refuses, a format not listed, or over 50 Mpx."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            opened.draft("RGB", (2 * size_px, 2 * size_px))  # JPEG only: decodes at a fraction of the size
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = image.point(lambda value: value / 256).convert("L")
            image = image.convert("RGBA")
        image.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
        canvas = Image.new("RGB", image.size, "white")  # a new image, so that no metadata comes along
        canvas.paste(image, mask=image)
        canvas.save(out := BytesIO(), "PNG", optimize=True)
    except Exception:  # Pillow's plugins raise exceptions of every kind on broken bytes
        return None
    return out.getvalue()


def write(report: Report, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(render(report), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def render(report: Report) -> str:
    page = Environment(autoescape=True, finalize=_clean, undefined=StrictUndefined, trim_blocks=True)
    page.filters |= {"number": _number, "percent": _percent, "duration": _duration, "caption": _caption}
    page.filters |= {"short": _short, "base64": b64encode, "whole": Markup}  # Markup: our own, may be long
    template = page.from_string(resources.files("etl").joinpath("report.html.j2").read_text(encoding="utf-8"))
    before = [rows for _, rows, _ in report.funnel[:1] + report.funnel]
    return template.render(
        r=report,
        headline=_headline(report),
        histogram=_histogram(report),
        bars=_bars(report),
        metrics=_metrics(report),
        funnel=[(step, left, n - left, why) for (step, left, why), n in zip(report.funnel, before, strict=False)],
    )


def _clean(value: object, limit: int = MAX_TEXT_CHARACTERS) -> object:
    """Text as one line, cut, without control, override, private or surrogate characters; no NaN. Markup passes."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    if isinstance(value, Markup | Undefined | int | float):
        return value
    value = str(value)
    line = re.sub(rf"[^\S{SPACE}]+", " ", value[: 4 * limit]).strip()  # the first cut keeps a caption of 1 MB cheap
    if len(line) > limit or len(value) > 4 * limit:
        line = line[: limit - 1].rstrip() + "…"
    bad = {c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in HARMLESS}
    return "".join("\N{REPLACEMENT CHARACTER}" if c in bad else c for c in line)


def _caption(text: str) -> object:
    return _clean(text, MAX_CAPTION_CHARACTERS)


def _short(text: str, limit: int = 20) -> object:
    return _clean(text, limit)


def _number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", MINUS)


def _percent(part: float | None, whole: float = 1.0) -> str:
    return NONE if part is None or not math.isfinite(part) or whole <= 0 else f"{100 * part / whole:.1f}{SPACE}%"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 60:
        return _number(seconds, 1) + SPACE + "s"
    return f"{round(seconds) // 60}{SPACE}min {round(seconds) % 60:02}{SPACE}s"


def _metrics(report: Report) -> list[str]:
    """All metrics, the headline first, the others in the order in which the arms name them."""
    named = dict.fromkeys(metric for arm in report.arms for metric in arm.metrics)
    return sorted(named, key=lambda metric: metric != report.headline_metric)


def _ranked(report: Report) -> list[tuple[Arm, float, float, int]]:
    """Arms that have the headline metric, best first."""
    metric = report.headline_metric
    shown = [(arm, *arm.metrics[metric]) for arm in report.arms if metric in arm.metrics]
    return sorted((row for row in shown if math.isfinite(row[1])), key=lambda row: (-row[1], row[0].name))


def _headline(report: Report) -> dict[str, object]:
    """Which arm won, by what, in plain words; then the same as figures (value, what it is)."""
    ranked = _ranked(report)
    if len(ranked) < 2:
        return {"lede": "There is nothing to compare yet.", "first": None, "tiles": []}
    (best, mean, std, seeds), (second, mean2, std2, seeds2) = ranked[:2]
    lead, noise = mean - mean2, max(std, std2)
    is_noise_known = min(seeds, seeds2) > 1 and math.isfinite(std + std2)
    if not is_noise_known:
        lede = f"{best.name} is {_number(lead)} ahead of {second.name}, on too few seeds to know the noise."
    elif lead > noise:
        spread = f", {lead / noise:.1f} times the spread over seeds" if noise else ""
        lede = f"{best.name} won: {_number(lead)} ahead of {second.name}{spread}."
    else:
        lede = f"{best.name} and {second.name} cannot be told apart: the lead is within one standard deviation."
    entered = report.funnel[0][1] if report.funnel else 0
    tiles = [("+" + _number(lead), f"lead in {report.headline_metric}")]
    tiles += [(f"{mean / mean2:.2f}{TIMES}", f"the result of {second.name}")] if mean2 > 0 else []
    if is_noise_known and noise:
        tiles.append((f"{lead / noise:.1f}{SIGMA}", "lead over the larger standard deviation"))
    tiles += [(f"{best.num_pairs:,}", f"pairs kept, {_percent(best.num_pairs, entered)} of all")] if entered else []
    tiles += [(_percent(best.precision), "of them match, by the planted truth")] if best.precision is not None else []
    return {"lede": lede, "first": ranked[0], "second": ranked[1], "tiles": tiles}


def _ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _histogram(report: Report) -> dict[str, object] | None:
    """Geometry of the plot and rows of its table; None when there is nothing to draw."""
    edges, pool, selected = report.histogram_edges, report.histogram_pool, report.histogram_selected
    if not len(pool) == len(selected) == max(len(edges) - 1, 0):
        raise ValueError(f"wanted one bin less than edges; found {len(edges)=}, {len(pool)=}, {len(selected)=}")
    if not pool or not all(map(math.isfinite, edges)):
        return None
    low, high, most = edges[0], edges[-1] if edges[-1] > edges[0] else edges[0] + 1, max(*pool, *selected, 1)

    def x(score: float) -> float:
        return PLOT_LEFT + (score - low) / (high - low) * (PLOT_RIGHT - PLOT_LEFT)

    def y(rows: float) -> float:
        return PLOT_BASE - rows / most * (PLOT_BASE - PLOT_TOP)

    def path(counts: Iterable[int]) -> str:
        bins = [(x(a), max(x(b) - x(a), 2.0), y(n)) for (a, b), n in zip(pairwise(edges), counts, strict=True) if n]
        foot = f"V{PLOT_BASE:g}z"
        return "".join(f"M{a:.1f} {PLOT_BASE:g}V{top:.1f}h{w - min(1, w / 4):.1f}{foot}" for a, w, top in bins)

    names = [f"{a:.4g} to {b:.4g}".replace("-", MINUS) for a, b in pairwise(edges)]
    cut = report.threshold if report.threshold is not None and math.isfinite(report.threshold) else None
    return {
        "paths": {"pool": path(pool), "selected": path(selected)},
        "x_ticks": [(x(tick), f"{tick:.4g}".replace("-", MINUS)) for tick in _ticks(low, high, 7)],
        "y_ticks": [(y(tick), f"{tick:,.0f}") for tick in _ticks(0, most, 4) if tick == int(tick)],
        "cut": cut,
        "cut_x": x(cut) if cut is not None and low <= cut <= high else None,
        "rows": list(zip(names, pool, selected, strict=True)),
    }


def _bars(report: Report) -> list[dict[str, object]]:
    """One horizontal bar per arm, best first, with an error bar of one standard deviation."""
    rows = [(arm, mean, std if math.isfinite(std) else 0.0, seeds) for arm, mean, std, seeds in _ranked(report)]
    low = min([0.0, *(mean - std for _, mean, std, _ in rows if mean < 0)])
    high = max([low + 1e-6, *(mean + std for _, mean, std, _ in rows)])

    def x(value: float) -> float:
        return BAR_LEFT + (max(value, low) - low) / (high - low) * (BAR_RIGHT - BAR_LEFT)

    return [
        {
            "arm": arm, "mean": mean, "std": std, "seeds": seeds, "y": BAR_ROW * i, "zero": x(min(0, mean)),
            "width": x(max(0, mean)) - x(min(0, mean)), "low": x(mean - std), "high": x(mean + std),
        }
        for i, (arm, mean, std, seeds) in enumerate(rows)
    ]  # fmt: skip
