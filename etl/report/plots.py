"""Geometry of the plots, in units of their viewBox. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from etl.report.page import MINUS

PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BASE = 56.0, 748.0, 34.0, 252.0


@dataclass(frozen=True)
class Scores:
    """How scores are spread over bins of one width."""

    edges: Sequence[float]
    """Ascending, one more than bins."""
    pool: Sequence[int]
    selected: Sequence[int]
    threshold: float | None
    name: str = ""
    """Of the filter, where there are several."""


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values from low to high."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def histogram(scores: Scores) -> dict[str, object] | None:
    """Geometry of the plot and rows of its table; None when there is nothing to draw."""
    edges, pool, selected = scores.edges, scores.pool, scores.selected
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
    cut = scores.threshold if scores.threshold is not None and math.isfinite(scores.threshold) else None
    return {
        "name": scores.name,
        "num_pool": sum(pool),
        "num_selected": sum(selected),
        "paths": {"pool": path(pool), "selected": path(selected)},
        "x_ticks": [(x(tick), f"{tick:.4g}".replace("-", MINUS)) for tick in ticks(low, high, 7)],
        "y_ticks": [(y(tick), f"{tick:,.0f}") for tick in ticks(0, most, 4) if tick == int(tick)],
        "cut": cut,
        "cut_x": x(cut) if cut is not None and low <= cut <= high else None,
        "rows": list(zip(names, pool, selected, strict=True)),
    }
