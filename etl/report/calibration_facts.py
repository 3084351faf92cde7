"""Which pictures the page of a calibration shows. Reads ranges of shards, and tables for those that no page shows."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import functions as F

from etl.dedup.calibrate import Calibration, Nearest
from etl.project import Project
from etl.report.calibration import NAMES, Beside, render
from etl.report.pictures import thumbnail
from etl.report.subject import NSFW_ABOVE, flagged

SHOWN = 24
"""Pictures of the pool in each group."""
SIZE_PX = 144


def write_page(project: Project, pool: str, found: Calibration, path: Path) -> Path:
    uids = found.pool.rows.column("uid").to_pylist()
    named = flagged(project, pool, NSFW_ABOVE, with_leaks=False).where(F.col("uid").isin(uids))
    hidden = {row["uid"] for row in named.collect()}
    shown = [one for one in found.nearest if uids[one.number] not in hidden]
    last = [one for one in shown if one.flagged_by][-SHOWN:][::-1]
    first = [one for one in shown if not one.flagged_by][:SHOWN]
    groups = {"flagged, the least near first": last, "not flagged, the nearest first": first}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(found, {name: [_beside(found, one) for one in some] for name, some in groups.items()}))
    return path


def _beside(found: Calibration, one: Nearest) -> Beside:
    theirs = found.sets[one.of]
    left, right = found.pool.read(one.number), theirs.read(one.of_number)
    by = ", ".join(NAMES[method] for method in one.flagged_by)
    return Beside(
        pool_png=thumbnail(left, SIZE_PX) if left else None,
        evaluation_png=thumbnail(right, SIZE_PX) if right else None,
        eval_set=theirs.name,
        flagged_by=f"flagged by {by}" if by else "not flagged",
        nearest=one,
    )
