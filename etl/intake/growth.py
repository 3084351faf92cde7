"""What came with each crawl or file, and what became of it. Reads tables; changes nothing.

For each source: images seen, candidates, fetched, pairs, and at each of these steps what was rejected, by reason; of
the pairs that are ok those that have duplicates, and those that the newest selection keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stages.collect import crawl_of
from etl.store import Store
from etl.tables import CANDIDATES, CRAWL_FILES, DUPLICATES, FETCHES, INPUTS, PAIRS, RECEIPTS, SELECTIONS

By = Literal["crawl", "file"]
READ = (CANDIDATES, CRAWL_FILES, DUPLICATES, FETCHES, INPUTS, PAIRS)
REJECTED = {"candidates": "not_candidates", "fetched": "not_fetched", "pairs": "not_pairs"}
"""A step -> what does not pass it."""


def growth(store: Store, dataset: str, by: By) -> dict[str, dict[str, Any]]:
    """`counts` of a dataset's tables."""
    tables = {table.name: store.read(dataset, table) for table in READ if store.exists(dataset, table)}
    if store.exists(dataset, RECEIPTS):
        slices = (commit.note.get("slice", {}) for commit in store.history(dataset, RECEIPTS))
        if newest := next((where for where in slices if "selection_id" in where), None):
            tables["selections"] = store.read(dataset, SELECTIONS, where=newest)
    return counts(tables, dataset, by)


def counts(tables: Mapping[str, DataFrame], dataset: str, by: By) -> dict[str, dict[str, Any]]:
    """Source -> {candidates: n, not_candidates: {reason: n}, fetched, not_fetched, pairs, not_pairs, duplicates, kept}.

    `by`: crawl, which of what no crawl brought is the collection; or file, which is one of the crawl, or else an input.
    `tables`: those of READ that there are, and the newest selection.
    """
    steps = _steps(tables, dataset, by)
    if not steps:
        return {}
    named = [frame.select(F.lit(step).alias("step"), "source", "status", "n") for step, frame in steps.items()]
    summed = reduce(DataFrame.unionAll, named).groupBy("source", "step", "status").agg(F.sum("n").alias("n"))
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(summed.collect(), key=lambda row: (row["source"] or "", row["status"])):
        mine = found.setdefault(row["source"] or "", {})
        if row["status"] == "ok":
            mine[row["step"]] = int(row["n"])
        elif row["step"] in REJECTED:
            mine.setdefault(REJECTED[row["step"]], {})[row["status"]] = int(row["n"])
    order = [name for step in steps for name in (step, REJECTED.get(step))]
    return {source: {name: mine[name] for name in order if name in mine} for source, mine in found.items()}


def _steps(tables: Mapping[str, DataFrame], dataset: str, by: By) -> dict[str, DataFrame]:
    """Step -> (source, status, n)."""
    pairs = tables.get("pairs")
    steps: dict[str, DataFrame] = {}
    if "candidates" in tables and "crawl_files" in tables:
        source = F.col("uri") if by == "file" else crawl_of("uri", dataset)
        steps["candidates"] = _ledger(tables["crawl_files"].withColumn("source", source))
        sources = tables["candidates"].select("uid", F.col("file" if by == "file" else "crawl").alias("source"))
    elif by == "file":
        return {"pairs": _ledger(tables["inputs"].withColumn("source", F.col("uri")))} if "inputs" in tables else {}
    elif pairs is not None:
        sources = pairs.select("uid", "source")
    else:
        return {}
    rows = {"fetched": tables.get("fetches"), "pairs": pairs}
    if pairs is not None:
        ok = pairs.where("status = 'ok'").select("uid", "status")
        for step, among in {"duplicates": tables.get("duplicates"), "kept": tables.get("selections")}.items():
            rows[step] = None if among is None else ok.join(among.select("uid"), on="uid", how="left_semi")
    return steps | {step: _by_source(frame, sources) for step, frame in rows.items() if frame is not None}


def _ledger(files: DataFrame) -> DataFrame:
    return files.select("source", F.explode("num_by_status").alias("status", "n"))


def _by_source(rows: DataFrame, sources: DataFrame) -> DataFrame:
    placed = rows.select("uid", "status").join(sources, on="uid", how="inner")
    return placed.groupBy("source", "status").agg(F.count(F.lit(1)).alias("n"))
