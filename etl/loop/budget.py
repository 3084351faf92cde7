"""What a compute budget makes of a selection: repeats per pair, and which share of the pool pays, from induced runs.

Reads receipts and MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from etl.loop.loop_config import LoopConfig
from etl.project import Project
from etl.selection.receipts import receipts
from models.budget import Point, fit, forecast_miss, lacking, usable
from models.records import RegistryError

MANY_REPEATS = 10
"""From here on there is a warning: our choice, for no source gives one number."""
SHARES = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)


def repeats_by_fraction(receipt: Mapping[str, Any], samples_seen: int) -> dict[str, Any]:
    """How often a run of `samples_seen` samples sees each pair: of this selection, and of other shares of the eligible.

    Fang et al. keep 15 % and see each pair 6.7 times at DataComp's scales, where the pool is seen once.
    """
    eligible, kept = int(receipt["facts"]["num_eligible"]), int(receipt["num_rows"])
    table = {f"{share:.0%}": round(samples_seen / (share * eligible), 2) for share in SHARES} if eligible else {}
    own = samples_seen / kept if kept else None
    found: dict[str, Any] = {"this_selection": round(own, 2) if own else None, "by_fraction": table}
    if own and own > MANY_REPEATS:
        found["warning"] = (
            f"{own:.1f} repeats: what a pair teaches falls with each (Goyal et al. 2024, arXiv 2404.07177); "
            "a larger share may pay"
        )
    return found


def which_pays(project: Project, pool: str, receipt: Mapping[str, Any], samples_seen: int) -> dict[str, Any]:
    """The headline that `models.budget` forecasts for each share that was tried, and the share that is forecast best.

    Shares are of the same ranking as the receipt's, over the seeds of the loop; the whole pool is the share of 1.
    """
    if not project.config.loop.headline_parts:
        return {"not_known": "wanted loop.headline_parts, which say what pays; found none"}
    try:
        runs = _runs(project)
    except RegistryError as error:  # the selection is made, whether MLflow answers or not
        return {"not_known": str(error)}
    points = points_of(receipts(project.store, pool).values(), runs, project.config.loop, receipt)
    if reason := lacking(points):
        return {"not_known": f"{reason}; fix: dfn loop with arms of other fractions, and other loop.induced.steps"}
    law, miss = fit(points), forecast_miss(points)
    sizes = {point.share: point.num_pairs for point in usable(points)}
    forecast = {share: 1 - law.error(share, num_pairs, samples_seen) for share, num_pairs in sorted(sizes.items())}
    found: dict[str, Any] = {
        "best_fraction": f"{max(forecast, key=lambda share: forecast[share]):.3g}",
        project.config.loop.headline: {f"{share:.3g}": round(value, 4) for share, value in forecast.items()},
        "fitted_to": f"{len(usable(points))} means over seeds, largest residual {law.largest_residual:.4f}, "
        f"half-life {law.tau:.2g} passes",
        "miss_of_a_forecast": "not known" if miss is None else f"{miss:.4f}, at the largest budget from the others",
    }
    if samples_seen > (most := max(point.samples_seen for point in points)):
        found["warning"] = f"{samples_seen:,} samples are beyond the {most:,} of any run: extrapolated"
    return found


def points_of(known: Iterable[Mapping[str, Any]], runs: Sequence[tuple[Mapping[str, str], Mapping[str, float]]],
              loop: LoopConfig, like: Mapping[str, Any]) -> list[Point]:  # fmt: skip
    """A point for each share and budget, its error the mean over seeds.

    Args:
        runs: (params, metrics) of induced runs in MLflow: `content` is a receipt's hash.
        like: the receipt whose ranking and conditions count.
    """
    shares = {
        receipt["hash"]: (round(receipt["num_rows"] / receipt["facts"]["num_eligible"], 3), receipt["num_rows"])
        for receipt in known
        if receipt["num_rows"] and _is_like(receipt["rule"], like["rule"])
    }
    errors: dict[tuple[float, int], list[tuple[int, float]]] = {}
    for params, metrics in runs:
        if params.get("content") in shares and all(part in metrics for part in loop.headline_parts):
            share, num_pairs = shares[params["content"]]
            seen = int(params["steps"]) * int(params["batch_size"])
            error = 1 - mean(metrics[part] for part in loop.headline_parts)
            errors.setdefault((share, seen), []).append((num_pairs, error))
    return [
        Point(share, round(mean(n for n, _ in found)), seen, mean(error for _, error in found))
        for (share, seen), found in sorted(errors.items())
    ]


def _is_like(rule: Mapping[str, Any], like: Mapping[str, Any]) -> bool:
    """Whether a rule takes another share of the same pairs by the same filter; by name, since each seed has its own."""
    conditions = ("where", "among", "exclude", "unique", "balance")
    keep = rule.get("keep", {})
    if any(rule.get(name) != like.get(name) for name in conditions) or keep.get("per") or keep.get("at_most"):
        return False
    is_ranked = keep.get("top_fraction") is not None and keep.get("of") == like.get("keep", {}).get("of")
    return bool(is_ranked or keep.get("all"))


def _runs(project: Project) -> list[tuple[dict[str, str], dict[str, float]]]:
    from models import tracking  # a second: mlflow

    return tracking.finished_runs(project.tracking_uri, project.config.name, kind="induced")
