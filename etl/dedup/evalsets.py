"""Evaluation sets that are registered once, for every project: `dfn evalset`. Touches their tables; reads contaminated.

A set is a dataset of kind eval in a store of its own: `pairs` holds its hashes, `embeddings` its vectors under each
encoder that asked, `variants` those of edited copies. `decontaminate` and `decontaminate_semantic` of any project read
them beside the project's own evaluation datasets; a set that is registered later makes their earlier runs stale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.cache import cache_folder
from etl.stage import StageConfig, UserError
from etl.storage import NoSecret
from etl.store import Store
from etl.tables import CONTAMINATED, EMBEDDINGS, EVALSETS, LEAK_METHODS, PAIRS, VARIANTS

if TYPE_CHECKING:
    from etl.project import Project


class EvalSetsConfig(StageConfig):
    """Registered evaluation sets, see `dfn evalset`."""

    root: NoSecret = ""
    """Of their tables: a folder, a URL, or catalog:NAME; evalsets in the cache where empty."""
    use: tuple[str, ...] | None = None
    """Those that the pool is held against; null: all that are registered."""


def store_of(project: Project) -> Store:
    return Store(project.store.spark, project.config.evalsets.root or str(cache_folder() / "evalsets"))


def listed(store: Store) -> dict[str, str]:
    """Name -> source, of all that are registered."""
    if not store.exists("", EVALSETS):
        return {}
    return {row["name"]: row["source"] for row in store.read("", EVALSETS).orderBy("name").collect()}


def used(project: Project) -> dict[str, str]:
    """Name -> source, of those that this project uses. Raises UserError for one that is not registered."""
    use = project.config.evalsets.use
    if use == ():
        return {}
    found = listed(store_of(project))
    if unknown := sorted(set(use or ()) - found.keys()):
        known = ", ".join(found) or "none"
        raise UserError(f"evalsets.use: wanted registered ones ({known}); found {', '.join(unknown)}; "
                        f"fix: dfn evalset add")  # fmt: skip
    return {name: source for name, source in found.items() if use is None or name in use}


def registered(project: Project) -> dict[str, Store]:
    """Name -> the store that has it, of those that this project uses."""
    return dict.fromkeys(used(project), store_of(project))


def keeper(project: Project, sources: Mapping[str, str]) -> Project:
    """A project whose datasets are evaluation sets: stages that it runs write to their store."""
    from etl.config import DatasetConfig

    store = store_of(project)
    update: dict[str, Any] = {
        "datasets": {name: DatasetConfig(kind="eval", shards=source) for name, source in sources.items()},
        "tables": store.root, "evalsets": EvalSetsConfig(use=()), "more_encoders": {}, "image_models": (),
    }  # fmt: skip
    made = dataclasses.replace(project, config=project.config.model_copy(update=update), runs=[])
    vars(made)["store"] = store  # the session runs
    return made


def embed_used(project: Project) -> None:
    """Vectors of the used sets and of edited copies under the project's encoder, where they lack, from their shards."""
    from etl.stages import embed

    if project.config.encoder.published:  # nobody has those of other pictures
        return
    sources = used(project)
    made = keeper(project, sources)
    for name in sources:
        made.run(embed.STAGE, name)


def add(project: Project, name: str, source: str) -> dict[str, Any]:
    """Registers a set, or brings one up to date: what it holds.

    Raises:
        UserError: its name belongs to another source, or no picture could be read.
    """
    from etl.stages import embed, ingest

    store = store_of(project)
    known = listed(store)
    if known.get(name, source) != source:
        raise UserError(f"evalset {name}: wanted {known[name]}, its source; found {source}; fix: another name")
    made = keeper(project, {name: source})
    made.run(ingest.STAGE, name)
    if not project.config.encoder.published:
        made.run(embed.STAGE, name)
    held = holdings(project, name)
    if not held["sha256"]:
        raise UserError(f"evalset {name}: wanted pictures in {source}; found none; fix: a glob of WebDataset tars")
    if name not in known:
        if not store.exists("", EVALSETS):
            store.create("", EVALSETS)
        row = store.rows("", EVALSETS, [(name, source, datetime.now(UTC))])
        store.append_once(row, "", EVALSETS, content=name, note={"slice": {}})
    return {**held, "source": source}


def holdings(project: Project, name: str) -> dict[str, Any]:
    """{source, sha256, phash, semantic, edited: pictures that the set knows by each}; the last two under the project's
    encoder, by vectors, and by those of edited copies."""
    store, (record, _) = store_of(project), project.encoder
    row = store.read(name, PAIRS).where("status = 'ok'").agg(F.count("sha256"), F.count("phash")).collect()[0]
    where = {"encoder": record.name, "encoder_version": record.version}
    by_vector = {
        method: store.read(name, table, where=where).where("status = 'ok'").count() if store.exists(name, table) else 0
        for method, table in (("semantic", EMBEDDINGS), ("edited", VARIANTS))
    }
    return {"source": listed(store).get(name), "sha256": int(row[0]), "phash": int(row[1]), **by_vector}


def report(project: Project) -> dict[str, Any]:
    """DATASET.SET -> {rows: flagged by any method, METHOD: {distance, rounded up: rows}, edited: {EDIT: rows to which
    none is as near as one so edited, by any method}}; zeros for what was not seen.

    Of pools and filter datasets, by the project's own evaluation and development sets and the registered ones.
    """
    names = sorted({*project.config.of_kind("eval", "dev"), *used(project)})
    found: dict[str, Any] = {}
    for dataset in project.config.of_kind("pool", "filter"):
        if not project.store.exists(dataset, CONTAMINATED):
            raise UserError(f"evalset report: wanted {dataset} decontaminated; found it is not; fix: dfn run")
        rows = project.store.read(dataset, CONTAMINATED)
        flagged = {name: {"rows": 0, **dict.fromkeys((*LEAK_METHODS, "edited"), 0)} for name in names}
        for name, parts in _by_distance(rows).items():
            flagged.setdefault(name, {}).update(parts)
        found |= {f"{dataset}.{name}": parts for name, parts in flagged.items()}
    return found


def _by_distance(rows: DataFrame) -> dict[str, dict[str, Any]]:
    """Set -> {rows, METHOD: {distance: rows}}: bits as they are, distances of vectors by hundredths."""
    hundredths = F.ceil(F.round(F.col("distance") * 100, 3)) / 100
    step = F.when(F.col("method").startswith("semantic"), hundredths).otherwise(F.col("distance"))
    counts = rows.groupBy("eval_set", "method", step.cast("double").alias("step")).count()
    found: dict[str, dict[str, Any]] = {}
    for row in rows.groupBy("eval_set").agg(F.countDistinct("uid").alias("n")).collect():
        found[row["eval_set"]] = {"rows": int(row["n"])}
    for row in counts.orderBy("eval_set", "method", "step").collect():
        found[row["eval_set"]].setdefault(row["method"], {})[f"{row['step']:g}"] = int(row["count"])
    if "edit" in rows.columns:  # not of before there were edits
        closest = rows.groupBy("eval_set", "uid").agg(
            F.min("edit").alias("edit"), F.count("edit").alias("n"), F.count("*").alias("of")
        )
        edited = closest.where("n = of").groupBy("eval_set", "edit").count().orderBy("eval_set", "edit")
        for row in edited.collect():
            found[row["eval_set"]].setdefault("edited", {})[row["edit"]] = int(row["count"])
    return found
