"""Training runs in MLflow, by way of a spool, so that an outage of MLflow costs a run seconds and loses nothing.

A run is first written as JSON lines beside its folder (NAME.mlflow.jsonl), then sent line by line; NAME.mlflow.json
says how far that got. What is not sent is replayed by the next run, or by `dfn sync`. Sending a line twice changes
nothing: the run is found again by its tag, and MLflow keeps one of two equal points. A run that names a parent makes
the parent's run first, whichever waits longer. Touches these files and MLflow.
"""

import json
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from models.filters import HEADS, Filter
from models.records import RECORD, EncoderRecord, code_commit, write_whole
from models.tracking import TrackingDownError, answering, experiment_of

AT_ONCE = 1000  # metrics in one call: MLflow's limit
PARAMS_AT_ONCE = 100  # likewise
LOST_SECONDS = 6
"""What failures may have cost this process before it stops trying: 30 s in all, with the last one."""
RUN_TAG = "dfn.run"  # names a run before MLflow has
PACKAGES = "mlflow numpy open-clip-torch pandas pillow pyarrow pydantic safetensors timm torch torchvision transformers"
Point = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""
_lost = {"seconds": 0.0}


def log_training_run(
    tracking_uri: str,
    experiment: str,
    run_name: str,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    step_losses: Sequence[float],
    inputs: Mapping[str, int],
    folder: Path,
    tags: Mapping[str, str] | None = None,
    receipt: Mapping[str, Any] | None = None,
    system: Sequence[Point] = (),
    parent: Path | None = None,
) -> str | None:
    """Logs a finished run: recipe, losses, metrics, receipt, environment, and its heads as artefacts.

    Args:
        inputs: path of each Delta table that was read -> the version read. Named, never hashed.
        folder: of what was trained: heads, or a whole encoder, of which the record alone is sent: it names its weights.
        receipt: of the selection that it was trained on; its id and hash become tags, as the commit of the code does.
        system: what `models.system_metrics` saw while it ran.
        parent: of a run that `begin` opened in the same folder of runs.

    Returns:
        The run's id; None where MLflow does not answer: the run waits beside its folder.
    """
    is_filter = (folder / HEADS).exists()
    versions = _versions(folder, is_filter)
    versions |= {"git_commit": commit} if (commit := code_commit()) else {}
    if receipt:
        versions |= {"selection_id": str(receipt["selection_id"]), "selection_hash": str(receipt["hash"])}
    now = int(time.time() * 1000)
    points = [("loss", loss, now, step) for step, loss in enumerate(step_losses)]
    points += [(name, value, now, len(step_losses)) for name, value in metrics.items()]
    started_ms = min([now, *(at for _, _, at, _ in system)])
    start = _start(experiment, run_name, started_ms, {**versions, **(tags or {})})
    lines: list[dict[str, Any]] = [
        {"start": start | ({"parent": _spool(parent).name} if parent else {})},
        {"params": {name: str(value) for name, value in params.items()}},
        *({"metrics": part} for part in _parts([*points, *system], AT_ONCE)),
        {"inputs": dict(inputs)},
        {"files": {"environment.json": environment(), **({"receipt.json": dict(receipt)} if receipt else {})}},
        {"artifacts": {"heads": folder.name} if is_filter else {"encoder": f"{folder.name}/{RECORD}"}},
        {"end": {"at_ms": now}},
    ]  # fmt: skip
    spool = _spool(folder)
    write_whole(spool, "".join(json.dumps(line, default=str) + "\n" for line in lines))
    write_whole(_state(spool), json.dumps({"lines": 0}))
    return ship_quickly(spool, tracking_uri)


def begin(run_folder: Path, tracking_uri: str, experiment: str, run_name: str, tags: Mapping[str, str]) -> str | None:
    """Opens a run that others name as their parent, or finds it: nothing is opened twice. `end` closes it.

    Args:
        run_folder: whose name it has; the folder need not be there, the one around it is made.

    Returns:
        As `log_training_run`.
    """
    spool = _spool(run_folder)
    if not _state(spool).exists():
        spool.parent.mkdir(parents=True, exist_ok=True)
        line = {"start": _start(experiment, run_name, int(time.time() * 1000), tags)}
        write_whole(spool, json.dumps(line) + "\n")
        write_whole(_state(spool), json.dumps({"lines": 0}))
    return ship_quickly(spool, tracking_uri)


def end(run_folder: Path, tracking_uri: str, *, params: Mapping[str, Any], metrics: Mapping[str, float], step: int,
        tags: Mapping[str, str], inputs: Mapping[str, int], files: Mapping[str, Any],
        texts: Mapping[str, str]) -> str | None:  # fmt: skip
    """What a run that `begin` opened has found, in place of what was said before; said again it changes nothing.

    Args:
        step: of the metrics.
        files: name.json or name.yaml -> content. texts: name -> text.

    Returns:
        As `log_training_run`.
    """
    spool = _spool(run_folder)
    first, *known = (json.loads(line) for line in spool.read_text().splitlines())
    points = [(name, value, first["start"]["at_ms"], step) for name, value in metrics.items()]
    said = [{"params": {name: str(value) for name, value in params.items()}}, {"tags": dict(tags)},
            *({"metrics": part} for part in _parts(points, AT_ONCE)), {"inputs": dict(inputs)},
            {"files": dict(files)}, {"texts": dict(texts)}]  # fmt: skip
    said = json.loads(json.dumps(said, default=str))
    if known[:-1] != said:
        state = json.loads(_state(spool).read_text())
        # First the state: of a kill between the two, what was said before is sent again.
        write_whole(_state(spool), json.dumps(state | {"lines": min(state["lines"], 1), "is_whole": False}))
        lines = [first, *said, {"end": {"at_ms": int(time.time() * 1000)}}]
        write_whole(spool, "".join(json.dumps(line) + "\n" for line in lines))
    return ship_quickly(spool, tracking_uri)


