"""`dfn report`: the data card of a selection, as a page. Reads tables, shards and MLflow; writes the page, and logs it
where the config names an MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from etl.commands.cli import Conf, Dataset, Json, Quiet, Set, app, configured, dataset_of
from etl.console import emit


@app.command()
def report(
    selection: Annotated[str, typer.Argument(help="From `dfn select` or `dfn status`: its id, or a name of one only.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: OUTPUT/cards/SELECTION.html.")] = None,
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The data card of a selection: one HTML page, that opens from disk without a network.

    Funnel, scores, pairs, languages, domains, duplicates and leaks, filters compared, induced models, receipt, limits.
    """
    with configured(conf, override, quiet) as project:
        from etl.report.card_facts import card_path, write_card
        from etl.selection.receipts import receipt_named

        pool = dataset_of(project, dataset)
        receipt = receipt_named(project.store, pool, selection)
        page = write_card(project, pool, receipt, out or card_path(project, receipt))
        told = {"card": page.absolute(), "selection": receipt["selection_id"], "bytes": page.stat().st_size}
        if project.config.tracking_uri:
            from models.cards import card_run, log_card

            uri = project.tracking_uri
            told["run"] = card_run(uri, project.config.name, str(receipt["selection_id"]))
            log_card(uri, page, told["run"])
        emit(told, as_json=json)
