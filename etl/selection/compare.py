"""Two selections, or a selection and a published list of uids, side by side: who entered, who left, and why. Reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from etl.selection.receipts import Replay, receipt_of, receipts
from etl.selection.uid_lists import read_list
from etl.stage import UserError
from etl.stages.selection import ranked_by
from etl.store import Store
from etl.tables import PAIRS, RUNS, SCORES, SELECTIONS

DECILES = 10
VERSIONS = ("scored_by", "blocklist_sha256", "files_sha256", "sha256")
"""Of a rule in a receipt: which filters, and which bytes of its files, it was applied with."""


def overlap(store: Store, dataset: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What two receipts share, how many pairs left and entered from the first to the second, and both thresholds."""
    ids = [str(receipt["selection_id"]) for receipt in (first, second)]
    rows = [store.read(dataset, SELECTIONS, where={"selection_id": id_}).select("uid") for id_ in ids]
    both = rows[0].join(rows[1], on="uid", how="inner").count()
    sizes = [int(first["num_rows"]), int(second["num_rows"])]
    return {
        "before": sizes[0], "after": sizes[1], "both": both, "left": sizes[0] - both, "entered": sizes[1] - both,
        "jaccard": _share(both, sum(sizes) - both),
        "threshold": [receipt["facts"].get("threshold") for receipt in (first, second)],
    }  # fmt: skip


def diff(store: Store, dataset: str, before: str, after: str) -> dict[str, Any]:
    """Overlap of two selections, and why pairs entered or left: counts by reason.

    Reasons: `new in pool`, `gone from pool`, `now VERDICT` and `no longer VERDICT` (duplicate, contaminated,
    outside_rule …), `score moved` (or another filter ranks), `threshold moved`. They need both receipts replayable.
    """
    first, second = (receipt_of(store, dataset, id_) for id_ in (before, after))
    found = overlap(store, dataset, first, second)
    replays = [Replay(store, dataset, receipt) for receipt in (first, second)]
    if obstacle := replays[0].obstacle() or replays[1].obstacle():
        return {**found, "why": f"not known: {obstacle}"}
    changes = changed(replays[0].judged(), replays[1].judged()).groupBy("change", "reason").count().collect()
    ordered = sorted(changes, key=lambda row: (row["change"], -row["count"], row["reason"]))
    return {**found, "why": {f"{row['change']}: {row['reason']}": row["count"] for row in ordered}}


