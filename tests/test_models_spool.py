"""A real MLflow server that is killed: no training run fails, none is lost, none is sent twice."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest
from test_models_encoder import TINY, tiny_clip
from test_models_filters import random_heads

from models import registry, spool, tracking
from models.filters import save_filter
from models.records import RegistryError
from models.system_metrics import watched

DIM = TINY["embed_dim"]


class Server:
    """`mlflow server` on loopback, over one sqlite file."""

    def __init__(self, root):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.root, self.uri, self.process = root, f"http://127.0.0.1:{self.port}", None

    def start(self):
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.root}/server.db", "--workers", "1"),
            *("--artifacts-destination", str(self.root / "artifacts")),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.root / "server.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        for _ in range(1800):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return self
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, (self.root / "server.log").read_text()[-2000:]
                time.sleep(0.1)
        raise AssertionError("mlflow server did not answer")

    def kill(self):
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path, mlflow_template):
    server = Server(tmp_path)
    shutil.copyfile(mlflow_template, tmp_path / "server.db")
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Seconds lost are counted per process: each test is one."""
    monkeypatch.setitem(spool._lost, "seconds", 0.0)


@pytest.fixture(scope="module")
def encoder_record(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("towers") / "encoder")


def log(folder, uri, encoder_record, **more):
    save_filter(folder, random_heads(DIM, DIM, 3), encoder_record=encoder_record)
    return spool.log_training_run(
        uri, "exp", folder.name, params={"steps": 3}, metrics={"r5": 0.5}, step_losses=[3.0, 2.0, 1.0],
        inputs={"/lake/pool/embeddings": 7}, folder=folder, **more,
    )  # fmt: skip


