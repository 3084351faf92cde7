"""`dfn evidence`: whether the paper's findings hold at this size. Trains hundreds of small models; resumable."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from etl.commands.cli import Conf, Json, Quiet, Set, app, configured
from etl.console import emit, stop_at_signals
from etl.evidence.config import EXPERIMENTS
from etl.stage import UserError


@app.command()
def evidence(
    only: Annotated[list[str], typer.Option(help=f"Only these: {', '.join(EXPERIMENTS)}.")] = [],  # noqa: B006
    pool: Annotated[list[str], typer.Option(help="Only on these pools; default: all.")] = [],  # noqa: B006
    conf: Conf = ["evidence"],  # noqa: B006
    override: Set = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decide the paper's claims on frozen towers: Table 1, Table 2, figures 3 and 4, the fraction sweep, scarce clean
    data, and what may beat plain DFN; on pools with natural, mixed and permuted noise, over eight seeds or more.

    The datasets are encoded once, by the stages; then two processes train without Spark. Kill it anywhere and run it
    again: what is done is not trained again, whatever else is asked for. Choices are made on the development set alone.
    After each experiment OUTPUT/summary.json (claims, table1) and OUTPUT/report.html hold what is decided so far; a
    claim that does not hold at this size is a result.
    """
    if unknown := [name for name in only if name not in EXPERIMENTS]:
        raise UserError(f"--only: wanted some of {', '.join(EXPERIMENTS)}; found {', '.join(unknown)}")
    started = time.monotonic()
    with configured(conf, override, quiet) as project:
        from etl.evidence.suite import Suite

        suite = Suite(project, tuple(pool))
        stop_at_signals()
        wanted = only or project.config.evidence.experiments
        found = suite.run([name for name in EXPERIMENTS if name in wanted])
        folder = project.config.output_folder
        holds = {
            claim: {pool: verdict["holds"] for pool, verdict in pools.items()}
            for claim, pools in found["claims"].items()
        }
        told = {"claims": holds, "trained": sum(suite.trained.values()), "summary": folder / "summary.json"}
        seconds = round(time.monotonic() - started, 1)
        emit({**told, "report": folder / "report.html", "seconds": seconds}, as_json=json)
