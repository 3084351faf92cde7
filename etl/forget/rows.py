"""Forgotten rows out of every table, and what names them in others: groups of duplicates, ledgers, receipts, runs.

Touches tables through `store.py`. What is forgotten is known by the table `forgotten`, so that each step can be done
again after a kill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from etl.forget.find import UID_TABLES, Place
from etl.forget.kept_out import forgotten_rows
from etl.intake.stay_out import StayOut
from etl.stage import Table
from etl.stages.ingest import num_late
from etl.statuses import WAITS
from etl.store import Store
from etl.tables import CANDIDATES, CRAWL_FILES, DUPLICATES, INPUTS, PAIRS, PROMOTIONS, RECEIPTS, RUNS

TEXTS_OF = ((RECEIPTS, ("rule", "facts")), (RUNS, ("config_json", "facts_json")), (PROMOTIONS, ("reason", "facts")))
"""Tables with texts that may name a pair: the one at the cut, say."""
LEDGERS = ((INPUTS, PAIRS, "shard"), (CRAWL_FILES, CANDIDATES, "file"))
"""A ledger of files, the table that its rows went to, and which column names the file there."""
HAS_KEYS = (*UID_TABLES, *(table for table, _ in TEXTS_OF), INPUTS, CRAWL_FILES)


def note(takedown_id: str) -> dict[str, Any]:
    return {"slice": {}, "forget": takedown_id}


def redact_texts(places: Sequence[Place], stay_out: StayOut, takedown_id: str) -> int:
    """Receipts, runs and decisions name no forgotten pair; returns how many rows had to be changed."""
    changed = 0
    for store, dataset, table, columns in _texts(places):
        rows = []
        for row in store.read(dataset, table).collect():
            texts = {name: stay_out.redacted(row[name] or "") for name in columns}
            if any(count for _, count in texts.values()):
                new = {name: text if count else row[name] for name, (text, count) in texts.items()}
                rows.append({**{name: row[name] for name in table.key}, **new})
        change(store, dataset, table, rows, takedown_id)
        changed += len(rows)
    return changed


def change(store: Store, dataset: str, table: Table, rows: Sequence[Mapping[str, Any]], takedown_id: str) -> None:
    """Columns of some rows, in one commit. `rows`: the key, and the columns that are other now; all alike."""
    if not rows:
        return
    schema = store.schema(dataset, table)
    fields = [StructField(name, schema[name].dataType) for name in rows[0]]
    values = [tuple(row[field.name] for field in fields) for row in rows]
    given = store.spark.createDataFrame(values, StructType(fields))
    # What else is in the rows is not fetched: a timestamp would come back in another zone.
    there = store.read(dataset, table).drop(*[name for name in rows[0] if name not in table.key])
    made = there.join(F.broadcast(given), on=list(table.key), how="inner").select(*schema.names)
    store.merge(made, dataset, table, note=note(takedown_id), do="update")


def _texts(places: Sequence[Place]) -> Iterator[tuple[Store, str, Table, tuple[str, ...]]]:
    """Each table once: those of a project are in no dataset."""
    seen = set[str]()
    for place in places:
        for table, columns in TEXTS_OF:
            name = place.store.name(place.dataset, table)
            if name not in seen and place.store.exists(place.dataset, table):
                yield place.store, place.dataset, table, columns
            seen.add(name)


def mend_ledgers(place: Place, root: str, keys: Store, takedown_id: str) -> int:
    """In each ledger, what had a status is `forgotten`: rows in are still rows out. Returns how many lines changed.

    `root`: before each shard there is in the uri of its file. Rows whose file is not known are in the takedown's facts.
    """
    changed = 0
    for ledger, source, column in LEDGERS:
        if not all(place.store.exists(place.dataset, table) for table in (ledger, source)):
            continue
        history = place.store.history(place.dataset, ledger)
        if any(commit.note.get("forget") == takedown_id for commit in history):  # else they would be counted twice
            continue
        gone = by_file(place, source, column, root, keys)
        lines = place.store.read(place.dataset, ledger).where(F.col("uri").isin(list(gone)))
        counted = lines.select("uri", "num_by_status").collect()
        rows = [{"uri": uri, "num_by_status": _moved(counts, gone[uri])} for uri, counts in counted]
        change(place.store, place.dataset, ledger, rows, takedown_id)
        changed += len(rows)
    return changed


def by_file(place: Place, source: Table, column: str, root: str, keys: Store) -> dict[str, dict[str, int]]:
    """uri of a file -> status -> forgotten rows of `source` that came from it; '' where no file is named."""
    rows = forgotten_rows(keys, place.store.read(place.dataset, source))
    status = "status" if "status" in rows.columns else "'ok'"
    found: dict[str, dict[str, int]] = {}
    for row in rows.groupBy(F.col(column).alias("file"), F.expr(status).alias("status")).count().collect():
        uri = "" if row["file"] is None else f"{root}/{row['file']}" if source is PAIRS and root else row["file"]
        found.setdefault(uri, {})[row["status"]] = int(row["count"])
    return found


def in_no_line(place: Place, pairs: DataFrame, root: str) -> dict[str, int]:
    """status -> those of `pairs` whose file `inputs` does not name: packed ones, and those that are or were without
    pixels."""
    counts = pairs.groupBy("shard", "status").count().collect()
    uris = {row["shard"]: f"{root}/{row['shard']}" if root else row["shard"] for row in counts if row["shard"]}
    known = set[str]()
    if uris and place.store.exists(place.dataset, INPUTS):
        lines = place.store.read(place.dataset, INPUTS).where(F.col("uri").isin(list(uris.values())))
        known = {row["uri"] for row in lines.select("uri").collect()}
    found: dict[str, int] = {}
    for row in counts:
        if uris.get(row["shard"]) not in known:
            found[row["status"]] = found.get(row["status"], 0) + row["count"]
    if late := num_late(pairs):
        found[WAITS] = found.get(WAITS, 0) + late
    return found


def _moved(counts: Mapping[str, int], gone: Mapping[str, int]) -> dict[str, int]:
    """Counts by status, with those that are gone under `forgotten`. Never below zero: a ledger may be older."""
    taken = {status: min(count, counts.get(status, 0)) for status, count in gone.items()}
    left = {status: count - taken.get(status, 0) for status, count in counts.items()}
    left["forgotten"] = left.get("forgotten", 0) + sum(taken.values())
    return {status: count for status, count in left.items() if count}


def delete_rows(place: Place, keys: Store, takedown_id: str) -> dict[str, int]:
    """dataset.table -> rows that went. The sources last, so that a killed run finds what it was about."""
    found = {}
    for table in place.tables(UID_TABLES):
        doomed = forgotten_rows(keys, place.store.read(place.dataset, table)).select(*table.key).localCheckpoint()
        if count := doomed.count():
            place.store.merge(doomed, place.dataset, table, note=note(takedown_id), do="delete")
            found[f"{place.label}.{table.name}"] = count
        if table is DUPLICATES:
            _regroup(place, keys, takedown_id)
    return found


def _regroup(place: Place, keys: Store, takedown_id: str) -> None:
    """No group is named after a forgotten pair, and none has a single member.

    Distances stay what they were to the pair that is gone, until dedup runs again: it will, since its rows changed.
    """
    members = place.store.read(place.dataset, DUPLICATES)
    named = members.select("method", F.col("group_uid").alias("uid")).distinct()
    leaderless = forgotten_rows(keys, named).withColumnRenamed("uid", "group_uid")
    theirs = members.join(leaderless, on=["method", "group_uid"], how="left_semi")
    leaders = theirs.groupBy("method", "group_uid").agg(F.min("uid").alias("leader"))
    distance = F.when(F.col("uid") == F.col("leader"), F.lit(0.0)).otherwise(F.col("distance")).cast("float")
    made = theirs.join(leaders, on=["method", "group_uid"], how="inner").select(
        "method", "uid", F.col("leader").alias("group_uid"), distance.alias("distance")
    )
    _merge_some(made, place, takedown_id, "update")
    sizes = place.store.read(place.dataset, DUPLICATES).groupBy("method", "group_uid")
    alone = sizes.agg(F.count(F.lit(1)).alias("n"), F.min("uid").alias("uid")).where("n = 1").select("method", "uid")
    _merge_some(alone, place, takedown_id, "delete")


def _merge_some(frame: DataFrame, place: Place, takedown_id: str, do: Any) -> None:
    kept = frame.localCheckpoint()
    if not kept.isEmpty():
        place.store.merge(kept, place.dataset, DUPLICATES, note=note(takedown_id), do=do)


def purge(places: Sequence[Place]) -> list[str]:
    """Old versions of all these tables go; returns those whose log could not be mended."""
    found = dict[str, bool]()
    for place in places:
        for table in place.tables(HAS_KEYS):
            name = place.store.name(place.dataset, table)
            found[name] = found[name] if name in found else place.store.purge(place.dataset, table)
    return [name for name, is_clean in found.items() if not is_clean]
