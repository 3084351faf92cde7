"""What a round leaves to read: summary.json, the table on the terminal, report.html. Writes in OUTPUT only."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.config import folder_of
from etl.loop.arms import ArmResult, headline, spread
from etl.loop.loop import Loop, Round
from etl.loop.training import Trained
from etl.project import Project
from etl.report import Arm, CandidateShown, PairShown, Report, SearchShown, thumbnail, write
from etl.select.receipts import funnel
from etl.shard_writer import publish_json
from etl.shards import RangeReader
from etl.stages.selection import ranked_by
from etl.tables import DATASET_TABLES, PAIRS, RUNS, SCORES, SELECTIONS

BINS = 60
SHOWN = 10
"""Pairs per group: top, around the cut, bottom."""
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
    """summary.json and report.html in OUTPUT; returns the summary."""
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
    publish_json(folder / "summary.json", summary)
    write(_report(project, ended, summary), folder / "report.html")
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


def _report(project: Project, ended: Round, summary: Mapping[str, Any]) -> Report:
    loop, pool = project.config.loop, Loop(project).pool
    chosen = next((ended.arms[name] for name, arm in loop.arms.items() if arm.keep == "filter"), None)
    shown = chosen or next(iter(ended.arms.values()))
    receipt = dict(shown.receipts[loop.seeds[0]])
    scored = _scored(project, pool, receipt)
    edges, all_counts, kept_counts = _histogram(scored)
    return Report(
        title=f"{project.config.name}: {shown.name}",
        intro=project.config.intro,
        funnel=funnel(receipt),
        tables=summary["tables"],
        histogram_edges=edges,
        histogram_pool=all_counts,
        histogram_selected=kept_counts,
        threshold=receipt["facts"]["threshold"],
        arms=[_arm(arm, loop.headline, loop.headline_parts) for arm in ended.arms.values()],
        headline_metric=loop.headline,
        verdict=ended.verdict,
        groups=_groups(project, pool, scored, receipt),
        receipt=receipt,
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


def _scored(project: Project, pool: str, receipt: Mapping[str, Any]) -> DataFrame:
    """(uid, score, is_kept) of the pool under the selection's filter."""
    filter_, version = ranked_by(receipt["rule"]) or ("", "")
    where = {"filter": filter_, "filter_version": version}
    kept = project.store.read(pool, SELECTIONS, where={"selection_id": receipt["selection_id"]})
    marked = kept.select("uid", F.lit(True).alias("is_kept"))
    scores = project.store.read(pool, SCORES, where=where).where("score IS NOT NULL").select("uid", "score")
    return scores.join(marked, on="uid", how="left").select(
        "uid", "score", F.coalesce("is_kept", F.lit(False)).alias("is_kept")
    )


def _histogram(scored: DataFrame) -> tuple[list[float], list[int], list[int]]:
    """Bin edges, and the number of scored and of kept pairs in each bin."""
    low, high = scored.agg(F.min("score"), F.max("score")).collect()[0]
    if low is None or low == high:
        return [], [], []
    place = F.least(F.floor((F.col("score") - F.lit(low)) / F.lit((high - low) / BINS)), F.lit(BINS - 1))
    counted = scored.groupBy(place.alias("bin")).agg(
        F.count(F.lit(1)).alias("n"), F.sum(F.col("is_kept").cast("int")).alias("k")
    )
    rows = {int(row["bin"]): row for row in counted.collect()}
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    pool, kept = ([int(rows[i][c]) if i in rows else 0 for i in range(BINS)] for c in ("n", "k"))
    return edges, pool, kept


def _groups(project: Project, pool: str, scored: DataFrame, receipt: Mapping[str, Any]) -> dict[str, list[PairShown]]:
    threshold = receipt["facts"]["threshold"]
    if threshold is None:
        return {}
    orders = {
        "top": [F.col("score").desc(), F.col("uid")],
        "around the cut": [F.abs(F.col("score") - F.lit(threshold)), F.col("uid")],
        "bottom": [F.col("score"), F.col("uid")],
    }
    pairs = project.store.read(pool, PAIRS).select("uid", "text", "shard", "offset_bytes", "size_bytes")
    shards = project.sources[pool].shards
    root = folder_of(shards) if shards else ""
    truth = Loop(project).truth_by_uid()
    groups = {}
    with RangeReader() as reader:
        for name, order in orders.items():
            chosen = (
                scored.orderBy(*order)
                .limit(SHOWN)
                .join(pairs, on="uid", how="inner")
                .orderBy(F.col("score").desc(), "uid")
            )
            groups[name] = [
                PairShown(
                    row["uid"],
                    row["text"] or "",
                    row["score"],
                    thumbnail(reader.read(f"{root}/{row['shard']}", row["offset_bytes"], row["size_bytes"]), 192),
                    truth.get(row["uid"]),
                )
                for row in chosen.collect()
            ]
    return groups
