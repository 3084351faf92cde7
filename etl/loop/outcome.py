"""What a round leaves to read: summary.json, the table on the terminal, report.html, a data card.

Writes in OUTPUT, and logs the card to MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from pyspark.sql import functions as F

from etl.cache import made
from etl.loop.arms import ArmResult, headline, spread
from etl.loop.loop import Loop, Round
from etl.loop.training import Trained
from etl.project import Project
from etl.report.card import Card, render
from etl.report.card_facts import card_path, gather
from etl.report.plots import Scores
from etl.report.round import Arm, CandidateShown, Report, SearchShown, write
from etl.shard_writer import publish_json
from etl.tables import DATASET_TABLES, RUNS
from models.records import write_whole

GROUPS = ("top", "last to be kept", "first to be left out", "bottom")
"""Of the card's, shown on the round's page too."""
LIMITS = (
    "Frozen towers and trained heads: an analogue of the paper's experiment, not the experiment.",
    "Permuted captions leave images and captions as sets unchanged: a filter that looks at one side cannot see them.",
    "The spread is over seeds (filter, selection and induced model together), not over evaluation items.",
)


def rows_by_status(project: Project) -> dict[str, dict[str, int]]:
    """dataset.table -> status -> rows, for the tables that exist; `rows` where a table has no status."""
    found: dict[str, dict[str, int]] = {}
    for dataset in project.config.datasets:
        for table in DATASET_TABLES:
            if project.store.exists(dataset, table):
                frame = project.store.read(dataset, table)
                kind = F.col("status") if "status" in frame.columns else F.lit("rows")
                counts = frame.groupBy(kind.alias("kind")).count().collect()
                found[f"{dataset}.{table.name}"] = {row["kind"]: int(row["count"]) for row in counts}
    return found


def seconds_by_stage(project: Project) -> dict[str, float]:
    """Seconds of the newest run of everything that `runs` knows of, summed by stage or kind of training."""
    rows = project.store.read("", RUNS).groupBy("name", "key").agg(F.max_by("seconds", "ended_at").alias("s"))
    sums = rows.groupBy("name").agg(F.sum("s").alias("s"), F.min("key")).collect()
    return {row["name"]: round(float(row["s"]), 1) for row in sorted(sums, key=lambda r: -r["s"])}


def write_outcome(project: Project, ended: Round) -> dict[str, Any]:
    """summary.json, report.html and the card of the filter's selection in OUTPUT; returns the summary."""
    loop = project.config.loop
    arms = ended.arms.values()
    summary: dict[str, Any] = {
        "intro": project.config.intro,
        "verdict": ended.verdict,
        "is_promoted": ended.is_promoted,
        "headline": {loop.headline: list(loop.headline_parts)},
        "results": {arm.name: arm.summary() for arm in arms},
        "precision": {arm.name: spread(list(arm.precision.values())) for arm in arms if arm.precision},
        "num_pairs": {arm.name: spread([int(r["num_rows"]) for r in arm.receipts.values()]) for arm in arms},
        "filters_own": {
            step: spread([headline(loop, filter_.metrics) for filter_ in filters])
            for step, filters in _steps(ended).items()
        },
        "tables": rows_by_status(project),
        "seconds": seconds_by_stage(project),
    }
    summary |= {"search": ended.searched.summary()} if ended.searched else {}
    folder = project.config.output_folder
    card = gather(project, Loop(project).pool, _chosen(project, ended))
    summary["card"] = str(_write_card(project, ended, card).relative_to(folder))
    publish_json(folder / "summary.json", summary)
    write(_report(project, ended, summary, card), folder / "report.html")
    return summary


def _steps(ended: Round) -> dict[str, list[Trained]]:
    """The round's filters, by the steps of their recipe."""
    made = list(ended.filters.values())
    if all(filter_.after is None for filter_ in made):
        return {"trained": [filter_.before for filter_ in made]}
    after = [filter_.after for filter_ in made if filter_.after]
    return {"before": [f.before for f in made], "fine-tuned": after, "averaged": [f.final for f in made]}


