"""The page of a round: the arms side by side, and the selection of the arm that a filter made.

`round.html.j2` holds the page; this file holds what it says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from etl.report import page
from etl.report.page import SPACE, number, percent
from etl.report.pictures import PairShown
from etl.report.plots import Scores, histogram
from models.records import write_whole

BAR_LEFT, BAR_RIGHT, BAR_ROW = 150.0, 600.0, 38.0  # of the arms, in units of the plot's viewBox
TIMES, SIGMA = SPACE + "\N{MULTIPLICATION SIGN}", SPACE + "\N{GREEK SMALL LETTER SIGMA}"
SECTIONS = [
    ("headline", "Which arm won"), ("funnel", "Funnel"), ("scores", "Scores"), ("models", "Induced models"),
    ("pictures", "Pictures"), ("ledger", "Ledger"), ("receipt", "Receipt"), ("seconds", "Seconds"),
    ("limits", "Limits"),
]  # fmt: skip


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


def write(report: Report, path: Path) -> None:
    write_whole(path, render(report))


def render(report: Report) -> str:
    scores = Scores(report.histogram_edges, report.histogram_pool, report.histogram_selected, report.threshold)
    searched = [("search", "Search")] if report.search else []
    return page.render(
        "round.html.j2",
        kind="A round of the loop",
        title=report.title,
        intro=report.intro,
        sections=[*SECTIONS[:4], *searched, *SECTIONS[4:]],
        r=report,
        headline=_headline(report),
        histogram=histogram(scores),
        bars=_bars(report),
        metrics=_metrics(report),
        funnel=page.steps(report.funnel),
    )


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
        lede = f"{best.name} is {number(lead)} ahead of {second.name}, on too few seeds to know the noise."
    elif lead > noise:
        spread = f", {lead / noise:.1f} times the spread over seeds" if noise else ""
        lede = f"{best.name} won: {number(lead)} ahead of {second.name}{spread}."
    else:
        lede = f"{best.name} and {second.name} cannot be told apart: the lead is within one standard deviation."
    entered = report.funnel[0][1] if report.funnel else 0
    tiles = [("+" + number(lead), f"lead in {report.headline_metric}")]
    tiles += [(f"{mean / mean2:.2f}{TIMES}", f"the result of {second.name}")] if mean2 > 0 else []
    if is_noise_known and noise:
        tiles.append((f"{lead / noise:.1f}{SIGMA}", "lead over the larger standard deviation"))
    tiles += [(f"{best.num_pairs:,}", f"pairs kept, {percent(best.num_pairs, entered)} of all")] if entered else []
    tiles += [(percent(best.precision), "of them match, by the planted truth")] if best.precision is not None else []
    return {"lede": lede, "first": ranked[0], "second": ranked[1], "tiles": tiles}


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
