"""All configured filters side by side, by what each would keep. Scores and selects; encodes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from etl.filters.filters import Filters
from etl.loop.loop import Loop
from etl.project import Project
from etl.stages import selection
from etl.tables import SELECTIONS


def filter_table(
    project: Project, pool: str, fraction: float, given: Mapping[str, Path | str]
) -> dict[str, dict[str, Any]]:
    """Filter -> pairs kept, Jaccard with the first filter's, and, where noise was planted, the share that is true.

    The rest of the rule is that of stages.selection. What a filter is worth is for the loop to say: it trains models.
    """
    base: selection.Config = project.config.stages.selection  # type: ignore[attr-defined]
    spark, truth = project.store.spark, Loop(project).truth_by_uid()
    is_true = spark.createDataFrame(list(truth.items()), "uid string, is_true boolean") if truth else None
    book, table, first = Filters(project, pool, given), {}, None
    for name in (*given, *project.config.filters):
        other = dict.fromkeys(("soft_cap", "random_fraction", "all"))
        keep = base.keep.model_copy(update={"top_fraction": fraction, "of": name, **other})
        rule = book.scoring(base.model_copy(update={"name": name, "keep": keep}))
        run = project.run(selection.STAGE, pool, rule)
        kept = project.store.read(pool, SELECTIONS, where=run.slice).select("uid")
        first = kept if first is None else first
        num_kept, both = kept.count(), kept.join(first, on="uid", how="left_semi").count()
        either = max(num_kept + first.count() - both, 1)
        row: dict[str, Any] = {"kept": num_kept, "jaccard_with_first": round(both / either, 3)}
        if is_true is not None:
            share = kept.join(is_true, on="uid", how="inner").agg(F.avg(F.col("is_true").cast("int"))).collect()[0][0]
            row["precision"] = None if share is None else round(share, 3)
        table[name] = row
    return table