def ship_quickly(spool: Path, tracking_uri: str) -> str | None:
    """`ship`, for a run that must go on: its id, or None where MLflow does not answer or has not for too long."""
    if _lost["seconds"] > LOST_SECONDS:
        return None
    started = time.monotonic()
    try:
        with answering(tracking_uri):
            return ship(spool, tracking_uri)
    except TrackingDownError:
        _lost["seconds"] += time.monotonic() - started
        return None


def ship(spool: Path, tracking_uri: str) -> str:
    """Sends the lines that have not been sent, and returns the run's id."""
    client, state = mlflow.MlflowClient(), json.loads(_state(spool).read_text())
    lines = [json.loads(line) for line in spool.read_text().splitlines()]
    if "run_id" not in state:
        state["run_id"] = _run_id(client, lines[0]["start"], tracking_uri, spool.parent)
    for number, line in enumerate(lines[state["lines"] :], start=state["lines"] + 1):
        ((kind, content),) = line.items()
        _SEND[kind](client, state["run_id"], content, spool.parent)
        write_whole(_state(spool), json.dumps(state | {"lines": number, "is_whole": number == len(lines)}))
    return str(state["run_id"])


def pending(folder: Path) -> list[Path]:
    """Spools in a folder of runs that are not sent whole, oldest first."""
    states = [(path, json.loads(path.read_text())) for path in folder.glob("*.mlflow.json")]
    found = [path.with_suffix(".jsonl") for path, state in states if not state.get("is_whole")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def sync(folder: Path, tracking_uri: str) -> list[str]:
    """Sends what waits in a folder of runs: the ids. Raises TrackingDownError."""
    waiting = pending(folder)
    if not waiting:
        return []
    with answering(tracking_uri):
        return [ship(spool, tracking_uri) for spool in waiting]


def run_id_of(run_folder: Path) -> str | None:
    """The id of the run that made a folder, where it has been sent."""
    state = _state(_spool(run_folder))
    return json.loads(state.read_text()).get("run_id") if state.exists() else None


def environment() -> dict[str, Any]:
    """What the run ran in: Python, machine, versions of the packages that decide numbers."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _versions(folder: Path, is_filter: bool) -> dict[str, str]:
    """Of what was trained, as tags: a filter names its encoder too."""
    if not is_filter:
        return {"encoder_version": EncoderRecord.read(folder).version}
    record = Filter.load(folder).record
    return {"filter_version": record.version, "encoder_version": record.encoder_version}


def _start(experiment: str, run_name: str, at_ms: int, tags: Mapping[str, str]) -> dict[str, Any]:
    own = {"id": uuid.uuid4().hex, "experiment": experiment, "name": run_name, "at_ms": at_ms}
    return own | {"tags": resolve_tags() | dict(tags)}


def _run_id(client: mlflow.MlflowClient, start: Mapping[str, Any], tracking_uri: str, folder: Path) -> str:
    experiment_id = experiment_of(client, start["experiment"], tracking_uri)
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{start['id']}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {**start["tags"], RUN_TAG: start["id"]}
    if (parent := folder / start.get("parent", "")).is_file():
        tags[MLFLOW_PARENT_RUN_ID] = ship(parent, tracking_uri)
    run = client.create_run(experiment_id, start_time=start["at_ms"], tags=tags, run_name=start["name"])
    return str(run.info.run_id)


def _send_params(client: mlflow.MlflowClient, run_id: str, params: Mapping[str, str], folder: Path) -> None:
    for part in _parts([Param(name, value) for name, value in params.items()], PARAMS_AT_ONCE):
        client.log_batch(run_id, params=part)


def _send_inputs(client: mlflow.MlflowClient, run_id: str, inputs: Mapping[str, int], folder: Path) -> None:
    datasets = []
    for path, table_version in inputs.items():
        source = DeltaDatasetSource(path=path, delta_table_version=table_version)
        dataset = MetaDataset(source, name=path, digest=f"v{table_version}")._to_mlflow_entity()
        datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", "training")]))
    client.log_inputs(run_id, datasets)


def _send_artifacts(client: mlflow.MlflowClient, run_id: str, artifacts: Mapping[str, str], folder: Path) -> None:
    for name, path in artifacts.items():
        send = client.log_artifacts if (folder / path).is_dir() else client.log_artifact
        send(run_id, str(folder / path), name)


_SEND: dict[str, Callable[[Any, str, Any, Path], Any]] = {
    "start": lambda client, run_id, start, folder: None,
    "params": _send_params,
    "tags": lambda client, run_id, tags, folder: [client.set_tag(run_id, name, value) for name, value in tags.items()],
    "metrics": lambda client, run_id, points, folder: client.log_batch(run_id, metrics=[Metric(*p) for p in points]),
    "inputs": _send_inputs,
    "files": lambda client, run_id, files, folder: [client.log_dict(run_id, v, name) for name, v in files.items()],
    "texts": lambda client, run_id, texts, folder: [client.log_text(run_id, v, name) for name, v in texts.items()],
    "artifacts": _send_artifacts,
    "end": lambda client, run_id, end, folder: client.set_terminated(run_id, "FINISHED", end["at_ms"]),
}


def _spool(run_folder: Path) -> Path:
    return run_folder.with_name(run_folder.name + ".mlflow.jsonl")


def _state(spool: Path) -> Path:
    return spool.with_suffix(".json")


def _parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
