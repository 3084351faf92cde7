"""`dfn selftest`: a known set through the real stages. The work is `selftest.py`'s."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from etl.commands.cli import PARTIAL, Conf, Json, Quiet, Set, app, configured
from etl.console import emit


@app.command()
def selftest(
    conf: Conf = ["selftest"],  # noqa: B006
    override: Set = [],  # noqa: B006
    filter: Annotated[str, typer.Option(help="A folder or models:/NAME@ALIAS; none: one is trained.")] = "",
    out: Annotated[Path | None, typer.Option(help="A folder that executors see too; default: OUTPUT/selftest.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave that folder, to look at.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plant a known set in a pool and see that it comes out: run it on a cluster before trusting it.

    Copies of evaluation images must all be flagged, copies within the pool all be found (of JPEGs half), and mismatched
    captions be below true ones, further than chance gets. Exit code 3 where one of these fails.

    dfn selftest --conf selftest --conf cluster --out /shared/selftest
    """
    with configured(conf, override, quiet) as project:
        from etl.filters.filters import filter_folder
        from etl.loop import selftest as work
        from etl.stages import score

        folder = (out or project.config.output_folder / "selftest").absolute()
        given = filter_folder(project, filter).absolute() if filter else None
        if given:
            project.with_filter(score.STAGE, given)  # refuses what is no filter of this encoder, before all else
        checks = work.run(work.prepared(project, folder), given)
        rows = {c.name: {"planted": c.num, "wanted": f"{c.wanted:.3f}", "found": f"{c.found:.3f}",
                         "verdict": "ok" if c.is_passed else "FAILED"} for c in checks}  # fmt: skip
        emit({**rows, **({"folder": folder} if keep else {})}, as_json=json)
        if not keep:
            shutil.rmtree(folder)
        if not all(check.is_passed for check in checks):
            raise typer.Exit(PARTIAL)
