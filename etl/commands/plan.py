"""`dfn plan`: what a pool would take in rows, bytes, hours and money. Reads rates, and `runs` where it is given one."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from etl.commands.cli import Json, Quiet, Set, app, configured, dataset_of, samples
from etl.console import emit
from etl.plan.costs import DATACOMP, HEAD, Size, costs, rounded, table
from etl.plan.rates import Rates, load_rates
from etl.stage import UserError

SUMS = ("rows", "read_tb", "core_hours", "gpu_hours", "wall_hours", "stored_tb", "dollars")


@app.command()
def plan(
    scale: Annotated[str, typer.Option(help=f"Stage by stage at one scale of DataComp: {', '.join(DATACOMP)}.")] = "",
    pairs: Annotated[str, typer.Option(help="Stage by stage for a pool of that many pairs, such as 400M.")] = "",
    rates: Annotated[list[str], typer.Option(help="YAML over conf/plan.yaml: your cluster and prices.")] = [],  # noqa: B006
    rate: Annotated[list[str], typer.Option(help="One value over them: a.b=value.")] = [],  # noqa: B006
    conf: Annotated[list[str], typer.Option("--conf", "-c", help="A project whose runs are the sample.")] = [],  # noqa: B006
    override: Set = [],  # noqa: B006
    sample: Annotated[list[str], typer.Option(help="More samples: roots of tables of the same recipe.")] = [],  # noqa: B006
    against: Annotated[str, typer.Option(help="Compare with what was taken there: a root of tables.")] = "",
    dataset: Annotated[str, typer.Option(help="Whose runs; empty: the pool.")] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a pool would take: rows, bytes, core-hours, GPU-hours, storage and money, stage by stage.

    Without --scale and --pairs: the sums for the four pools of DataComp. Costs per row are those of conf/plan.yaml, or
    with --conf what the project's own runs took; two sizes of a pool tell what is fixed from what grows. Rates of GPUs
    are assumptions until you measure yours.
    """
    if scale and pairs:
        raise UserError("plan: wanted --scale or --pairs; found both; fix: leave one out")
    if (sample or against) and not conf:
        raise UserError("plan: wanted --conf, the project of the sample; found none; fix: --conf demo")
    known = load_rates(rates, rate)
    sizes = [_size(scale, pairs)] if scale or pairs else [Size.of_scale(name) for name in DATACOMP]
    if conf:
        with configured(conf, override, quiet) as project:
            known, comparison = _measured(project, dataset_of(project, dataset), sample, against, known)
        if against:
            emit({row.pop("stage"): row for row in comparison}, as_json=json)
            return
    found = {size.name: costs(size, known) for size in sizes}
    if json:
        told = {name: {stage: rounded(cost) for stage, cost in of.items()} for name, of in found.items()}
        emit(told, as_json=True)
    elif len(sizes) == 1:
        sys.stdout.write(table("stage", found[sizes[0].name], tuple(HEAD)) + "\n")
    else:
        sys.stdout.write(table("scale", {name: of["total"] for name, of in found.items()}, SUMS) + "\n")


def _size(scale: str, pairs: str) -> Size:
    if scale:
        return Size.of_scale(scale)
    if not (number := samples(pairs, "--pairs")):
        raise UserError(f"--pairs: wanted at least one; found {pairs}")
    return Size.of_pairs(number)


def _measured(project: Any, dataset: str, more: list[str], against: str, rates: Rates) -> tuple[Rates, list[Any]]:
    """The rates by what the project's runs and the other samples took; and how that fits what was taken elsewhere."""
    from etl.plan.sample import compared, fits, measured_rates, points
    from etl.store import Store

    stores = [project.store, *(Store(project.store.spark, root) for root in more)]
    lines = fits([points(store, dataset, rates.sample_cores) for store in stores], rates)
    took = points(Store(project.store.spark, against), dataset, rates.sample_cores) if against else {}
    return measured_rates(rates, lines), compared(lines, took)