def churn(store: Store, dataset: str, receipt: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the newest earlier selection by the same rule has become: how the cut moved, and who entered and left.

    The same rule on another pool, or by another version of its filters; None where there is no such selection.
    """
    rule = _apart_from_versions(receipt["rule"])
    others = receipts(store, dataset)
    others.pop(str(receipt["selection_id"]), None)
    same = {id_: other for id_, other in others.items() if _apart_from_versions(other["rule"]) == rule}
    if not same:
        return None
    key = F.substring("key", 1, 16)
    ended = store.read("", RUNS).where(F.col("dataset") == dataset)
    found = ended.where(key.isin(list(same))).agg(F.max_by(key, "ended_at").alias("id")).collect()[0]["id"]
    return {"from": found, **overlap(store, dataset, same[found], receipt)} if found else None


def _apart_from_versions(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rule.items() if name not in VERSIONS}


def changed(before: DataFrame, after: DataFrame) -> DataFrame:
    """(uid, change, reason, score: by the side that keeps it) of the pairs that only one of two judgements keeps."""
    left, right = (
        frame.select("uid", *(F.col(c).alias(f"{c}_{side}") for c in ("verdict", "rank", "is_kept")))
        for frame, side in ((before, "before"), (after, "after"))
    )
    joined = left.join(right, on="uid", how="full_outer")
    was, is_ = (F.coalesce(f"is_kept_{side}", F.lit(False)) for side in ("before", "after"))
    other = F.when(was, F.col("verdict_after")).otherwise(F.col("verdict_before"))
    reason = (
        F.when(was & other.isNull(), "gone from pool")
        .when(other.isNull(), "new in pool")
        .when(was & (other != "eligible"), F.concat(F.lit("now "), other))
        .when(other != "eligible", F.concat(F.lit("no longer "), other))
        .when(F.col("rank_before").eqNullSafe(F.col("rank_after")), "threshold moved")
        .otherwise("score moved")
    )
    change = F.when(was, "left").otherwise("entered")
    score = F.when(was, F.col("rank_before")).otherwise(F.col("rank_after")).alias("score")
    return joined.where(was != is_).select("uid", change.alias("change"), reason.alias("reason"), score)


def movers(store: Store, dataset: str, before: str, after: str, limit: int) -> pd.DataFrame:
    """Pairs that only one of two selections keeps, at most `limit` that left and as many that entered, to be looked at.

    Columns: change, reason, uid, text, shard, offset_bytes, size_bytes, score_before, score_after (NULL where it had no
    rank). Which pairs follows from their uids alone. Raises UserError where a receipt cannot be replayed.
    """
    replays = [Replay(store, dataset, receipt_of(store, dataset, id_)) for id_ in (before, after)]
    if obstacle := replays[0].obstacle() or replays[1].obstacle():
        raise UserError(f"movers: wanted receipts that can be replayed; found: {obstacle}; fix: select anew")
    first, second = (replay.judged() for replay in replays)
    order = Window.partitionBy("change").orderBy(F.md5("uid"))
    some = changed(first, second).withColumn("n", F.row_number().over(order)).where(F.col("n") <= limit)
    pairs = store.read(dataset, PAIRS).select("uid", "text", "shard", "offset_bytes", "size_bytes")
    found = some.join(pairs, on="uid", how="inner")
    for side, judged in (("before", first), ("after", second)):
        found = found.join(judged.select("uid", F.col("rank").alias(f"score_{side}")), on="uid", how="left")
    columns = ("change", "reason", "uid", "text", "shard", "offset_bytes", "size_bytes", "score_before", "score_after")
    return found.orderBy("change", "n").select(*columns).toPandas()


def against(store: Store, dataset: str, selection_id: str, path: Path) -> dict[str, Any]:
    """A selection beside a published list (`.npy` of u8,u8): Jaccard, agreement by decile of score, missing uids."""
    receipt = receipt_of(store, dataset, selection_id)
    listed = read_list(store.spark, path).select("uid").distinct()
    pairs = store.read(dataset, PAIRS).select("uid")
    ours = store.read(dataset, SELECTIONS, where={"selection_id": selection_id}).select("uid")
    theirs = listed.join(pairs, on="uid", how="left_semi")
    num_listed, num_theirs = listed.count(), theirs.count()
    both = ours.join(theirs, on="uid", how="left_semi").count()
    found: dict[str, Any] = {
        "selected": int(receipt["num_rows"]), "listed": num_listed, "not_in_the_pool": num_listed - num_theirs,
        "both": both, "jaccard": _share(both, int(receipt["num_rows"]) + num_theirs - both),
    }  # fmt: skip
    if ranking := ranked_by(receipt["rule"]):
        found["agreement_by_decile"] = _by_decile(store, dataset, ranking, ours, theirs)
    return found


def _by_decile(
    store: Store, dataset: str, ranking: tuple[str, str], ours: DataFrame, theirs: DataFrame
) -> list[dict[str, Any]]:
    """From the lowest scores to the highest: pairs, how many each side keeps, and on what share they agree."""
    where = {"filter": ranking[0], "filter_version": ranking[1]}
    scores = store.read(dataset, SCORES, where=where).where("status = 'ok'").select("uid", "score")
    edges = sorted(set(scores.approxQuantile("score", [n / DECILES for n in range(1, DECILES)], 0.001)))
    decile = sum((F.when(F.col("score") > edge, 1).otherwise(0) for edge in edges), F.lit(0))
    marked = scores.select("uid", decile.alias("decile"))
    for name, side in (("selected", ours), ("listed", theirs)):
        marked = marked.join(side.select("uid", F.lit(1).alias(name)), on="uid", how="left")
    counted = marked.fillna(0, ["selected", "listed"]).groupBy("decile")
    rows = counted.agg(
        F.count(F.lit(1)).alias("pairs"), F.sum("selected").alias("selected"), F.sum("listed").alias("listed"),
        F.avg((F.col("selected") == F.col("listed")).cast("int")).alias("agreement"),
    )  # fmt: skip
    return [row.asDict() for row in rows.orderBy("decile").collect()]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 1.0
