"""`dfn forget`: take pairs down for good. The work is `forget/takedown.py`'s."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from etl.commands.cli import PARTIAL, Conf, Json, Quiet, Set, app, configured
from etl.console import emit
from etl.intake.blocklists import Blocklist, read_blocklists
from etl.stage import UserError

COLUMNS = ("uid", "url", "domain", "sha256", "phash")


@app.command()
def forget(
    uid: Annotated[list[str], typer.Option(help="Of a pair: 32 hex digits.")] = [],  # noqa: B006
    url: Annotated[list[str], typer.Option(help="Of an image, or of a page: all images on it.")] = [],  # noqa: B006
    domain: Annotated[list[str], typer.Option(help="With all below it; of images and of pages.")] = [],  # noqa: B006
    sha256: Annotated[list[str], typer.Option(help="Of an image's bytes: 64 hex digits.")] = [],  # noqa: B006
    phash: Annotated[list[str], typer.Option(help="Perceptual hash: 16 hex digits.")] = [],  # noqa: B006
    distance: Annotated[int, typer.Option(min=0, max=64, help="Of --phash: within so many bits.")] = 0,
    named_in: Annotated[
        list[str], typer.Option("--from", help="A text file, one of these a line (a blocklist); or table:NAME.")
    ] = [],  # noqa: B006
    blank_inputs: Annotated[bool, typer.Option("--blank-inputs", help="Write to the datasets' own tars too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without: only say what would be done.")] = False,
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take pairs down: rows of every table and their old versions, samples in shards and exports, lists, vectors,
    pictures in reports. The same content stays out from then on. Says what would go, and does it with --yes.

    What is named goes with every pair that holds the same picture. A killed run is finished by the next one. Models
    that were trained on the rows are named: what they learnt stays in their weights.
    """
    given = {"uid": uid, "url": url, "domain": domain, "sha256": sha256, "phash": phash}
    files = [path for path in named_in if not path.startswith("table:")]
    named = _named(given, distance, read_blocklists(files))
    with configured(conf, override, quiet) as project:
        from etl.forget.takedown import Takedown

        takedown = Takedown(project, blank_inputs)
        for name in set(named_in) - set(files):
            named = _named(_of_table(project, name), distance, named)
        unfinished = takedown.open()
        if not unfinished and not any((named.uids, named.urls, named.domains, named.sha256s, named.phashes)):
            raise UserError("forget: wanted something to forget; found nothing named; fix: --uid, --url, --from FILE")
        done = [takedown.finish(id_) for id_ in unfinished] if yes else []
        plan = takedown.plan(named)
        if yes and plan.is_new:
            takedown.begin(plan)
            done.append(takedown.finish(plan.takedown_id))
        shown = _summed(done) if done else plan.facts
        state = "done" if done else "nothing is left to forget" if not plan.is_new else "not done: add --yes to do it"
        emit({"state": state, "takedown": plan.takedown_id, "unfinished": unfinished, **shown}, as_json=json)
        if any(one["done"]["logs_with_values"] or "other" in one["done"]["files"] for one in done):
            raise typer.Exit(PARTIAL)


def _named(given: dict[str, list[str]], distance: int, more: Blocklist) -> Blocklist:
    """What the options name, and what files did. Raises UserError."""
    for kind, wanted in {"uid": "[0-9a-f]{32}", "sha256": "[0-9a-f]{64}", "phash": "[0-9a-f]{16}"}.items():
        if bad := [key for key in given[kind] if not re.fullmatch(wanted, key.lower())]:
            digits = wanted[-3:-1]
            raise UserError(f"--{kind}: wanted {digits} hex digits; found {bad[0][:80]!r}; fix: as in the table pairs")
    lower = {kind: frozenset(key.lower() for key in keys) for kind, keys in given.items()}
    phashes = frozenset((int(key, 16), distance) for key in lower["phash"])
    domains = frozenset(name.strip(".") for name in lower["domain"])
    return Blocklist(more.urls | {*given["url"]}, more.domains | domains, more.sha256s | lower["sha256"],
                     more.phashes | phashes, more.uids | lower["uid"])  # fmt: skip


def _of_table(project: Any, name: str) -> dict[str, list[str]]:
    """What a table names, by its columns. Raises UserError where it has none of them."""
    from etl.store import pin_table, read_pinned

    rows = read_pinned(project.store.spark, pin_table(project.store.spark, name.removeprefix("table:")))
    there = [column for column in COLUMNS if column in rows.columns]
    if not there:
        found = ", ".join(rows.columns)
        raise UserError(f"--from {name}: wanted a column of {', '.join(COLUMNS)}; found {found}; fix: rename one")
    found = rows.select(*there).toArrow()
    named = {column: [str(key) for key in found.column(column).to_pylist() if key] for column in there}
    return {column: named.get(column, []) for column in COLUMNS}


def _summed(done: list[dict[str, Any]]) -> dict[str, Any]:
    """One takedown as it is; several by their number."""
    return done[0] if len(done) == 1 else {str(number): facts for number, facts in enumerate(done)}
