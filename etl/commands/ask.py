"""Commands that change nothing: doctor, status, diff, explain, lineage, verify. Read tables, lists, shards, MLflow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from etl.commands.cli import MENDABLE, PARTIAL, Conf, Dataset, Json, Quiet, Set, app, configured, dataset_of
from etl.console import emit
from etl.stage import UserError


@app.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(help="Of exported shards, or a corpus. None: the project.")] = None,
    ledger: Annotated[bool, typer.Option("--ledger", help="Of the project: rows in = rows out, and orphans.")] = False,
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a folder of shards against its manifest, every byte; or a project.

    Of a project: its tables against their contracts, its shards against their manifests or the hashes of ingest, its
    vectors against their encoder and its canaries. With --ledger: whether each row that went into a stage came out by a
    status, and whether every uid is that of a pair. A line for each finding, which says what to run; exit code 3.
    """
    if folder is not None:
        from etl.shards import verify as check

        if ledger:
            raise UserError("verify: wanted a folder or --ledger; found both; fix: leave one out")
        if not folder.is_dir():
            raise UserError(f"wanted a folder of shards; found none at {folder}; fix: name the one with manifest.json")
        problems, what = check(str(folder)), {"folder": str(folder)}
    else:
        with configured(conf, override, quiet) as project:
            from etl.checks import verify as checks

            problems = list(checks.rows(project) if ledger else checks.contents(project))
            what = {"project": project.config.name}
    if not json:
        sys.stdout.writelines(f"{line}\n" for line in problems)
    emit({**what, "problems": (problems if json else len(problems)) if problems else "none"}, as_json=json)
    if problems:
        raise typer.Exit(PARTIAL)


@app.command()
def doctor(
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    tasks: Annotated[int, typer.Option(min=1, help="Asked at once: at least the cluster's task slots.")] = 16,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Before any GPU time: whether driver and executors have the packages and this code, Delta, GPUs, the data, MLflow.

    Exits with 2 where something has to be mended, and says what. Writes a table of one row and removes it.
    """
    with configured(conf, override, quiet) as project:
        from etl.doctor import Doctor

        found = []
        for check in Doctor(project, tasks).checks():
            project.say(f"{check.name}: {'ok' if check.is_ok else 'FAILED'}")
            found.append(check)
        emit({check.name: str(check) for check in found}, as_json=json)
        if not all(check.is_ok for check in found):
            raise typer.Exit(MENDABLE)


@app.command()
def status(conf: Conf = ["local"], override: Set = [], json: Json = False, quiet: Quiet = False) -> None:  # noqa: B006
    """What is left of `dfn run`, stage by stage, and what it would cost; tables, and selections with their receipts.

    A stage is up to date, half done, stale (and why) or not begun. Seconds: at the pace of the last runs.
    """
    with configured(conf, override, quiet) as project:
        from etl.todo import Todo, selections, tables

        todo = Todo(project)
        stages = {f"{standing.stage}.{standing.dataset}": standing.told() for standing in todo.standings}
        found = {"tables": tables(project), "selections": dict(selections(project)), "stages": stages}
        emit({**found, "next": todo.next() or "nothing: all is up to date"}, as_json=json)


@app.command()
def growth(
    by: Annotated[str, typer.Option(help="crawl, or file: each crawl file, list, shard.")] = "crawl",
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What each crawl, release or file brought: seen, fetched, rejected and why, pairs, duplicates, kept."""
    if by not in ("crawl", "file"):
        raise UserError(f"--by: wanted crawl or file; found {by}")
    with configured(conf, override, quiet) as project:
        from etl.intake.growth import growth as found

        emit(found(project.store, dataset_of(project, dataset), by), as_json=json)  # type: ignore[arg-type]


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="A selection, from `dfn select` or `dfn status`.")],
    after: Annotated[str, typer.Argument(help="Another one; or none, with --against.")] = "",
    against: Annotated[
        Path | None, typer.Option(help="A published list: .npy of u8,u8, as DFN and DataComp give.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Of two selections also as a page, with pictures.")] = None,
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Who entered and who left between two selections, and why; or one beside a published list of uids."""
    if bool(after) == bool(against):
        raise UserError("diff: wanted a second selection or --against LIST; found " + ("both" if after else "neither"))
    if html and against:
        raise UserError("diff: wanted --html of two selections; found --against; fix: leave one out")
    with configured(conf, override, quiet) as project:
        from etl.selection import compare
        from etl.selection.receipts import receipt_named

        store, pool = project.store, dataset_of(project, dataset)
        first = receipt_named(store, pool, before)
        if against:
            emit(compare.against(store, pool, first["selection_id"], against), as_json=json)
            return
        second = receipt_named(store, pool, after)
        found = compare.diff(store, pool, first["selection_id"], second["selection_id"])
        if html:
            from etl.report.compare_facts import write_compared

            found["page"] = write_compared(project, pool, first, second, html).absolute()
        emit(found, as_json=json)


@app.command()
def explain(
    uid: Annotated[str, typer.Argument(help="Of a pair: 32 lower-case hex digits.")],
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What every stage said of one pair, and why each selection kept it or not."""
    with configured(conf, override, quiet) as project:
        from etl.selection.explain import explain as explained

        emit(explained(project.store, dataset_of(project, dataset), uid), as_json=json)


@app.command()
def lineage(
    what: Annotated[str, typer.Argument(help="NAME/VERSION, NAME@ALIAS, a run in MLflow, a selection, or a uid.")],
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """From an induced model to the rows, filter version, filter dataset and code that made it; from a selection to its
    models; from a uid to all selections that hold it and all models trained on it."""
    with configured(conf, override, quiet) as project:
        from etl.loop.lineage import Lineage
        from models.tracking import answering

        with answering(project.tracking_uri):
            emit(Lineage(project).of(what), as_json=json)