def table(summary: Mapping[str, Any]) -> str:
    """The arms side by side, mean and standard deviation over seeds, as text."""
    headline, parts = next(iter(summary["headline"].items()))
    columns = [headline, *parts]
    lines = [f"{'arm':<12} {'pairs':>7} {'precision':>9}  " + "  ".join(f"{c:>28}" for c in columns)]
    for name, metrics in summary["results"].items():
        true = f"{summary['precision'][name]['mean']:.3f}" if name in summary["precision"] else "-"
        cells = [f"{metrics[c]['mean']:.3f} ± {metrics[c]['std']:.3f}" for c in columns]
        lines.append(
            f"{name:<12} {summary['num_pairs'][name]['mean']:>7,.0f} {true:>9}  " + "  ".join(f"{c:>28}" for c in cells)
        )
    own = summary["filters_own"]
    told = ", ".join(f"{step} {found['mean']:.3f} ± {found['std']:.3f}" for step, found in own.items())
    lines.append(f"(the filters' own {headline}, shown and not used: {told})")
    lines += _search_lines(summary["search"]) if "search" in summary else []
    return "\n".join(["", *([summary["intro"].strip()] if summary["intro"] else []), "", *lines, "", ""])


def _search_lines(search: Mapping[str, Any]) -> list[str]:
    metric = ", ".join(search["metric"])
    lines = ["", f"search by {metric}: {search['samples_seen']:,} of {search['budget']:,} samples seen"]
    width = max(len(row["candidate"]) for row in search["rungs"][0])
    for number, rung in enumerate(search["rungs"], 1):
        for row in rung:
            mark = "goes on" if row["goes_on"] else ""
            value = f"{row['mean']:.3f} ± {row['std']:.3f} over {row['seeds']}"
            own = f"(own, not used: {row['filters_own_not_used']:.3f})"
            lines.append(f"rung {number}  {row['candidate']:<{width}}  {value}  {own}  {mark}".rstrip())
    return lines


def _chosen(project: Project, ended: Round) -> Mapping[str, Any]:
    """The receipt of the arm that a filter made, under the first seed; of the first arm where no filter made one."""
    loop = project.config.loop
    chosen = next((ended.arms[name] for name, arm in loop.arms.items() if arm.keep == "filter"), None)
    return (chosen or next(iter(ended.arms.values()))).receipts[loop.seeds[0]]


def _write_card(project: Project, ended: Round, card: Card) -> Path:
    """Into OUTPUT/cards, and beside the round's run in MLflow, where that answers."""
    from models import cards, spool
    from models.tracking import TrackingDownError

    path = card_path(project, card.receipt)
    made(path.parent)
    write_whole(path, render(card))
    run_id = spool.run_id_of(ended.run_folder) if ended.run_folder else None
    try:
        if run_id:
            cards.log_card(project.tracking_uri, path, run_id)
    except TrackingDownError as error:
        project.say(f"the card is in {path} alone: {error}")
    return path


def _report(project: Project, ended: Round, summary: Mapping[str, Any], card: Card) -> Report:
    loop, none = project.config.loop, Scores([], [], [], None)
    scores = next((scores for scores in card.scores if scores.threshold is not None), none)
    return Report(
        title=card.title,
        intro=card.intro,
        funnel=list(card.funnel),
        tables=summary["tables"],
        histogram_edges=list(scores.edges),
        histogram_pool=list(scores.pool),
        histogram_selected=list(scores.selected),
        threshold=scores.threshold,
        arms=[_arm(arm, loop.headline, loop.headline_parts) for arm in ended.arms.values()],
        headline_metric=loop.headline,
        verdict=ended.verdict,
        groups={name: list(card.groups[name]) for name in GROUPS if name in card.groups},
        receipt=dict(card.receipt),
        seconds=summary["seconds"],
        limits=list(LIMITS),
        search=_found(summary["search"]) if "search" in summary else None,
    )


def _found(search: Mapping[str, Any]) -> SearchShown:
    rungs = [
        [CandidateShown(r["candidate"], r["mean"], r["std"], r["seeds"], r["filters_own_not_used"], r["goes_on"])
         for r in rung]
        for rung in search["rungs"]
    ]  # fmt: skip
    return SearchShown(", ".join(search["metric"]), search["winner"], search["samples_seen"], search["budget"], rungs)


def _arm(arm: ArmResult, headline: str, parts: tuple[str, ...]) -> Arm:
    summary = {name: value for name, value in arm.summary().items() if name in (headline, *parts)}
    metrics = {name: (float(v["mean"]), float(v["std"]), int(v["seeds"])) for name, v in summary.items()}
    rows = [int(receipt["num_rows"]) for receipt in arm.receipts.values()]
    return Arm(arm.name, round(mean(rows)), mean(arm.precision.values()) if arm.precision else None, metrics)
