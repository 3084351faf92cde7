"""The data card of a selection: what it kept of its pool, and what is known of it. Plain data in, one HTML page out.

`card.html.j2` holds the page; `card_facts.py` gathers what stands on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etl.report import page
from etl.report.page import Funnel, number, percent
from etl.report.pictures import PairShown
from etl.report.plots import Scores, histogram

SECTIONS = [
    ("summary", "Summary"), ("funnel", "Funnel"), ("scores", "Scores"), ("pictures", "Pictures"), ("data", "The data"),
    ("duplicates", "Duplicates and leaks"), ("repeats", "Repeats"), ("filters", "Filters"),
    ("models", "Induced models"), ("receipt", "Receipt"), ("limits", "Limits"),
]  # fmt: skip


@dataclass(frozen=True)
class Share:
    """Pairs with one value of a column, in the pool and in the selection."""

    value: str
    pool: int
    selected: int


@dataclass(frozen=True)
class Duplicates:
    """What one method finds."""

    method: str
    pool: int
    """Pairs of the pool with a duplicate."""
    groups: int
    selected: int
    """Of those pairs, in the selection."""
    twice: int
    """Groups of which the selection has more than one pair."""


@dataclass(frozen=True)
class Leaks:
    """Pairs that one method finds in an evaluation set."""

    eval_set: str
    method: str
    pool: int
    selected: int


@dataclass(frozen=True)
class FilterPair:
    """Two filters on the same sample of the pool."""

    first: str
    second: str
    num_pairs: int
    """In the sample, with a score by both."""
    overlap: float
    """Jaccard index of what the two would keep, at this selection's share."""
    agreement: float
    """Share of the pairs which both keep or both leave out."""
    correlation: float | None
    """Spearman's, of the scores; None where one of them is the same for all."""


@dataclass(frozen=True)
class Measured:
    """One metric of the models that this selection induced."""

    metric: str
    mean: float
    low: float | None
    high: float | None
    """The 95 % interval, where there is one."""
    how: str
    """What the interval is over."""


@dataclass(frozen=True)
class Card:
    title: str
    intro: str
    num_pool: int
    num_pairs: int
    num_samples: int
    """Repeats counted."""
    ranked_by: str
    """The filter whose scores ranked, and its version; empty where none did."""
    threshold: float | None
    is_intact: bool
    """Whether the stored rows hash to what the receipt says."""
    precision: float | None
    """Share of kept pairs whose caption is the true one; None where no noise was planted."""
    funnel: Funnel
    scores: Sequence[Scores]
    groups: Mapping[str, Sequence[PairShown]]
    columns: Mapping[str, Sequence[Share]]
    """What it is (language, domain, size) -> its values, most frequent first."""
    duplicates: Sequence[Duplicates]
    leaks: Sequence[Leaks]
    repeats: Mapping[int, int]
    """How often a pair comes -> pairs."""
    filters: Sequence[FilterPair]
    measured: Sequence[Measured]
    receipt: Mapping[str, Any]
    lineage: Mapping[str, Any]
    limits: Sequence[str] = field(default=())


def render(card: Card) -> str:
    """The page. Raises ValueError for a histogram whose counts do not fit its edges."""
    return page.render(
        "card.html.j2",
        kind="Data card",
        title=card.title,
        intro=card.intro,
        sections=SECTIONS,
        c=card,
        lede=_lede(card),
        tiles=_tiles(card),
        plots=[plot for scores in card.scores if (plot := histogram(scores))],
        funnel=page.steps(card.funnel),
    )


def _lede(card: Card) -> str:
    kept = f"{card.num_pairs:,} of {card.num_pool:,} pairs, {percent(card.num_pairs, card.num_pool)}"
    if card.ranked_by and card.threshold is not None:
        return f"{kept}: the eligible ones that {card.ranked_by} scores {number(card.threshold, 4)} or more."
    return f"{kept}, ranked by {card.ranked_by}." if card.ranked_by else f"{kept}, ranked by no score."


def _tiles(card: Card) -> list[tuple[str, str]]:
    """(figure, what it is)."""
    leaked, twice = (sum(row.selected for row in card.leaks), sum(row.twice for row in card.duplicates))
    tiles = [(f"{card.num_pairs:,}", "pairs"), (percent(card.num_pairs, card.num_pool), "of the pool")]
    if card.num_samples != card.num_pairs:
        tiles.append((f"{card.num_samples:,}", "samples, repeats counted"))
    if card.precision is not None:
        tiles.append((percent(card.precision), "have their true caption, by the planted truth"))
    tiles += [
        (f"{twice:,}", "groups of duplicates with more than one pair in it"),
        (f"{leaked:,}", "known leaks in it"),
    ]
    return tiles
