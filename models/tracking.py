"""MLflow's client with the patience of a training run: seconds, where its own is minutes.

Touches the environment variables of MLflow's client, for the whole process.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from models.records import RegistryError

PROBE_SECONDS = 3
METRICS_AT_ONCE = 1000  # MLflow's limit
QUICK = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""A server that is connected to and says nothing costs two tries of 10 s; MLflow's own patience is 7 tries of 120 s."""


class TrackingDownError(RegistryError):
    """MLflow does not answer."""


def connect(tracking_uri: str) -> None:
    """Sets the store for this process: `sqlite:///PATH` (made on first use), a server, or `databricks`.

    Raises:
        ValueError: a folder: MLflow's file store has no registry.
    """
    if "://" not in tracking_uri and not tracking_uri.startswith("databricks"):
        raise ValueError(f"wanted a tracking URI; found {tracking_uri!r}; fix: sqlite:///{tracking_uri}/mlflow.db")
    if path := sqlite_path(tracking_uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # the lock file of whoever stands in the working directory
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # each migration of a new sqlite file
    mlflow.set_tracking_uri(tracking_uri)


@contextmanager
def answering(tracking_uri: str) -> Iterator[None]:
    """Connects, and gives MLflow seconds to answer where its client would wait for minutes.

    Raises:
        TrackingDownError: no server there, or one that does not answer.
    """
    connect(tracking_uri)
    before = {name: os.environ.get(name) for name in QUICK}
    os.environ.update(QUICK)
    try:
        _probe(tracking_uri)
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        if not _is_outage(error):
            raise
        raise TrackingDownError(f"wanted MLflow at {_without_password(tracking_uri)}; found no answer; "
                           "fix: start it, then run it again") from error  # fmt: skip
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _probe(tracking_uri: str) -> None:
    """Connects to a server once, within PROBE_SECONDS; other stores are not probed."""
    parts = urlsplit(tracking_uri)
    if parts.scheme in ("http", "https") and parts.hostname:
        place = (parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme])
        socket.create_connection(place, timeout=PROBE_SECONDS).close()


def _is_outage(error: BaseException) -> bool:
    """No connection, no answer in time, or a gateway that says so; not what MLflow itself answers."""
    if isinstance(error, MlflowException):
        return "API request to" in error.message and error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
    return isinstance(error, ConnectionError | TimeoutError | socket.gaierror | requests.RequestException)


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def sqlite_path(tracking_uri: str) -> Path | None:
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None


def may_answer(tracking_uri: str) -> bool:
    """Whether there is something to ask: a sqlite file that is not there would be made by asking."""
    path = sqlite_path(tracking_uri)
    return path is None or path.exists()


def experiment_of(client: mlflow.MlflowClient, name: str, tracking_uri: str) -> str:
    """The experiment's id. Beside a sqlite file its artefacts lie in `artifacts`, not in the working directory."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    location = (path.resolve().parent / "artifacts" / name).as_uri() if (path := sqlite_path(tracking_uri)) else None
    return str(client.create_experiment(name, artifact_location=location))


def finished_runs(tracking_uri: str, experiment: str, *, kind: str) -> list[tuple[dict[str, str], dict[str, float]]]:
    """(params, metrics) of the experiment's finished runs with the tag `kind`.

    Raises:
        TrackingDownError: no server there, or one that does not answer.
    """
    if (path := sqlite_path(tracking_uri)) and not path.exists():
        return []
    with answering(tracking_uri):
        client = mlflow.MlflowClient()
        if (found := client.get_experiment_by_name(experiment)) is None:
            return []
        wanted, runs, token = f"attributes.status = 'FINISHED' AND tags.kind = '{kind}'", [], ""
        while token is not None:
            page = client.search_runs([found.experiment_id], wanted, max_results=1000, page_token=token or None)
            runs += [(run.data.params, run.data.metrics) for run in page]
            token = page.token
    return runs


def log_run(tracking_uri: str, experiment: str, name: str, *, params: Mapping[str, Any], metrics: Mapping[str, float],
            tags: Mapping[str, str]) -> str:  # fmt: skip
    """One finished run of parameters and metrics, without a model: its id.

    Raises:
        TrackingDownError: no server there, or one that does not answer.
    """
    with answering(tracking_uri):
        client, now = mlflow.MlflowClient(), int(time.time() * 1000)
        experiment_id = experiment_of(client, experiment, tracking_uri)
        run_id = str(client.create_run(experiment_id, start_time=now, tags=dict(tags), run_name=name).info.run_id)
        points = [Metric(metric, value, now, 0) for metric, value in metrics.items()]
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        for start in range(0, len(points), METRICS_AT_ONCE):
            client.log_batch(run_id, metrics=points[start : start + METRICS_AT_ONCE])
        client.set_terminated(run_id, "FINISHED", now)
    return run_id
