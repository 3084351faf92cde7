"""Everything that stands on the page of two selections, from the tables. Reads; writes the page where it is told to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.project import Project
from etl.report import compared, measures
from etl.report.compared import Compared, Side
from etl.report.pictures import PairShown
from etl.report.showing import Group, shown
from etl.report.subject import Subject
from etl.selection.compare import changed, overlap
from etl.selection.judging import draw
from models.records import write_whole

MAX_REASONS = 6
"""Of each change, the most frequent: a grid of pictures each."""
Reasons = list[tuple[str, str, int]]


def write_compared(
    project: Project, pool: str, first: Mapping[str, Any], second: Mapping[str, Any], path: Path
) -> Path:
    """The page of two receipts of a pool. Raises UserError for a rule of another release."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, compared.render(gather(project, pool, first, second)))
    return path


def gather(project: Project, pool: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Compared:
    sides = [Subject(project, pool, receipt) for receipt in (first, second)]
    obstacle = sides[0].obstacle or sides[1].obstacle
    changes = changed(*(side.judged for side in sides))
    flags = [side.judged.where("is_flagged").select("uid") for side in sides]
    changes = changes.join(flags[0].unionAll(flags[1]).distinct().withColumn("is_flagged", F.lit(True)), "uid", "left")
    changes = changes.localCheckpoint()
    why = _why(changes)
    ranking = [sides[1].ranking] if sides[1].ranking else []
    limits = ["Pictures are a few of each reason, drawn by a hash; none of a flagged pair, or of one that is gone."]
    if obstacle:
        limits.append(f"One of the rules cannot be applied again ({obstacle}): reasons are told from what was stored.")
    num_flagged = changes.where("is_flagged").count()
    if num_flagged:
        limits.append(f"{num_flagged:,} of the pairs that changed are flagged or cannot be shown.")
    return Compared(
        before=_side(first), after=_side(second),
        both=int(overlap(project.store, pool, first, second)["both"]), why=why,
        scores=measures.distributions(sides[1], ranking),
        rules=_differences(first, second), limits=limits,
        **_groups(project, pool, changes, why),
    )  # fmt: skip


def _why(changes: DataFrame) -> Reasons:
    """By change, the most frequent reasons first."""
    rows = changes.groupBy("change", "reason").count().collect()
    return sorted(((r["change"], r["reason"], int(r["count"])) for r in rows), key=lambda r: (r[0], -r[2], r[1]))


def _groups(project: Project, pool: str, changes: DataFrame, why: Reasons) -> dict[str, dict[str, list[PairShown]]]:
    """`entered` and `left`: reason -> some of the pairs."""
    safe = changes.where("is_flagged IS NULL")
    wanted = {
        f"{change}: {reason}": Group(
            safe.where((F.col("change") == change) & (F.col("reason") == reason)).select("uid", "score"),
            (draw(0), F.col("uid")),
        )
        for side in ("entered", "left")
        for change, reason, _ in [row for row in why if row[0] == side][:MAX_REASONS]
    }
    pairs = shown(project, pool, wanted)
    return {
        side: {name.removeprefix(f"{side}: "): found for name, found in pairs.items() if name.startswith(f"{side}: ")}
        for side in ("entered", "left")
    }


def _side(receipt: Mapping[str, Any]) -> Side:
    threshold = receipt["facts"].get("threshold")
    return Side(receipt["rule"]["name"], str(receipt["selection_id"]), int(receipt["num_rows"]), threshold)


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(what, before, after) of the values in rules and inputs that differ."""
    values = [_flat(dict(r["rule"]), "rule.") | _flat(dict(r["inputs"]), "version of ") for r in (first, second)]
    names = dict.fromkeys([*values[0], *values[1]])
    return [(n, values[0].get(n), values[1].get(n)) for n in names if values[0].get(n) != values[1].get(n)]


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
