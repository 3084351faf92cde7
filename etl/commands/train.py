"""`dfn train`: a CLIP on pixels, from scratch or from given weights, on an export or straight from a selection."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from etl.commands.cli import Conf, Dataset, Json, Quiet, Set, State, app, configured, dataset_of, samples
from etl.commands.evaluate import model_folders
from etl.console import Reporter, emit
from etl.loop.train_log import Origin, log, note_first, receipt_of_export
from etl.stage import UserError, digest
from models.records import RECORD, whole_folder


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder of this run: checkpoints, clip (the model), result.json.")],
    data: Annotated[str, typer.Option(help="Exported shards, or a corpus: a folder with manifest.json.")] = "",
    selection: Annotated[str, typer.Option(help="Or a selection, read from the pool's own shards (--conf).")] = "",
    scale: Annotated[str, typer.Option(help="laptop, debug, small, medium, large or xlarge: the one dial.")] = "laptop",
    init: Annotated[
        str, typer.Option(help="Fine-tune this: a folder of an encoder or filter, or models:/NAME@ALIAS. None: random.")
    ] = "",
    tracking_uri: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Where the run is logged, and models:/... of --init is.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    samples_seen: Annotated[str, typer.Option(help="In place of the scale's, such as 100K or 12.8M.")] = "",
    fields: Annotated[
        list[str], typer.Option("--with", "-w", help="Any other field of models.job.TrainJob: lr=1e-4, precision=bf16.")
    ] = [],  # noqa: B006
    processes: Annotated[int, typer.Option(min=1, help="Ranks on this machine, by TorchDistributor.")] = 1,
    evaluate: Annotated[str, typer.Option(help="Retrieval on this folder of shards afterwards.")] = "",
    conf: Conf = ["local"],  # noqa: B006
    override: Set = [],  # noqa: B006
    dataset: Dataset = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a CLIP on pixels. Run the same command again and it goes on from its last checkpoint, to the same weights.

    The samples seen are fixed by the scale, whatever the size of the dataset: two models are then comparable. Shards
    are verified against their manifest first. With --selection or --tracking-uri the run is logged to MLflow: `dfn
    lineage OUT` then leads to its rows. The result is an encoder folder: OUT/clip goes into a config as
    `encoder: {folder: OUT/clip}`, and into --init.

    dfn train build/mine --data EXPORT --evaluate HELD_OUT

    dfn train build/mine --selection ID --conf demo --scale small --processes 8
    """
    if bool(data) == bool(selection):
        raise UserError("train: wanted --data FOLDER or --selection ID; found " + ("both" if data else "neither"))
    from models.job import TrainJob
    from models.recipe import TrainingError

    given: dict[str, Any] = {"data": data, "out": out.absolute(), "scale": scale, "seed": seed}
    given |= {"init": first_weights(init, out.absolute(), tracking_uri)} if init else {}
    given |= {"samples_seen": samples(samples_seen)} if samples_seen else {}
    try:
        job = TrainJob.of(given | _fields(fields))
    except TrainingError as error:
        raise UserError(f"train: {error}") from None
    reporter = Reporter(is_quiet=quiet, is_json_lines=State.is_json_lines)
    origin = Origin(tracking_uri, receipt=receipt_of_export(data) if data and tracking_uri else None)
    if selection:
        with configured(conf, override, quiet) as project:
            job, origin = _from_selection(job, project, dataset_of(project, dataset), selection)
            origin = replace(origin, tracking_uri=tracking_uri or origin.tracking_uri)
    from models import pretrain  # seconds: torch

    try:
        result = _ranks(job, processes, reporter) if processes > 1 else _here(job, reporter)
        metrics = pretrain.retrieval_of(job.out / "clip", evaluate, job.out / "pairs") if evaluate else {}
    except pretrain.REFUSALS as error:
        raise UserError(str(error)) from None
    finally:
        reporter.close()
    if origin.tracking_uri:
        told = log(job, result, metrics, origin)
        reporter.say(f"MLflow run {told}" if told else "MLflow does not answer: the same command again sends the run")
    losses, seconds = result["losses"], result["seconds"]
    facts = {name: result[name] for name in ("folder", "num_pairs", "samples_seen")} | {"num_bad": len(result["bad"])}
    loss = {"loss_first": round(losses[0], 4), "loss_last": round(losses[-1], 4), "seconds": round(seconds, 1)}
    emit({**facts, **loss, **{name: round(value, 4) for name, value in metrics.items()}}, as_json=json)


def _from_selection(job: Any, project: Any, pool: str, selection: str) -> tuple[Any, Origin]:
    """The job on pointers to the pairs of a selection, and where it came from."""
    from etl.config import folder_of
    from etl.export.pointers import selection_pointers
    from etl.selection.receipts import receipt_of

    root = folder_of(project.sources[pool].shards or "") if project.sources[pool].shards else ""
    pointers = selection_pointers(project.store, pool, selection, job.out, shards_root=root)
    origin = Origin(project.tracking_uri, project.config.name, receipt_of(project.store, pool, selection))
    return job.model_copy(update={"data": str(pointers)}), origin


def first_weights(init: str, out: Path, tracking_uri: str) -> Path:
    """What `--init` names, as an encoder folder: in OUT/init-* where heads join their towers, or it was fetched.

    That stays what it was when the alias moves on: a run that was killed goes on from the weights it began with.
    """
    from models import clip

    folder = out / f"init-{digest(init)[:12]}"
    if (folder / RECORD).exists():
        return folder
    with model_folders(init, tracking_uri) as (towers, heads):
        if heads is not None:
            try:
                out.mkdir(parents=True, exist_ok=True)
                note_first(folder, heads)
                clip.fuse(towers, heads, folder)
            except ValueError as error:  # towers without a place for heads, or no heads
                raise UserError(f"--init {init}: {error}") from None
        elif init.startswith("models:/"):
            with whole_folder(folder) as new:
                shutil.copytree(towers, new, dirs_exist_ok=True)
        else:
            return towers.absolute()
    return folder


def _fields(given: list[str]) -> dict[str, Any]:
    import yaml

    if bad := [text for text in given if "=" not in text]:
        raise UserError(f"--with: wanted FIELD=VALUE; found {bad[0]!r}")
    return {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in given)}


def _here(job: Any, reporter: Reporter) -> dict[str, Any]:
    from models.pretrain import run

    found: dict[str, Any] = run(job, on_step=_progress(job, reporter), say=reporter.say)
    return found


def _ranks(job: Any, processes: int, reporter: Reporter) -> dict[str, Any]:
    from etl.loop.launch import launch
    from etl.session import session

    session("dfn train")
    return launch(job, num_processes=processes, say=reporter.say)


def _progress(job: Any, reporter: Reporter) -> Callable[[int, float], None]:
    """A live bar on a terminal; in a log twenty lines, with the loss."""
    from etl.job import Progress

    recipe, started, first = job.recipe, time.monotonic(), list[int]()
    total, every = recipe.steps * recipe.batch_size, max(1, recipe.steps // 20)

    def on_step(step: int, loss: float) -> None:
        first[:] = first or [step]
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            rows = done * recipe.batch_size
            seen = rows - first[0] * recipe.batch_size
            seconds = time.monotonic() - started
            reporter.progress(Progress("train", f"loss {loss:.3f}", rows, total, seen, seconds))

    return on_step
