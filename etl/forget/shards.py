"""Forgotten samples in tars: blanked in place where the tar is ours to write, told where it is not.

Ours are tars below OUTPUT and exports, wherever they are; with `blank_inputs` also those of datasets that lie on a
local disk and can be written, but for the cache, which other projects read. Touches tars, manifests, and the table
`shards`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from etl.cache import cache_folder
from etl.forget import blank
from etl.forget.files import mend
from etl.forget.find import Place
from etl.forget.kept_out import forgotten_rows
from etl.forget.rows import change
from etl.intake.stay_out import StayOut
from etl.shard_writer import MANIFEST
from etl.store import Store
from etl.tables import PAIRS, SHARDS
from etl.tar import Member, ShardError

UID_CHARS = 32
"""Of the key of an exported sample, which a number may follow: a repeat."""


@dataclass(frozen=True)
class Shards:
    """Where samples lie. `roots`: label of a dataset -> what its shards are relative to."""

    output: Path
    roots: Mapping[str, str]
    blank_inputs: bool

    def is_ours(self, path: str) -> bool:
        """Whether a tar may be written."""
        if "://" in path:
            return False
        real = Path(path).resolve()
        if real.is_relative_to(self.output.resolve()):
            return real.is_file()
        is_shared = real.is_relative_to(cache_folder().resolve())
        return self.blank_inputs and not is_shared and real.is_file() and os.access(real, os.W_OK)

    def places(self, place: Place, rows: Any) -> dict[str, set[int]]:
        """tar -> offsets of the images of these rows of pairs."""
        root, found = self.roots.get(place.label, ""), dict[str, set[int]]()
        pointers = rows.where("shard IS NOT NULL AND offset_bytes IS NOT NULL")
        for row in pointers.select("shard", "offset_bytes").toLocalIterator():
            found.setdefault(f"{root}/{row[0]}" if root else row[0], set()).add(row[1])
        return found

    def blank(self, places: Sequence[Place], keys: Store) -> dict[str, int]:
        """tar -> members that were blanked, of the tars of datasets that are ours."""
        found = {}
        for place in places:
            if place.store.exists(place.dataset, PAIRS):
                rows = forgotten_rows(keys, place.store.read(place.dataset, PAIRS))
                doomed = {tar: at for tar, at in self.places(place, rows).items() if self.is_ours(tar)}
                for tar, offsets in doomed.items():
                    found[tar] = blank.blank(Path(tar), _is_at(offsets))
                for folder in {Path(tar).parent for tar in doomed}:
                    blank.renew_manifest(folder, {Path(tar).name for tar in doomed if Path(tar).parent == folder})
        return found


def _is_at(offsets: set[int]) -> Callable[[Member], bool]:
    return lambda member: member.offset_bytes in offsets


def exports(place: Place) -> dict[str, list[dict[str, Any]]]:
    """folder -> rows of `shards`, of the exports of a dataset."""
    found: dict[str, list[dict[str, Any]]] = {}
    if place.store.exists(place.dataset, SHARDS):
        for row in place.store.read(place.dataset, SHARDS).orderBy("folder", "shard").collect():
            found.setdefault(row["folder"], []).append(row.asDict())
    return found


def exports_of(place: Place, selections: Sequence[str]) -> list[str]:
    """Folders that selections were exported to."""
    return [folder for folder, rows in exports(place).items() if {row["selection_id"] for row in rows} & {*selections}]


def mend_exports(place: Place, stay_out: StayOut, takedown_id: str) -> dict[str, str]:
    """folder -> what was done there, of every export that is known. Its manifest and `shards` say what it is now."""
    told, changed = {}, []
    for folder, rows in exports(place).items():
        there = [row for row in rows if (Path(folder) / row["shard"]).is_file()]
        if not there:
            told[folder] = "not there"
            continue
        try:
            counts = {row["shard"]: blank.blank(Path(folder) / row["shard"], _is_of(stay_out)) for row in there}
        except (ShardError, OSError) as error:
            told[folder] = f"not mended: {error}"
            continue
        for name in ("uids.npy", MANIFEST):
            mend(Path(folder) / name, stay_out, is_dry=False)
        blank.renew_file_entry(Path(folder), "uids.npy")
        entries = blank.renew_manifest(Path(folder), counts.keys())
        now = [row | entries.get(row["shard"], {}) for row in there]
        changed += [row for row, was in zip(now, there, strict=True) if row != was]
        if blanked := sum(counts.values()):
            told[folder] = f"{blanked} members blanked"
    change(place.store, place.dataset, SHARDS, changed, takedown_id)
    return told


def _is_of(stay_out: StayOut) -> Callable[[Member], bool]:
    return lambda member: stay_out.has("uid", member.name.rpartition("/")[2][:UID_CHARS])


def rows_of(place: Place, uids: Any) -> Any:
    """Rows of pairs with these uids."""
    return place.store.read(place.dataset, PAIRS).join(F.broadcast(uids), on="uid", how="left_semi")
