"""Plots of the evidence report as SVG, inline or by themselves: intervals, arms, lines, points. Numbers in, markup out.

Touches nothing; `plots.css` beside is their style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from math import floor, isfinite, log10

from markupsafe import Markup

WIDTH = 760.0
LEFT, RIGHT, ROW = 270.0, 640.0, 26.0  # of rows with a name and an interval
TOP, BASE, EDGE, END = 16.0, 262.0, 60.0, 590.0  # of lines and points; what is right of END is for names
COLOURS = 8
"""Classes c0 to c7 of STYLE."""
STYLE = resources.files("etl.evidence").joinpath("plots.css").read_text(encoding="utf-8")
"""Colours, light and dark, of the page and of each plot by itself."""
MARGIN = 20


@dataclass(frozen=True)
class Row:
    """A value with its interval; `note` stands at the right."""

    name: str
    value: float
    low: float
    high: float
    note: str = ""
    is_strong: bool = False


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[tuple[float, float, float]]
    """x, y, and how far y may be off."""
    is_line: bool = True


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values from low to high."""
    rough = max(high - low, 1e-9) / count
    magnitude = 10.0 ** floor(log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    first = -(-low // step)
    return [round((first + i) * step, 10) for i in range(int((high - first * step) / step + 1e-6) + 1)]


def rows(shown: Sequence[Row], *, label: str, has_zero: bool = True) -> Markup:
    """One horizontal interval a row."""
    shown = [row for row in shown if isfinite(row.low + row.high)]
    if not shown:
        return Markup("")
    ends = [end for row in shown for end in (row.low, row.high)] + ([0.0] if has_zero else [])
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.04 or 0.01
    x = _scale(low - pad, high + pad, LEFT, RIGHT)
    height = ROW * len(shown)
    parts = [
        _line(x(t), 0, x(t), height, "grid") + _text(x(t), height + 16, f"{t:g}", "middle") for t in ticks(low, high)
    ]
    if has_zero:
        parts.append(_line(x(0), 0, x(0), height, "zero"))
    for number, row in enumerate(shown):
        y, kind = ROW * number + ROW / 2, "strong" if row.is_strong else "weak"
        parts.append(_text(LEFT - 12, y + 4, row.name, "end"))
        parts.append(_line(x(row.low), y, x(row.high), y, f"bar {kind}"))
        parts.append(f'<circle class="{kind}" cx="{x(row.value):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(_text(RIGHT + 14, y + 4, row.note, "start"))
    return _svg(parts, height + 24, label)


def lines(series: Sequence[Series], *, label: str, x_name: str, y_name: str, is_log: bool = False) -> Markup:
    """Lines or points with bars of one error each, and a name at the end of each line."""
    points = [(px, y, e) for one in series for px, y, e in one.points]
    if not points:
        return Markup("")
    to = (lambda value: log10(value)) if is_log else (lambda value: value)
    xs, lows, highs = [to(px) for px, _, _ in points], [y - e for _, y, e in points], [y + e for _, y, e in points]
    x = _scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, EDGE + 8, END - 8)
    y = _scale(min([0.0, *lows]), max(highs) * 1.04, BASE, TOP)
    parts = [_line(EDGE, y(t), END, y(t), "grid") + _text(EDGE - 8, y(t) + 4, f"{t:g}", "end")
             for t in ticks(min([0.0, *lows]), max(highs))]  # fmt: skip
    marks = sorted({px for px, _, _ in points}) if is_log else ticks(min(xs), max(xs))
    parts += [_text(x(to(mark)), BASE + 18, f"{mark:g}", "middle") for mark in marks]
    parts += [_text((EDGE + END) / 2, BASE + 38, x_name, "middle"), _text(EDGE - 44, TOP - 4, y_name, "start")]
    for number, one in enumerate(series):
        parts += _one_series(one, f"c{number % COLOURS}", lambda value: x(to(value)), y)
    parts += _names(series, y)
    return _svg(parts, BASE + 46, label)


def by_itself(plot: Markup, title: str) -> str:
    """An SVG file: the plot with its style, on paper, under its title."""
    start, body = plot.split(">", 1)
    width, height = (float(side) for side in start.split('"')[1].split()[2:])
    place = f'viewBox="{-MARGIN} {-3 * MARGIN} {width + 2 * MARGIN:g} {height + 4 * MARGIN:g}"'
    paper = f'<rect class="paper" x="{-MARGIN}" y="{-3 * MARGIN}" width="100%" height="100%"/>'
    head = f"<style>{STYLE}</style>{paper}{_text(0, -1.5 * MARGIN, title, 'start', 'title')}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {place}>{head}{body}\n'


def _one_series(one: Series, kind: str, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    parts = []
    if one.is_line:
        path = " ".join(
            f"{'L' if number else 'M'}{x(px):.1f} {y(py):.1f}" for number, (px, py, _) in enumerate(one.points)
        )
        parts.append(f'<path class="line {kind}" d="{path}"/>')
    for px, py, error in one.points:
        if error:
            parts.append(_line(x(px), y(py - error), x(px), y(py + error), f"bar {kind}"))
        parts.append(f'<circle class="{kind}" cx="{x(px):.1f}" cy="{y(py):.1f}" r="4"/>')
    return parts


def _names(series: Sequence[Series], y: Callable[[float], float]) -> list[str]:
    """At the right, near where each line ends, none over another."""
    parts, last = [], -1e9
    for number, one in sorted(enumerate(series), key=lambda item: y(item[1].points[-1][1])):
        last = max(y(one.points[-1][1]) + 4, last + 15)
        parts.append(_text(END + 8, last, one.name, "start", f"c{number % COLOURS}"))
    return parts


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _svg(parts: Sequence[str], height: float, label: str) -> Markup:
    start = f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return Markup(start + "".join(parts) + "</svg>")  # noqa: S704  (numbers and escaped text of our own)
