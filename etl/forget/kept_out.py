"""The tables `forgotten` and `takedowns`: what stays out, which takedowns are open, what each took. Reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.forget.contracts import FORGOTTEN, TAKEDOWNS
from etl.intake.stay_out import StayOut, key_hash_of
from etl.store import Store


def read_stay_out(store: Store) -> StayOut:
    """Everything that was ever forgotten: 32 bytes a key."""
    if not store.exists("", FORGOTTEN):
        return StayOut()
    rows = store.read("", FORGOTTEN).select("kind", "key_hash", "distance_bits").toArrow().to_pylist()
    named = frozenset(bytes.fromhex(row["key_hash"]) for row in rows if row["kind"] != "phash")
    near = frozenset((int(row["key_hash"], 16), row["distance_bits"]) for row in rows if row["kind"] == "phash")
    return StayOut(named, near)


def forgotten_rows(store: Store, frame: DataFrame) -> DataFrame:
    """The rows of `frame`, which has a uid, whose uid was forgotten."""
    keys = store.read("", FORGOTTEN).where("kind = 'uid'").select("key_hash").distinct()
    hashed = frame.withColumn("key_hash", key_hash_of("uid", F.col("uid")))
    return hashed.join(F.broadcast(keys), on="key_hash", how="left_semi").drop("key_hash")


def takedowns(store: Store) -> dict[str, dict[str, Any]]:
    """takedown_id -> {is_done, requested_by, at, facts}, in order of their beginning."""
    if not store.exists("", TAKEDOWNS):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for row in store.read("", TAKEDOWNS).orderBy("at").collect():
        known = found.setdefault(row["takedown_id"], {"requested_by": row["requested_by"], "at": row["at"]})
        known |= {"is_done": row["state"] == "done", "facts": json.loads(row["facts"])}
    return found


def forgotten_of(taken: Mapping[str, dict[str, Any]], dataset: str, selection_id: str) -> tuple[int, int]:
    """(pairs, sum of their hashes mod 2^128) that takedowns took out of a selection; see `stage.content_hash`."""
    selections = (taking["facts"].get("selections", {}) for taking in taken.values())
    known = [part for of_one in selections if (part := of_one.get(f"{dataset}.{selection_id}"))]
    return sum(part["num_rows"] for part in known), sum(int(part["hash"], 16) for part in known) % (1 << 128)
