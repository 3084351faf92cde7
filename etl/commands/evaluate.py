"""Commands about models: evaluate one on sets with pixels, and send to MLflow what waits for it. No Spark.

`evaluate` reads the model and the sets and writes one JSON file.
"""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from etl.commands.cli import Conf, Json, Quiet, Set, app, configured
from etl.console import emit
from etl.stage import UserError
from models.records import RECORD, FilterRecord, WeightsError

if TYPE_CHECKING:
    from models.embedder import Embedder
    from models.tasks import TaskResult


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder of an encoder, of a filter, or models:/NAME@ALIAS.")],
    sets: Annotated[list[Path] | None, typer.Argument(help="Folders in clip_benchmark's WebDataset layout.")] = None,
    datacomp: Annotated[Path | None, typer.Option(help="Where DataComp's 38 sets are: those that are there.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="The towers of a filter, where they are elsewhere now.")] = None,
    tracking_uri: Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Of models:/... .")] = "",
    device: str = "cpu",
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("evaluation.json"),
    json: Json = False,
) -> None:
    """Zero-shot classification and retrieval of a CLIP. Sets that are absent are listed, and averages say over how many
    tasks they are."""
    sets = sets or []
    if not sets and datacomp is None:
        raise UserError("evaluate: wanted folders of sets, or --datacomp FOLDER; found neither")
    if missing := [path for path in [*sets, *filter(None, [datacomp, encoder])] if not path.is_dir()]:
        raise UserError(f"evaluate: wanted a folder; found none at {missing[0]}")
    with model_folders(model, tracking_uri, encoder=encoder) as (towers, heads):
        found = _evaluated(towers, heads, sets, datacomp, device)
    found = {"model": model, **found}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(jsonlib.dumps(found, indent=1) + "\n")
    if json:
        emit(found, as_json=True)
    else:
        sys.stdout.write(table(found))


def _evaluated(towers: Path, heads: Path | None, sets: Sequence[Path], datacomp: Path | None,
               device: str) -> dict[str, Any]:  # fmt: skip
    from models.embedder import Embedder
    from models.eval_sets import EvalFolder, EvalSetError
    from models.evaluate import evaluate_folder
    from models.tasks import averages, evaluate_datacomp

    try:
        opened = {str(path): EvalFolder.open(path) for path in sets}
        embedder = Embedder.load(towers, heads, device=device, num_threads=os.cpu_count() or 1)
        found: dict[str, Any] = _versions(embedder)
        found["sets"] = {name: _facts(evaluate_folder(embedder, folder)) for name, folder in opened.items()}
        if datacomp:
            results = evaluate_datacomp(embedder, datacomp)
            found["datacomp"] = {result.task.name: _task(result) for result in results}
            found["averages"] = {name: average._asdict() for name, average in averages(results).items()}
    except (EvalSetError, ValueError) as error:
        raise UserError(f"evaluate: {error}") from None
    return found


def _versions(embedder: Embedder) -> dict[str, Any]:
    filter_version = embedder.filter.version if embedder.filter else None
    return {"encoder_version": embedder.encoder.record.version, "filter_version": filter_version}


def _facts(result: Any) -> dict[str, Any]:
    return {"num_samples": result.num_samples, "num_broken": result.num_broken, **result.metrics}


def _task(result: TaskResult) -> dict[str, Any]:
    task = {"metric": result.task.metric, "size": result.task.size, "group": result.task.group, "value": result.value}
    if result.result is None:
        return {**task, "state": "absent"}
    return {**task, "state": "whole" if result.is_whole else "not whole", **_facts(result.result)}


def table(found: dict[str, Any]) -> str:
    """What `evaluate` found, as text: a line a set or task."""
    lines = [f"{'set':<26} {'samples':>15}  metrics"]
    for name, facts in found["sets"].items():
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in facts.items() if not k.startswith("num_"))
        lines.append(f"{Path(name).name:<26} {facts['num_samples']:>15,}  {metrics}")
    for name, facts in found.get("datacomp", {}).items():
        samples = f"{facts.get('num_samples', 0):,} of {facts['size']:,}"
        value = f"{facts['value']:.4f}" if facts["value"] is not None else facts["state"]
        lines.append(f"{name:<26} {samples:>15}  {facts['metric']} {value}")
    for name, average in found.get("averages", {}).items():
        value = f"{average['value']:.4f}" if average["value"] is not None else "-"
        lines.append(f"{name:<26} {value:>15}  over {average['num_tasks']} of {average['num_wanted']} tasks")
    return "\n".join([*lines, ""])


@contextmanager
def model_folders(model: str, tracking_uri: str, *, encoder: Path | None = None) -> Iterator[tuple[Path, Path | None]]:
    """(towers, heads or None) of what a user calls a model: a folder, or models:/NAME@ALIAS, fetched for the while."""
    if not model.startswith("models:/"):
        yield _of_folder(Path(model), encoder)
        return
    from models import registry
    from models.tracking import answering

    if not tracking_uri:
        raise UserError(f"wanted --tracking-uri, for {model}; found none; fix: sqlite:///OUTPUT/mlflow.db")
    with TemporaryDirectory() as temporary:
        with answering(tracking_uri):
            towers, heads = registry.resolve_model(model, Path(temporary) / "model", encoder=encoder)
        yield towers, heads


def _of_folder(folder: Path, encoder: Path | None) -> tuple[Path, Path | None]:
    if not (folder / RECORD).is_file():
        raise UserError(f"wanted a folder with {RECORD}, or models:/NAME@ALIAS; found {folder}")
    try:
        record = FilterRecord.read(folder)
    except WeightsError:
        return folder, None
    return encoder or built_encoder(record), folder


def built_encoder(record: FilterRecord) -> Path:
    """The folder of a filter's encoder among those that were built in the cache.

    Raises:
        UserError: it is not there.
    """
    from etl.cache import cache_folder
    from models.records import EncoderRecord

    for path in sorted((cache_folder() / "encoders").glob(f"*/{RECORD}")):
        try:
            if EncoderRecord.read(path.parent).version == record.encoder_version:
                return path.parent
        except WeightsError:  # of another kind of model
            continue
    raise UserError(f"wanted encoder {record.encoder_name} {record.encoder_version} in {cache_folder() / 'encoders'}; "
                    "found none; fix: name it by --encoder")  # fmt: skip


@app.command()
def sync(conf: Conf = ["local"], override: Set = [], json: Json = False, quiet: Quiet = False) -> None:  # noqa: B006
    """Send the training runs that waited for MLflow while it was down."""
    with configured(conf, override, quiet) as project:
        from models import spool

        sent = spool.sync(project.config.output_folder / "models", project.tracking_uri)
        emit({"sent": len(sent), "runs": sent}, as_json=json)
