"""`dfn evalset`: evaluation sets registered once, for every project. The work is `evalsets.py`'s."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from etl.commands.cli import Conf, Dataset, Json, Quiet, Set, app, configured, dataset_of
from etl.console import emit
from etl.stage import UserError

evalset = typer.Typer(help="Evaluation sets registered once: every project's pool is held against them.")
app.add_typer(evalset, name="evalset", no_args_is_help=True)


@evalset.command()
def add(
    name: Annotated[str, typer.Argument(help="Letters, digits and _.")],
    source: Annotated[str, typer.Argument(help="A glob of WebDataset tars, or the folder that they are in.")],
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Register a set: its hashes and vectors under the configured encoder are kept. A project then needs `dfn run`."""
    if not re.fullmatch(r"\w+", name) or name == "project":
        raise UserError(f"evalset add: wanted a name of letters, digits and _, not project; found {name!r}")
    if "://" not in source:
        source = str(Path(source).absolute() / "*.tar" if Path(source).is_dir() else Path(source).absolute())
    with configured(conf, [*override, f"datasets.{name}={{kind: eval, shards: {source!r}}}"], quiet) as project:
        from etl.dedup import evalsets

        emit({name: evalsets.add(project, name, source)}, as_json=json)


@evalset.command(name="list")
def list_sets(conf: Conf = ["local"], override: Set = [], json: Json = False, quiet: Quiet = False) -> None:  # noqa: B006
    """Registered sets, where they came from, and how many pictures each knows by which method."""
    with configured(conf, override, quiet) as project:
        from etl.dedup import evalsets

        names = evalsets.listed(evalsets.store_of(project))
        emit({name: evalsets.holdings(project, name) for name in names}, as_json=json)


@evalset.command()
def report(conf: Conf = ["local"], override: Set = [], json: Json = False, quiet: Quiet = False) -> None:  # noqa: B006
    """Rows of pools and filter datasets that each evaluation set flagged, by method and distance."""
    with configured(conf, override, quiet) as project:
        from etl.dedup import evalsets

        emit(evalsets.report(project), as_json=json)


@evalset.command()
def calibrate(
    originals: Annotated[int, typer.Option(min=1, help="Evaluation pictures that are edited, in 30 ways each.")] = 200,
    pool_pictures: Annotated[int, typer.Option(min=1, help="Pictures drawn from the pool.")] = 5_000,
    out: Annotated[Path | None, typer.Option(help="The page; default: OUTPUT/calibration/DATASET.html.")] = None,
    device: Annotated[str, typer.Option(help="Where edited pictures are encoded: cpu, or cuda.")] = "cpu",
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What the thresholds for leaks find with this encoder, what they flag, and what others would.

    Evaluation pictures are cropped, recompressed, captioned and so on, and looked for; pictures of the pool are held
    against all of them. A page shows the numbers and, side by side, the pictures around the thresholds: whether those
    are copies is for people to say. Changes nothing; thresholds are max_distance_bits of stages.decontaminate, and
    max_distance and max_joint_distance of stages.decontaminate_semantic.
    """
    if out and out.is_dir():
        raise UserError(f"evalset calibrate --out: wanted a file; found the folder {out}; fix: {out / 'page.html'}")
    with configured(conf, override, quiet) as project:
        from etl.dedup.calibrate import calibrate
        from etl.report.calibration_facts import write_page

        pool = dataset_of(project, dataset)
        found = calibrate(project, pool, originals, pool_pictures, device)
        page = write_page(project, pool, found, out or project.config.output_folder / "calibration" / f"{pool}.html")
        emit({**found.told(), "page": page.absolute()}, as_json=json)