RECEIPT = {"selection_id": "abc", "hash": "f0", "num_rows": 60, "rule": {"name": "dfn"}}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_outlive_a_killed_server_and_are_sent_once(server, tmp_path, encoder_record):
    runs = tmp_path / "runs"
    before = log(runs / "before", server.start().uri, encoder_record)
    server.kill()
    with watched(0.05) as system:
        while_down = log(runs / "down", server.uri, encoder_record, receipt=RECEIPT)
    assert before and while_down is None
    assert [path.name for path in spool.pending(runs)] == ["down.mlflow.jsonl"]
    with pytest.raises(tracking.TrackingDownError, match=rf"wanted MLflow at {server.uri}; found no answer"):
        spool.sync(runs, server.uri)
    server.start()
    after = log(runs / "after", server.uri, encoder_record, system=system)
    sent = spool.sync(runs, server.uri)
    assert (len(sent), spool.sync(runs, server.uri), spool.pending(runs)) == (1, [], [])
    assert spool.run_id_of(runs / "down") == sent[0] and spool.run_id_of(runs / "none") is None
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("exp").experiment_id
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert {name: run.info.run_id for name, run in found.items()} == {"before": before, "down": sent[0], "after": after}
    late = found["down"]
    assert (late.info.status, late.data.params, late.data.metrics) == (
        "FINISHED",
        {"steps": "3"},
        {"loss": 1, "r5": 0.5},
    )
    assert [(m.step, m.value) for m in client.get_metric_history(sent[0], "loss")] == [(0, 3), (1, 2), (2, 1)]
    (dataset,) = late.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("/lake/pool/embeddings", "v7")
    assert (late.data.tags["selection_id"], late.data.tags["selection_hash"]) == ("abc", "f0")
    assert {f.path for f in client.list_artifacts(sent[0])} == {"environment.json", "heads", "receipt.json"}
    assert {f.path for f in client.list_artifacts(sent[0], "heads")} == {"heads/heads.safetensors", "heads/record.json"}
    assert json.loads(Path(client.download_artifacts(sent[0], "receipt.json")).read_text()) == RECEIPT
    machine = {name for name in found["after"].data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= machine


@pytest.mark.timeout(120)
def test_a_run_that_was_half_sent_goes_on_with_the_line_that_failed(tmp_path, encoder_record, monkeypatch, mlflow_uri):
    uri, calls = mlflow_uri, []
    real = mlflow.MlflowClient.log_inputs

    def breaks(client, run_id, datasets):
        calls.append(run_id)
        if len(calls) == 1:
            raise ConnectionError("down in the middle")
        return real(client, run_id, datasets)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", breaks)
    assert log(tmp_path / "runs" / "a", uri, encoder_record) is None
    (waiting,) = spool.pending(tmp_path / "runs")
    assert json.loads(waiting.with_suffix(".json").read_text())["lines"] == 3
    # The state was lost too, as by a kill right after MLflow answered: the run is found by its tag.
    waiting.with_suffix(".json").write_text('{"lines": 0}')
    assert spool.sync(tmp_path / "runs", uri) == [calls[0]]
    client = mlflow.MlflowClient()
    assert len(client.search_runs([client.get_experiment_by_name("exp").experiment_id])) == 1
    assert len(client.get_metric_history(calls[0], "loss")) == 3


def ended(folder, uri, verdict, value):
    return spool.end(
        folder, uri, params={"level": 0.05}, metrics={"dfn.avg": value}, step=5, tags={"verdict": verdict},
        inputs={"/lake/pool/embeddings": 7}, files={"config.yaml": {"name": "x"}}, texts={"table.csv": "arm,avg\n"},
    )  # fmt: skip


@pytest.mark.timeout(120)
def test_a_parent_and_its_runs_wait_together_and_what_it_says_last_stands(tmp_path, encoder_record, mlflow_uri):
    runs, away = tmp_path / "runs", "http://127.0.0.1:1"
    for _ in range(2):  # killed, and begun again
        assert spool.begin(runs / "round", away, "exp", "round 1", {"kind": "round"}) is None
    assert log(runs / "a", away, encoder_record, parent=runs / "round") is None
    assert ended(runs / "round", away, "not decided", 0.5) is None
    assert len(spool.sync(runs, mlflow_uri)) == 2
    client = mlflow.MlflowClient()
    (experiment,) = [client.get_experiment_by_name("exp").experiment_id]
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert sorted(found) == ["a", "round 1"]
    parent = found["round 1"]
    assert found["a"].data.tags["mlflow.parentRunId"] == parent.info.run_id == spool.run_id_of(runs / "round")
    assert (parent.data.tags["verdict"], parent.info.status, parent.data.params) == (
        "not decided", "FINISHED", {"level": "0.05"}
    )  # fmt: skip
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {"config.yaml", "table.csv"}
    before = (runs / "round.mlflow.jsonl").read_text()
    spool._lost["seconds"] = 0.0
    for verdict, value in (("not decided", 0.5), ("promoted", 0.25)):
        assert spool.begin(runs / "round", mlflow_uri, "exp", "round 1", {}) == parent.info.run_id
        assert ended(runs / "round", mlflow_uri, verdict, value) == parent.info.run_id
        assert ((runs / "round.mlflow.jsonl").read_text() == before) == (verdict == "not decided")
    parent = client.get_run(parent.info.run_id)
    assert parent.data.tags["verdict"] == "promoted" and spool.pending(runs) == []
    assert len(client.search_runs([experiment])) == 2


@pytest.mark.timeout(60)
def test_a_server_that_says_nothing_costs_a_bounded_time_once(tmp_path, encoder_record, monkeypatch):
    """A socket that accepts and never answers. Without the bound, MLflow's client tries for a quarter of an hour."""
    monkeypatch.setitem(tracking.QUICK, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(spool, "LOST_SECONDS", 0.5)
    probes = []
    real = tracking._probe
    monkeypatch.setattr(tracking, "_probe", lambda uri: probes.append(uri) or real(uri))
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name in "abc":
            assert log(tmp_path / "runs" / name, uri, encoder_record) is None
        assert probes == [uri]  # the second and third run did not even try
        assert len(spool.pending(tmp_path / "runs")) == 3
    assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") is None


def test_failures_cost_thirty_seconds_in_all():
    """What is borne before giving up, and one more failure at its longest: a probe, and tries with a pause between."""
    timeout, retries = (int(tracking.QUICK[f"MLFLOW_HTTP_REQUEST_{name}"]) for name in ("TIMEOUT", "MAX_RETRIES"))
    assert spool.LOST_SECONDS + tracking.PROBE_SECONDS + (1 + retries) * timeout + retries <= 30


def test_what_mlflow_itself_refuses_is_no_outage(tmp_path, mlflow_uri):
    uri = mlflow_uri
    with pytest.raises(RegistryError, match="found aliases of dfn_filter: none"), tracking.answering(uri):
        registry.resolve("models:/dfn_filter@champion", tmp_path / "x")
    with pytest.raises(mlflow.exceptions.MlflowException), tracking.answering(uri):
        mlflow.MlflowClient().get_run("0" * 32)
    with pytest.raises(FileNotFoundError), tracking.answering(uri):
        (tmp_path / "none").read_text()


def test_a_password_is_in_no_message():
    with (
        pytest.raises(tracking.TrackingDownError, match=r"wanted MLflow at http://127.0.0.1:1;"),
        tracking.answering("http://me:secret@127.0.0.1:1"),
    ):
        raise AssertionError("nothing listens there")
