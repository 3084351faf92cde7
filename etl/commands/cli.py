"""What the commands share: the Typer app, its common options, the configured project. Touches nothing by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from etl.console import Reporter, stop_at_signals
from etl.stage import UserError

if TYPE_CHECKING:
    from etl.project import Project

app = typer.Typer(
    help="Data Filtering Networks on Spark: score and select image-text pairs, and judge the filter by the model that "
    "its dataset induces.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Conf = Annotated[list[str], typer.Option("--conf", "-c", help="Config: a path or a name in conf/. Later ones win.")]
Set = Annotated[list[str], typer.Option("--set", "-s", help="One value over the config: a.b=value.")]
Json = Annotated[bool, typer.Option("--json", help="One machine-readable last line on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Dataset = Annotated[str, typer.Option(help="The dataset; empty: the pool.")]

MENDABLE = 2
PARTIAL = 3


class State:
    is_debug = False
    is_json_lines = False


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Progress as JSON, a line each, on standard error.")
    ] = False,
) -> None:
    State.is_debug, State.is_json_lines = debug, json_lines


@contextmanager
def configured(conf: Sequence[str], overrides: Sequence[str], quiet: bool) -> Iterator[Project]:
    """The configured project, with a console to report to. The config is checked before Spark is even imported."""
    from etl.config import load

    config = load(conf, overrides)
    from etl.project import Project

    reporter = Reporter(is_quiet=quiet, is_json_lines=State.is_json_lines)
    try:
        yield Project(config, reporter.say, reporter.progress, on_session=stop_at_signals)
    finally:
        reporter.close()


def dataset_of(project: Project, name: str) -> str:
    """The dataset that was named, else the only pool."""
    if name in project.config.datasets:
        return name
    pools: list[str] = project.config.of_kind("pool")
    if name or len(pools) != 1:
        wanted = f"one of {', '.join(project.config.datasets)}" if name else "one pool"
        raise UserError(f"--dataset: wanted {wanted}; found {name or ', '.join(pools) or 'none'}; fix: name one")
    return pools[0]


def samples(text: str, option: str = "--samples-seen") -> int:
    """128M, 1.28B or a plain number; 0 for none."""
    factor = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper(), 0)
    try:
        number = float(text[:-1] if factor else text or 0) * (factor or 1)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UserError(f"{option}: wanted a number such as 12800000, 128M or 1.28B; found {text!r}")
    return round(number)
