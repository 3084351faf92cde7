"""The page of two selections: who entered, who left, and why. Plain data in, one HTML page out.

`compared.html.j2` holds the page; `compare_facts.py` gathers what stands on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.report import page
from etl.report.page import percent
from etl.report.pictures import PairShown
from etl.report.plots import Scores, histogram

SECTIONS = [
    ("summary", "Summary"), ("why", "Why"), ("scores", "Scores"), ("entered", "Entered"), ("left", "Left"),
    ("rules", "Rules"), ("limits", "Limits"),
]  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One of the two."""

    name: str
    selection_id: str
    num_pairs: int
    threshold: float | None


@dataclass(frozen=True)
class Compared:
    before: Side
    after: Side
    both: int
    why: Sequence[tuple[str, str, int]]
    """`entered` or `left`, the reason, pairs."""
    scores: Sequence[Scores]
    """By the filter of the second: its selection among the pool."""
    entered: Mapping[str, Sequence[PairShown]]
    left: Mapping[str, Sequence[PairShown]]
    """Reason -> some of the pairs."""
    rules: Sequence[tuple[str, Any, Any]]
    """What differs in rules and inputs: its name, before, after."""
    limits: Sequence[str]


def render(compared: Compared) -> str:
    before, after = compared.before, compared.after
    num_entered, num_left = after.num_pairs - compared.both, before.num_pairs - compared.both
    either = compared.both + num_entered + num_left
    tiles = [
        (f"{num_entered:,}", "entered"), (f"{num_left:,}", "left"), (f"{compared.both:,}", "in both"),
        (percent(compared.both, either) if either else "100 %", "of all that either has is in both (Jaccard)"),
    ]  # fmt: skip
    return page.render(
        "compared.html.j2",
        kind="Two selections compared",
        title=f"{before.name} and {after.name}",
        intro=f"From {before.name} {before.selection_id} to {after.name} {after.selection_id}.",
        sections=SECTIONS,
        c=compared,
        lede=f"{num_entered:,} pairs entered and {num_left:,} left; {compared.both:,} stayed.",
        tiles=tiles,
        plots=[plot for scores in compared.scores if (plot := histogram(scores))],
    )
