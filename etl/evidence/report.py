"""The page of the evidence suite: summary.json in, one self-contained HTML file out, and each plot as a file beside it.
No script, no network, no Spark.

`report.html.j2` beside holds the page; this file says what stands on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from etl.evidence.experiments import PLACES
from etl.evidence.plots import STYLE, Row, Series, by_itself, lines, rows
from models.records import write_whole

TITLES = {
    "table1": "Table 1: which filter", "table1_4x": "Table 1 at four times the samples", "sweep": "Fraction kept",
    "scarce": "Scarce clean data", "table2": "Table 2: fine-tuning", "figure4": "Figure 4: dirt in the filter dataset",
    "beyond": "Beyond plain DFN", "figure3": "Figure 3: own accuracy and induced quality",
}  # fmt: skip
VERDICTS = {True: "holds", False: "does not hold at this size", "void": "void"}
POINTS_SHOWN = 3
"""Decimals."""


def write(summary: Mapping[str, Any], path: Path) -> None:
    """The page, and plots/CLAIM-POOL.svg and plots/CLAIM-POOL-differences.svg beside it."""
    write_whole(path, render(summary))
    folder = path.parent / "plots"
    folder.mkdir(exist_ok=True)
    for name, pools in _all_plots(summary).items():
        for pool, plots in pools.items():
            for (_, plot), suffix in zip(plots, ("", "-differences"), strict=False):
                if plot:
                    write_whole(folder / f"{name}-{pool}{suffix}.svg", by_itself(plot, f"{TITLES[name]}, {pool}"))


def render(summary: Mapping[str, Any]) -> str:
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": _number, "p": _p, "verdict": lambda holds: VERDICTS[holds]}
    template = page.from_string(resources.files("etl.evidence").joinpath("report.html.j2").read_text(encoding="utf-8"))
    plots, style = _all_plots(summary), Markup(STYLE)  # noqa: S704  (our own)
    return template.render(s=summary, titles=TITLES, shown=list(plots), plots=plots, plot_style=style)


def _all_plots(summary: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[str, Markup]]]]:
    """Claim -> pool -> its plots, in the page's order."""
    shown = [name for name in TITLES if name in summary["tables"]]
    return {name: {pool: _plots(summary, name, pool) for pool in summary["tables"][name]} for name in shown}


def _number(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.{POINTS_SHOWN}f}".replace("-", "\N{MINUS SIGN}")


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< .0001"


def _plots(summary: Mapping[str, Any], name: str, pool: str) -> list[tuple[str, Markup]]:
    """(caption, plot) of a claim on a pool; what it was measured by first, what it is decided by second."""
    table, told = summary["tables"][name][pool], f"{TITLES[name]}, {pool}"
    measured = {"sweep": _sweep, "figure4": _figure4, "figure3": _figure3}.get(name, _arms)
    found = [measured(table, summary, told)]
    steps = summary["steps"].get(name, {}).get(pool, [])
    if steps:
        level = summary["levels"][name]
        shown = [
            Row(_words(step["name"]), step["value"], step["low"], step["high"], f"p {_p(step['p'])}", step["p"] < level)
            for step in steps
        ]
        found.append(("Differences with their 95 % intervals; filled: beyond noise after correction.",
                      rows(shown, label=f"{told}: differences")))  # fmt: skip
    return found


def _words(name: str) -> str:
    return name.replace("_", " ").replace(" - ", " \N{MINUS SIGN} ").replace("own:", "own ")


def _arms(table: Mapping[str, Any], summary: Mapping[str, Any], told: str) -> tuple[str, Markup]:
    shown = []
    for arm, metrics in table.items():
        mean, std = metrics["avg"]["mean"], metrics["avg"]["std"]
        shown.append(
            Row(_words(arm), mean, mean - std, mean + std, f"{mean:.3f} ± {std:.3f}", not arm.startswith("own:"))
        )
    caption = "avg of each arm, ± one standard deviation over seeds. Own: the filter itself, shown and not used."
    return caption, rows(shown, label=f"{told}: arms", has_zero=False)


def _sweep(table: Mapping[str, Any], summary: Mapping[str, Any], told: str) -> tuple[str, Markup]:
    points = [(float(arm), m["avg"]["mean"], m["avg"]["std"]) for arm, m in table.items()]
    found = [Series("avg", sorted(points))]
    if all("precision" in metrics for metrics in table.values()):
        best = max(y for _, y, _ in points)
        clean = sorted((float(arm), m["precision"]["mean"] * best, 0.0) for arm, m in table.items())
        found.append(Series("precision, scaled", clean))
    return ("avg by fraction kept, ± one standard deviation over seeds.",
            lines(found, label=told, x_name="fraction kept (log)", y_name="avg", is_log=True))  # fmt: skip


def _figure4(table: Mapping[str, Any], summary: Mapping[str, Any], told: str) -> tuple[str, Markup]:
    chance, found = summary["chance"], []

    def share(arm: str, clean: str) -> float:
        return float((table[arm]["avg"]["mean"] - chance) / (table[clean]["avg"]["mean"] - chance))

    dirts = sorted({float(arm.partition(":")[2]) for arm in table if arm.startswith("outside:")})
    for side, clean in (("own:", "own:0"), ("", "0")):
        for place in PLACES if not side else ("outside", "inside"):
            points = [(0.0, 1.0, 0.0), *((d, share(f"{side}{place}:{d:g}", clean), 0.0) for d in dirts)]
            found.append(Series(f"{'filter itself' if side else 'induced'}, {_words(place)}", points))
    return ("Share of the above-chance avg that is left with dirt: of the filter itself, and of the models it induces.",
            lines(found, label=told, x_name="share of dirt", y_name="share left"))  # fmt: skip


def _figure3(table: Mapping[str, Any], summary: Mapping[str, Any], told: str) -> tuple[str, Markup]:
    arms = [arm for arm in table if not arm.startswith("own:")]
    points = [(table[f"own:{a}"]["avg"]["mean"], table[a]["avg"]["mean"], table[a]["avg"]["std"]) for a in arms]
    plot = lines([Series("", points, is_line=False)], label=told, x_name="the filter's own avg", y_name="avg")
    return "Each point a filter: its own avg, and that of the models that it induces.", plot
