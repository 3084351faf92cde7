"""`dfn privacy`: what a filter gives away of the pairs that it was trained on. The work is `etl/loop/privacy.py`'s."""

from __future__ import annotations

from typing import Annotated

import typer

from etl.commands.cli import Conf, Json, Quiet, Set, app, configured
from etl.console import emit
from etl.stage import UserError


@app.command()
def privacy(
    filter: Annotated[str, typer.Argument(help="A registered one: models:/dfn_filter@champion.")],
    twins: Annotated[int, typer.Option(min=4, help="Filters that are trained for it, on halves; even.")] = 16,
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Before a filter is published: does it give away which pairs it was trained on?

    Twins of it, of the same recipe, are trained on halves of its dataset, and two attackers guess from scores who was
    in the half. An AUC of .5 is chance. The AUCs, with intervals over twins, become tags of the version. Only for
    filters that the loop trained on stored vectors, which take seconds. With half of the pairs a twin gives away rather
    more than the filter does.
    """
    if not filter.startswith("models:/"):
        raise UserError(f"privacy: wanted a registered filter such as models:/dfn_filter@champion; found {filter}")
    with configured(conf, override, quiet) as project:
        from etl.loop.privacy import check

        version, found = check(project, filter, twins)
        attacks = {"by_score": found.by_score, "calibrated": found.calibrated}
        told = {name: f"AUC {auc}{': membership shows' if auc.shows else ''}" for name, auc in attacks.items()}
        emit({"filter": version, **told, "pairs": found.num_pairs, "twins": found.num_twins}, as_json=json)
