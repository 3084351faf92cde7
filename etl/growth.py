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

from etl.stage import Table
from etl.stages.collect import crawl_of
from etl.store import Store
from etl.tables import CANDIDATES, CRAWL_FILES, DUPLICATES, FETCHES, INPUTS, PAIRS, RECEIPTS, SELECTIONS

By = Literal["crawl", "file"]
REJECTED = {"candidates": "not_candidates", "fetched": "not_fetched", "pairs": "not_pairs"}
"""A step -> what does not pass it."""


def growth(store: Store, dataset: str, by: By) -> dict[str, dict[str, Any]]:
    """Source -> {candidates: n, not_candidates: {reason: n}, fetched, not_fetched, pairs, not_pairs, duplicates, kept}.

    `by`: crawl, which of what no crawl brought is the collection; or file, which is one of the crawl, or else an input.
    """
    steps = _steps(store, dataset, by)
    if not steps:
        return {}
    named = [frame.select(F.lit(step).alias("step"), "source", "status", "n") for step, frame in steps.items()]
    counts = reduce(DataFrame.unionAll, named).groupBy("source", "step", "status").agg(F.sum("n").alias("n"))
    found: dict[str, dict[str, Any]] = {}
    for row in counts.orderBy("source", "step", "status").collect():
        mine = found.setdefault(row["source"] or "", {})
        if row["status"] == "ok":
            mine[row["step"]] = int(row["n"])
        elif row["step"] in REJECTED:
            mine.setdefault(REJECTED[row["step"]], {})[row["status"]] = int(row["n"])
    order = [name for step in steps for name in (step, REJECTED.get(step))]
    return {source: {name: mine[name] for name in order if name in mine} for source, mine in found.items()}


def _steps(store: Store, dataset: str, by: By) -> Mapping[str, DataFrame]:
    """Step -> (source, status, n)."""

    def read(table: Table) -> DataFrame | None:
        return store.read(dataset, table) if store.exists(dataset, table) else None

    candidates, pairs = read(CANDIDATES), read(PAIRS)
    if candidates is not None and (files := read(CRAWL_FILES)) is not None:
        source = F.col("uri") if by == "file" else crawl_of("uri", dataset)
        steps = {"candidates": _ledger(files.withColumn("source", source))}
        sources = candidates.select("uid", F.col("file" if by == "file" else "crawl").alias("source"))
        rows = {"fetched": read(FETCHES), "pairs": pairs}
    elif by == "file":
        inputs = read(INPUTS)
        return {} if inputs is None else {"pairs": _ledger(inputs.withColumn("source", F.col("uri")))}
    elif pairs is not None:
        steps, sources, rows = {}, pairs.select("uid", "source"), {"pairs": pairs}
    else:
        return {}
    duplicates = read(DUPLICATES)
    if pairs is not None:
        ok = pairs.where("status = 'ok'").select("uid", "status")
        in_groups = None if duplicates is None else duplicates.select("uid").distinct()
        for step, among in {"duplicates": in_groups, "kept": _newest_selection(store, dataset)}.items():
            rows[step] = None if among is None else ok.join(among, on="uid", how="left_semi")
    return steps | {step: _by_source(frame, sources) for step, frame in rows.items() if frame is not None}


def _ledger(files: DataFrame) -> DataFrame:
    return files.select("source", F.explode("num_by_status").alias("status", "n"))


def _by_source(rows: DataFrame, sources: DataFrame) -> DataFrame:
    placed = rows.select("uid", "status").join(sources, on="uid", how="inner")
    return placed.groupBy("source", "status").agg(F.count(F.lit(1)).alias("n"))


def _newest_selection(store: Store, dataset: str) -> DataFrame | None:
    """The uids of the selection that was written last; None where there is none."""
    if not store.exists(dataset, RECEIPTS):
        return None
    slices = (commit.note.get("slice", {}) for commit in store.history(dataset, RECEIPTS))
    where = next((found for found in slices if "selection_id" in found), None)
    return None if where is None else store.read(dataset, SELECTIONS, where=where).select("uid")
