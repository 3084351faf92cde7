"""The ledger over all tables: rows in are rows out by status, and nothing speaks of a pair that is not there. Reads.

Each finding is a line that says where, how many, and what to run. What was forgotten is counted: in ledgers of files as
a status, of a selection by the takedowns that took from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.forget.find import UID_TABLES, Place
from etl.forget.kept_out import forgotten_of, forgotten_rows, takedowns
from etl.stage import Table, content_hash
from etl.stages.ingest import NOT_PAIRS, num_late
from etl.statuses import WAITS
from etl.tables import (
    CANDIDATES,
    CRAWL_FILES,
    DUPLICATES,
    EMBEDDINGS,
    FETCHES,
    FORGOTTEN,
    INPUTS,
    PAIRS,
    RECEIPTS,
    RUNS,
    SELECTIONS,
    SHARDS,
    SIGNALS,
)  # fmt: skip

NOT_OF_PAIRS = (PAIRS, CANDIDATES, FETCHES)
"""With uids that need be in no pair: what was not fetched has none."""


def dataset_problems(place: Place, encoders: Mapping[str, str]) -> Iterator[str]:
    """Of the tables of one dataset. `encoders`: name -> version of those that are configured."""
    taken = takedowns(place.store)
    yield from _ledgers(place, taken)
    yield from _candidates(place)
    if place.store.exists(place.dataset, PAIRS):
        pairs = place.store.read(place.dataset, PAIRS)
        for table in place.tables([table for table in UID_TABLES if table not in NOT_OF_PAIRS]):
            rows = place.store.read(place.dataset, table)
            if orphans := rows.join(pairs.select("uid"), on="uid", how="left_anti").select("uid").distinct().count():
                yield f"{_name(place, table)}: {orphans:,} uids that no pair has; fix: dfn run (it is made anew)"
        yield from _complete(place, pairs, encoders)
    yield from _groups(place)
    yield from _selections(place, taken)
    yield from _exports(place)
    yield from _forgotten(place)


def _name(place: Place, table: Table) -> str:
    return f"{place.label}.{table.name}"


def _ledgers(place: Place, taken: Mapping[str, Any]) -> Iterator[str]:
    """Files in their ledgers: each line adds up, and all together are the rows of the table that they went to."""
    loose = [taking["facts"].get("unplaced", {}).get(place.label, {}) for taking in taken.values()]
    unplaced = {status: sum(part.get(status, 0) for part in loose) for part in loose for status in part}
    for ledger, table, total, left_out in (
        (INPUTS, PAIRS, "num_members", NOT_PAIRS), (CRAWL_FILES, CANDIDATES, "num_images", None),
    ):  # fmt: skip
        if not all(place.store.exists(place.dataset, one) for one in (ledger, table)):
            continue
        lines = place.store.read(place.dataset, ledger)
        sums = F.aggregate(F.map_values("num_by_status"), F.lit(0).cast("bigint"), lambda a, b: a + b)
        if bad := lines.where(sums != F.col(total)).count():
            yield f"{_name(place, ledger)}: {bad:,} files whose statuses do not add up to {total}; fix: dfn run"
        counted = lines.select(F.explode("num_by_status").alias("status", "n")).groupBy("status").agg(F.sum("n"))
        told: dict[str, int] = dict(counted.collect())
        told = {s: n for s, n in told.items() if s not in left_out} if left_out else {"ok": told.get("ok", 0)}
        rows = place.store.read(place.dataset, table)
        kind = F.col("status") if "status" in rows.columns else F.lit("ok")
        found: dict[str, int] = dict(rows.groupBy(kind.alias("s")).count().collect())
        if late := num_late(rows):
            found[WAITS] = found.get(WAITS, 0) + late
        for status in sorted(told.keys() | found.keys()):
            lost = told.get(status, 0) - found.get(status, 0)
            if not 0 <= lost <= unplaced.get(status, 0):
                yield (f"{_name(place, table)}: {found.get(status, 0):,} rows {status}, {told.get(status, 0):,} in "
                       f"{ledger.name}; fix: drop both and run dfn run")  # fmt: skip


def _candidates(place: Place) -> Iterator[str]:
    if not all(place.store.exists(place.dataset, table) for table in (CANDIDATES, FETCHES)):
        return
    candidates, fetches = (place.store.read(place.dataset, table).select("uid") for table in (CANDIDATES, FETCHES))
    if missing := candidates.join(fetches, on="uid", how="left_anti").count():
        yield f"{_name(place, FETCHES)}: {missing:,} candidates without an outcome; fix: dfn run --stage download"
    if orphans := fetches.join(candidates, on="uid", how="left_anti").count():
        yield f"{_name(place, FETCHES)}: {orphans:,} outcomes of what is no candidate; fix: drop it, dfn run"


def _complete(place: Place, pairs: DataFrame, encoders: Mapping[str, str]) -> Iterator[str]:
    """A row for each pair, where a stage gives one."""
    wanted: list[tuple[Table, Mapping[str, str]]] = [(SIGNALS, {})]
    wanted += [(EMBEDDINGS, {"encoder": name, "encoder_version": version}) for name, version in encoders.items()]
    for table, where in wanted:
        if place.store.exists(place.dataset, table):
            rows = place.store.read(place.dataset, table, where=where).select("uid")
            if missing := pairs.join(rows, on="uid", how="left_anti").count():
                of = f" under {where['encoder']}/{where['encoder_version']}" if where else ""
                yield f"{_name(place, table)}: {missing:,} pairs without a row{of}; fix: dfn run"


def _groups(place: Place) -> Iterator[str]:
    for _ in place.tables([DUPLICATES]):
        members = place.store.read(place.dataset, DUPLICATES)
        first = F.max((F.col("uid") == F.col("group_uid")).cast("int"))
        groups = members.groupBy("method", "group_uid").agg(F.count(F.lit(1)).alias("n"), first.alias("has_first"))
        if bad := groups.where("n < 2 OR has_first = 0").count():
            yield f"{_name(place, DUPLICATES)}: {bad:,} groups of one, or named after none of theirs; fix: dfn run"


def _selections(place: Place, taken: Mapping[str, Any]) -> Iterator[str]:
    if not all(place.store.exists(place.dataset, table) for table in (SELECTIONS, RECEIPTS)):
        return
    rows = place.store.read(place.dataset, SELECTIONS).groupBy("selection_id")
    hashed = rows.agg(F.count(F.lit(1)).alias("n"), *content_hash("uid", "num_repeats"))
    sums = {row["selection_id"]: row for row in hashed.collect()}
    receipts = place.store.read(place.dataset, RECEIPTS).select("selection_id", "num_rows", "hash").collect()
    for receipt in receipts:
        row = sums.pop(receipt["selection_id"], None)
        num_rows = row["n"] if row else 0
        found = (int(row["hash_high"]) << 64) + int(row["hash_low"]) if row else 0
        num_forgotten, theirs = forgotten_of(taken, place.label, receipt["selection_id"])
        if num_rows < receipt["num_rows"]:
            num_rows, found = num_rows + num_forgotten, found + theirs
        if (num_rows, found % (1 << 128)) != (receipt["num_rows"], int(receipt["hash"], 16)):
            yield (f"{_name(place, SELECTIONS)}: {receipt['selection_id']}: {num_rows:,} rows, {num_forgotten:,} of "
                   f"them forgotten, are not the {receipt['num_rows']:,} of its receipt; fix: dfn select")  # fmt: skip
    for selection_id in sums:
        yield f"{_name(place, SELECTIONS)}: {selection_id} has no receipt; fix: dfn select makes it again"


def _exports(place: Place) -> Iterator[str]:
    """Samples in the shards of an export are the repeats of its pairs that have pixels."""
    if not all(place.store.exists(place.dataset, table) for table in (SHARDS, SELECTIONS, PAIRS)):
        return
    samples = place.store.read(place.dataset, SHARDS).groupBy("selection_id").agg(F.sum("num_samples").alias("found"))
    pixels = place.store.read(place.dataset, PAIRS).where("shard IS NOT NULL").select("uid")
    chosen = place.store.read(place.dataset, SELECTIONS).join(pixels, on="uid", how="left_semi").groupBy("selection_id")
    both = samples.join(chosen.agg(F.sum("num_repeats").alias("wanted")), on="selection_id", how="left")
    for row in both.where("found IS DISTINCT FROM coalesce(wanted, 0)").orderBy("selection_id").collect():
        yield (f"{_name(place, SHARDS)}: {row['selection_id']}: {row['found']:,} samples, wanted "
               f"{row['wanted'] or 0:,}; fix: dfn export into another folder")  # fmt: skip


def _forgotten(place: Place) -> Iterator[str]:
    for table in place.tables(UID_TABLES) if place.store.exists("", FORGOTTEN) else ():
        if count := forgotten_rows(place.store, place.store.read(place.dataset, table)).count():
            yield f"{_name(place, table)}: {count:,} rows of forgotten pairs; fix: dfn forget --yes, by their uids"


def project_problems(place: Place) -> Iterator[str]:
    """Of the tables that all datasets share: runs whose rows went nowhere, takedowns that did not end."""
    if place.store.exists("", RUNS):
        runs = place.store.read("", RUNS).where("num_rows_in IS NOT NULL AND dataset IS NOT NULL")
        sums = F.aggregate(F.map_values("num_rows_by_status"), F.lit(0).cast("bigint"), lambda a, b: a + b)
        for row in runs.where(sums != F.col("num_rows_in")).orderBy("ended_at").collect():
            yield (f"runs: {row['name']} of {row['dataset']} ({row['run_id']}): {row['num_rows_in']:,} rows in, "
                   f"{sum(row['num_rows_by_status'].values()):,} out; fix: dfn run --stage {row['name']}")  # fmt: skip
    for id_, taking in takedowns(place.store).items():
        if not taking["is_done"]:
            yield f"takedowns: {id_} was begun and did not end; fix: dfn forget --yes"
