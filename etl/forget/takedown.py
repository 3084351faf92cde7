"""A takedown, from what was named to the record of it. Touches tables, tars, exports, files of a project; reads MLflow.

Said first, done when asked to. In this order: keys and the takedown's beginning are written down (from then on nothing
comes in again); tars, exports, files, texts and ledgers are mended; rows go, those of the sources last; old versions
go; the end is written down. Every step looks at what is there and may be done again, so a run that was killed is
finished by the next one: by that time the keys are known as hashes alone, and nothing else is needed.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from etl.config import folder_of
from etl.dedup import evalsets
from etl.forget import files, rows, shards
from etl.forget.find import Found, Place, find, hashed_keys, rows_by_table
from etl.forget.kept_out import read_stay_out, takedowns
from etl.intake.blocklists import Blocklist
from etl.intake.stay_out import StayOut
from etl.loop.lineage import Lineage
from etl.project import Project
from etl.stage import content_hash, digest, fold_hash
from etl.store import Store
from etl.tables import FORGOTTEN, PAIRS, SELECTIONS, TAKEDOWNS
from models.tracking import TrackingDownError, answering, may_answer

SHOWN = 20
"""Names of tars or files that are told one by one."""


@dataclass(frozen=True)
class Plan:
    """What a takedown would do. `facts`: as in `takedowns`, no key in it."""

    takedown_id: str
    keys: list[tuple[str, str, int]]
    facts: dict[str, Any]
    is_new: bool
    """There are rows to take down, or keys that do not stay out yet."""


@dataclass(frozen=True)
class Takedown:
    """Of one project, and of the evaluation sets that are registered."""

    project: Project
    blank_inputs: bool = False

    @cached_property
    def places(self) -> list[Place]:
        """Datasets of the config, those that an earlier one left tables of, and registered evaluation sets."""
        store, config = self.project.store, self.project.config
        names = set(config.datasets)
        if "://" not in store.root and not store.root.startswith("catalog:"):
            folders = [path for path in Path(store.root).glob("*") if path.is_dir() and path.name[0] != "_"]
            names |= {path.name for path in folders} - {"project"}
        shared = evalsets.store_of(self.project)
        registered = [Place(f"evalsets.{name}", shared, name) for name in evalsets.listed(shared)]
        return [*(Place(name, store, name) for name in sorted(names)), *registered]

    @cached_property
    def stores(self) -> list[Store]:
        return list({place.store.root: place.store for place in self.places}.values())

    def shards(self, blank_inputs: bool) -> shards.Shards:
        sources = self.project.sources
        roots = {name: folder_of(source.shards) if source.shards else "" for name, source in sources.items()}
        sets = evalsets.listed(evalsets.store_of(self.project))
        roots |= {f"evalsets.{name}": folder_of(source) for name, source in sets.items()}
        return shards.Shards(self.project.config.output_folder, roots, blank_inputs)

    def open(self) -> list[str]:
        """Takedowns that were begun and not finished."""
        return [id_ for id_, taken in takedowns(self.project.store).items() if not taken["is_done"]]

    def plan(self, named: Blocklist) -> Plan:
        """What there is of what was named, and what holds it. Reads only."""
        found = find(self.places, named)
        rows_found = (tuple(row) for row in found.keys.collect()) if found else hashed_keys(named)
        keys: list[tuple[str, str, int]] = sorted(rows_found)
        stay_out = StayOut(frozenset(bytes.fromhex(key) for kind, key, _ in keys if kind != "phash"))
        facts = {**(self._facts(found, stay_out) if found else {}), "blank_inputs": self.blank_inputs}
        known = read_stay_out(self.project.store)
        near = {(int(key, 16), bits) for kind, key, bits in keys if kind == "phash"}
        is_known = stay_out.hashes <= known.hashes and near <= known.phashes
        return Plan(digest(keys)[:16], keys, facts, bool(facts.get("pairs")) or not is_known)

    def _facts(self, found: Found, stay_out: StayOut) -> dict[str, Any]:
        counts = found.pairs.groupBy("dataset").agg(F.count("*"), F.count_if("is_named")).orderBy("dataset").collect()
        pairs = {name: {"named": of_these, "same_picture": count - of_these} for name, count, of_these in counts}
        facts: dict[str, Any] = {"pairs": pairs}
        if pairs:
            facts |= {"rows": rows_by_table(self.places, found.pairs), **self._tars(found)}
        selections = self._selections(found)
        known = files.files_of(self.project.config.output_folder, self._tables_folder)
        touched = [one for path in known if (one := files.mend(path, stay_out, is_dry=True))]
        exported = {folder for place in self.places for folder in shards.exports_of(place, _ids(selections, place))}
        return facts | {
            "selections": selections, "exports": sorted(exported), "files": _told(touched, self.project),
            "models": self._models(selections, pairs),
        }  # fmt: skip

    @property
    def _tables_folder(self) -> Path | None:
        root = self.project.config.tables_root
        return None if "://" in root or root.startswith("catalog:") else Path(root)

    def _tars(self, found: Found) -> dict[str, Any]:
        """Tars with these samples, ours and not, and pairs that are in the line of no file: packed, without pixels."""
        own, others, unplaced = set[str](), set[str](), dict[str, dict[str, int]]()
        where = self.shards(self.blank_inputs)
        for place in self.places:
            if place.store.exists(place.dataset, PAIRS):
                uids = found.pairs.where(F.col("dataset") == place.label).select("uid")
                theirs = shards.rows_of(place, uids)
                for tar in where.places(place, theirs):
                    (own if where.is_ours(tar) else others).add(tar)
                loose = rows.in_no_line(place, theirs, where.roots.get(place.label, ""))
                unplaced |= {place.label: loose} if loose else {}
        told = {"num_tars_of_others": len(others), "tars_of_others": sorted(others)[:SHOWN]} if others else {}
        return {"num_tars_to_blank": len(own), **told, **({"unplaced": unplaced} if unplaced else {})}

    def _selections(self, found: Found) -> dict[str, dict[str, Any]]:
        """dataset.selection_id -> pairs of it, and the sum of their hashes: receipts are proved with it."""
        told = {}
        for place in self.places:
            if place.store.exists(place.dataset, SELECTIONS):
                uids = F.broadcast(found.pairs.where(F.col("dataset") == place.label).select("uid"))
                theirs = place.store.read(place.dataset, SELECTIONS).join(uids, on="uid", how="left_semi")
                sums = theirs.groupBy("selection_id").agg(F.count("*").alias("n"), *content_hash("uid", "num_repeats"))
                for row in sums.orderBy("selection_id").collect():
                    folded = fold_hash(row["hash_high"], row["hash_low"])
                    told[f"{place.label}.{row['selection_id']}"] = {"num_rows": row["n"], "hash": folded}
        return told

    def _models(self, selections: dict[str, Any], pairs: dict[str, Any]) -> Any:
        """Runs that trained on these rows: what they learnt stays in their weights."""
        uri = self.project.tracking_uri
        if not may_answer(uri):
            return []
        try:
            with answering(uri):
                ids = [name.partition(".")[2] for name in selections if not name.startswith("evalsets.")]
                return Lineage(self.project).models_on(ids, sorted(pairs))
        except TrackingDownError:
            return "not known: MLflow does not answer"

    def begin(self, plan: Plan) -> None:
        """Writes down what stays out, and then that the takedown has begun."""
        for store in self.stores or [self.project.store]:
            if not store.exists("", FORGOTTEN):
                store.create("", FORGOTTEN)
            made = store.rows("", FORGOTTEN, [(plan.takedown_id, *key) for key in plan.keys])
            store.append_once(made, "", FORGOTTEN, content=plan.takedown_id, note={"slice": {}})
        self._record(plan.takedown_id, "begun", plan.facts)

    def _record(self, takedown_id: str, state: str, facts: dict[str, Any]) -> None:
        store, who = self.project.store, f"{getpass.getuser()} on {socket.gethostname()}"
        if not store.exists("", TAKEDOWNS):
            store.create("", TAKEDOWNS)
        row = (takedown_id, state, who, datetime.now(UTC), json.dumps(facts, sort_keys=True, default=str))
        made = store.rows("", TAKEDOWNS, [row])
        store.append_once(made, "", TAKEDOWNS, content=takedown_id + state, note={"slice": {}})

    def finish(self, takedown_id: str) -> dict[str, Any]:
        """Every step of a takedown that has begun; returns its record. Raises UserError where a run writes."""
        keys, facts = self.project.store, takedowns(self.project.store)[takedown_id]["facts"]
        stay_out, where = read_stay_out(keys), self.shards(facts["blank_inputs"])
        done: dict[str, Any] = {}
        steps: dict[str, Callable[[], Any]] = {
            "blanked": lambda: where.blank(self.places, keys),
            "exports": lambda: {f: told for p in self.places
                                for f, told in shards.mend_exports(p, stay_out, takedown_id).items()},
            "files": lambda: _told(self._mended(stay_out), self.project),
            "texts": lambda: rows.redact_texts(self.places, stay_out, takedown_id),
            "ledgers": lambda: sum(rows.mend_ledgers(p, where.roots.get(p.label, ""), keys, takedown_id)
                                   for p in self.places),
            "rows": lambda: {name: count for p in self.places
                             for name, count in rows.delete_rows(p, keys, takedown_id).items()},
            "logs_with_values": lambda: rows.purge(self.places),
        }  # fmt: skip
        with ExitStack() as leases:
            for place in self.places:
                for table in place.tables(rows.HAS_KEYS):
                    if not table.is_project_wide:
                        leases.enter_context(place.store.lease(place.dataset, table))
            for name, step in steps.items():
                self.project.say(f"forget {takedown_id}: {name}")
                done[name] = step()
            blanked = done.pop("blanked")
            done |= {"num_tars_blanked": len(blanked), "num_members_blanked": sum(blanked.values())}
            self._record(takedown_id, "done", {**facts, "done": done})
        return {**facts, "done": done}

    def _mended(self, stay_out: StayOut) -> list[files.Touched]:
        known = files.files_of(self.project.config.output_folder, self._tables_folder)
        return [one for path in list(known) if (one := files.mend(path, stay_out, is_dry=False))]


def _ids(selections: dict[str, Any], place: Place) -> list[str]:
    prefix = f"{place.label}."
    return [name.removeprefix(prefix) for name in selections if name.startswith(prefix)]


def _told(touched: list[files.Touched], project: Project) -> dict[str, list[str]]:
    """What -> files, relative to OUTPUT, each once."""
    found: dict[str, dict[str, None]] = {}
    for one in touched:
        name = str(one.path.relative_to(project.config.output_folder))
        found.setdefault(one.what, {})[name] = None
    return {what: list(names) for what, names in found.items()}
