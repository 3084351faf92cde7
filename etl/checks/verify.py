"""`dfn verify` of a project: every check over all that it has. Reads only."""

from __future__ import annotations

from collections.abc import Iterator

from etl.checks import contracts, ledger, pixels
from etl.forget.find import Place
from etl.project import Project
from etl.tables import DATASET_TABLES, PROJECT_TABLES


def places(project: Project) -> list[Place]:
    return [Place(name, project.store, name) for name in project.config.datasets]


def contents(project: Project) -> Iterator[str]:
    """Tables against contracts, shards against manifests or the hashes of ingest, vectors against their encoder."""
    for place in places(project):
        project.say(f"verify {place.label}: tables")
        for table in place.tables(DATASET_TABLES):
            yield from contracts.problems_of(place.store, place.dataset, table)
        project.say(f"verify {place.label}: shards")
        yield from pixels.shard_problems(project, place)
    for table in PROJECT_TABLES:
        if project.store.exists("", table):
            yield from contracts.problems_of(project.store, "", table)
    project.say("verify: encoders and vectors")
    yield from pixels.encoder_problems(project)


def rows(project: Project) -> Iterator[str]:
    """The ledger: rows in = rows out by status, orphans, receipts, exports, takedowns."""
    record, _ = project.encoder
    for place in places(project):
        project.say(f"verify {place.label}: ledger")
        yield from ledger.dataset_problems(place, {record.name: record.version})
    yield from ledger.project_problems(Place("", project.store, ""))
