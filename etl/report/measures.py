"""What Spark counts for a card: columns, score distributions, duplicates, leaks, filters side by side. Reads tables."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from scipy import stats  # type: ignore[import-untyped]

from etl.report.card import Duplicates, FilterPair, Leaks, Share
from etl.report.plots import Scores
from etl.report.subject import Subject
from etl.selection.judging import draw
from etl.tables import CONTAMINATED, DUPLICATES, PAIRS, SCORES, SIGNALS

BINS = 60
VALUES_SHOWN = 12
MAX_FILTERS = 6
SAMPLED = 20_000
"""Pairs of the pool on which filters are compared; as many rows and filters come to the driver."""
UNKNOWN = "not known"
HOST = r"^[a-z][\w+.-]*://(?:[^/?#@]*@)?(?:www\.)?([^/?#:]+)"
SIDES = (64, 128, 256, 512, 1024)
WORDS = (1, 3, 6, 11, 21)


def columns(subject: Subject) -> dict[str, list[Share]]:
    """What it is -> its most frequent values in pool and selection; ranges in order, then `others`.

    Of what is known: a column without a value in the whole pool is left out.
    """
    store, pool = subject.project.store, subject.pool
    wanted = ["uid", "url", "source", "image_format", "width_px", "height_px"]
    rows = subject.judged.select("uid", "is_kept").join(store.read(pool, PAIRS).select(*wanted), on="uid", how="inner")
    values = {
        "Domains": F.nullif(F.regexp_extract(F.lower("url"), HOST, 1), F.lit("")),
        "Shorter side, px": _ranges(F.least("width_px", "height_px"), SIDES),
        "Formats": F.col("image_format"),
        "Sources": F.col("source"),
    }  # fmt: skip
    if store.exists(pool, SIGNALS):
        rows = rows.join(store.read(pool, SIGNALS).select("uid", "language", "num_words"), on="uid", how="left")
        values = {"Languages": F.col("language"), **values, "Words in the caption": _ranges(F.col("num_words"), WORDS)}
    pairs = [
        F.struct(F.lit(n).alias("column"), F.coalesce(v, F.lit(UNKNOWN)).alias("value")) for n, v in values.items()
    ]
    # One row a pair and column, folded before anything is shuffled.
    counted = rows.select(F.explode(F.array(*pairs)).alias("of"), F.col("is_kept").cast("int").alias("kept"))
    counted = counted.groupBy("of.column", "of.value").agg(F.count(F.lit(1)).alias("n"), F.sum("kept").alias("k"))
    place = Window.partitionBy("column").orderBy(F.desc("n"), "value")
    value = F.when(F.row_number().over(place) <= VALUES_SHOWN, F.col("value"))
    folded = (
        counted.withColumn("value", value).groupBy("column", "value").agg(F.sum("n").alias("n"), F.sum("k").alias("k"))
    )
    found: dict[str, list[Share]] = {name: [] for name in values}
    for row in sorted(folded.collect(), key=lambda row: (row["value"] is None, -row["n"], row["value"])):
        found[row["column"]].append(Share(row["value"] or "others", int(row["n"]), int(row["k"])))
    for name in ("Shorter side, px", "Words in the caption"):
        found[name] = sorted(found.get(name, []), key=lambda share: _first_number(share.value))
    return {name: rows for name, rows in found.items() if {row.value for row in rows} - {UNKNOWN}}


def _ranges(number: Column, edges: tuple[int, ...]) -> Column:
    """The range that a whole number is in, as text: under 64, 64 to 127 …; NULL of NULL."""
    named = F.when(number >= edges[-1], f"{edges[-1]} and more")
    for low, high in reversed(list(pairwise(edges))):
        named = named.when((number >= low) & (number < high), f"{low} to {high - 1}")
    return named.when(number < edges[0], f"under {edges[0]}")


def _first_number(name: str) -> int:
    first = name.split()[0]
    return -1 if first == "under" else int(first) if first.isdigit() else 1 << 30


def filters_of(subject: Subject) -> tuple[list[tuple[str, str]], int]:
    """(filter, version) that scored the pool: what ranked, then what the rule names, then others; and how many."""
    store, rule = subject.project.store, subject.receipt["rule"]
    if not store.exists(subject.pool, SCORES):
        return [], 0
    there = store.read(subject.pool, SCORES).select("filter", "filter_version").distinct().collect()
    known = sorted((row["filter"], row["filter_version"]) for row in there)
    named = [tuple(scored) for _, scored in sorted(rule.get("scored_by", {}).items())]
    ordered = dict.fromkeys([subject.ranking, *named, *known])
    found = [(each[0], each[1]) for each in ordered if each in known and each]
    return found[:MAX_FILTERS], len(known)


def distributions(subject: Subject, filters: list[tuple[str, str]]) -> list[Scores]:
    """Of each filter: how its scores are spread over the pool, and over what the selection keeps."""
    if not filters:
        return []
    scores = _scores(subject, filters).join(subject.judged.select("uid", "is_kept"), on="uid", how="inner")
    ends = scores.groupBy("filter", "filter_version").agg(F.min("score").alias("low"), F.max("score").alias("high"))
    limits = {(r["filter"], r["filter_version"]): (r["low"], r["high"]) for r in ends.collect() if r["low"] < r["high"]}
    if not limits:
        return []
    place = F.lit(None).cast("bigint")
    for (filter_, version), (low, high) in limits.items():
        is_it = (F.col("filter") == filter_) & (F.col("filter_version") == version)
        bin_ = F.floor((F.col("score") - F.lit(low)) / F.lit((high - low) / BINS))
        place = F.when(is_it, F.least(bin_, F.lit(BINS - 1))).otherwise(place)
    counts = scores.groupBy("filter", "filter_version", place.alias("bin")).agg(
        F.count(F.lit(1)).alias("n"), F.sum(F.col("is_kept").cast("int")).alias("k")
    )
    by_filter: dict[tuple[str, str], dict[int, Any]] = {}
    for row in counts.where("bin IS NOT NULL").collect():
        by_filter.setdefault((row["filter"], row["filter_version"]), {})[int(row["bin"])] = row
    return [
        _histogram(label(each), *limits[each], by_filter[each], subject.threshold if each == subject.ranking else None)
        for each in filters
        if each in limits
    ]


def _histogram(name: str, low: float, high: float, rows: dict[int, Any], threshold: float | None) -> Scores:
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    pool, kept = ([int(rows[i][c]) if i in rows else 0 for i in range(BINS)] for c in ("n", "k"))
    return Scores(edges, pool, kept, threshold, name)


def label(filter_: tuple[str, str]) -> str:
    return f"{filter_[0]} {filter_[1][:8]}"


def compared(subject: Subject, filters: list[tuple[str, str]], num_pool: int, share: float) -> list[FilterPair]:
    """Each two filters, on a sample of pairs that seed and uid draw."""
    if len(filters) < 2:
        return []
    rows = _scores(subject, filters).where(draw(0) < min(1.0, SAMPLED / max(num_pool, 1)))
    sampled = rows.limit(2 * SAMPLED * len(filters)).toPandas()
    frame: pd.DataFrame = sampled
    by_filter = {each: part.set_index("uid")["score"] for each, part in frame.groupby(["filter", "filter_version"])}
    found = []
    for first, second in combinations([each for each in filters if each in by_filter], 2):
        both = by_filter[first].to_frame("a").join(by_filter[second].rename("b"), how="inner").sort_index()
        found.append(_pair(label(first), label(second), both["a"].to_numpy(), both["b"].to_numpy(), share))
    return found


def _pair(first: str, second: str, a_N: Any, b_N: Any, share: float) -> FilterPair:
    """Of N pairs scored by both; ties go by the order of uids."""
    num_kept = round(share * len(a_N))
    kept = [np.isin(np.arange(len(x_N)), np.argsort(-x_N, kind="stable")[:num_kept]) for x_N in (a_N, b_N)]
    either = int((kept[0] | kept[1]).sum())
    varies = len(a_N) > 1 and bool(np.ptp(a_N)) and bool(np.ptp(b_N))
    return FilterPair(
        first, second, len(a_N), int((kept[0] & kept[1]).sum()) / either if either else 1.0,
        float((kept[0] == kept[1]).mean()) if len(a_N) else 1.0,
        float(stats.spearmanr(a_N, b_N).statistic) if varies else None,
    )  # fmt: skip


def _scores(subject: Subject, filters: list[tuple[str, str]]) -> DataFrame:
    """(filter, filter_version, uid, score): finite scores of these filters."""
    where = {"filter": tuple(f for f, _ in filters), "filter_version": tuple(v for _, v in filters)}
    rows = subject.project.store.read(subject.pool, SCORES, where=where).where(
        "score IS NOT NULL AND abs(score) < double('inf')"
    )
    return rows.select("filter", "filter_version", "uid", F.col("score").cast("double").alias("score"))


def duplicates(subject: Subject) -> list[Duplicates]:
    """By method, as known now."""
    store = subject.project.store
    if not store.exists(subject.pool, DUPLICATES):
        return []
    kept = subject.judged.select("uid", F.col("is_kept").cast("int").alias("kept"))
    rows = store.read(subject.pool, DUPLICATES).join(kept, on="uid", how="inner")
    groups = rows.groupBy("method", "group_uid").agg(F.count(F.lit(1)).alias("n"), F.sum("kept").alias("k"))
    sums = groups.groupBy("method").agg(
        F.sum("n"), F.count(F.lit(1)), F.sum("k"), F.sum((F.col("k") > 1).cast("int"))
    )  # fmt: skip
    return [Duplicates(method, *map(int, counts)) for method, *counts in sorted(map(tuple, sums.collect()))]


def leaks(subject: Subject) -> list[Leaks]:
    """By evaluation set and method, as known now."""
    store = subject.project.store
    if not store.exists(subject.pool, CONTAMINATED):
        return []
    kept = subject.judged.select("uid", F.col("is_kept").cast("int").alias("kept"))
    rows = store.read(subject.pool, CONTAMINATED).join(kept, on="uid", how="inner")
    sums = rows.groupBy("eval_set", "method").agg(F.count(F.lit(1)), F.sum("kept"))
    return [Leaks(set_, method, int(n), int(k)) for set_, method, n, k in sorted(map(tuple, sums.collect()))]
