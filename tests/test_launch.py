"""Ranks under torchrun and TorchDistributor: one that is killed costs time only, and two give what one gives."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from training_data import furthest, job, tiny_encoder, weights

from etl.stage import UserError
from models.pretrain import run

ROOT = Path(__file__).resolve().parent.parent
STEPS = {"samples_seen": 8 * 60, "checkpoint_steps": 4}


def ranks_of(out: Path) -> dict[int, int]:
    """Rank -> process, of those that train into `out` and descend from this process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = dict(e.split("=", 1) for e in (folder / "environ").read_text().split("\0") if "=" in e)
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        is_ours = environment.get("DFN_TEST_RUN") == str(out)
        if is_ours and "LOCAL_RANK" in environment and "torch.distributed.run" not in command:
            found[int(environment["RANK"])] = int(folder.name)
    return found


def kill_at(out: Path, step: int, killed: list[int]) -> threading.Thread:
    """Kills rank 1 once a checkpoint of `step` or later is there. Names itself in `killed`."""

    def look() -> None:
        for _ in range(60_000):
            done = sorted((out / "checkpoints").glob("step-*"))
            if done and int(done[-1].name[5:]) >= step and 1 in (ranks := ranks_of(out)):
                os.kill(ranks[1], signal.SIGKILL)
                killed.append(int(done[-1].name[5:]))
                return
            time.sleep(0.005)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def whole(tmp_path):
    """Two ranks under plain torchrun, from a job file: the run that nobody interrupts."""
    path = tmp_path / "job.json"
    given = job(tmp_path, "whole", **STEPS)
    path.write_text(given.model_dump_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "-m", "models.train", str(path)], check=True, env=environment)
    return given.out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_rank_under_torchdistributor_costs_no_bit(spark, tmp_path, whole, monkeypatch):
    from etl.loop.launch import launch

    given = job(tmp_path, "killed", **STEPS)
    monkeypatch.setenv("DFN_TEST_RUN", str(given.out))
    said, killed = [], list[int]()
    thread = kill_at(given.out, 12, killed)
    result = launch(given, num_processes=2, say=said.append)
    thread.join()
    assert killed and killed[0] < 60
    assert said == ["a rank was lost; starting again from the last checkpoint (1 of 3)"]
    assert result["losses"] == json.loads((whole / "result.json").read_text())["losses"]
    assert len(result["losses"]) == 60
    assert furthest(weights(given.out / "clip"), weights(whole / "clip")) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_ranks_give_what_one_gives_with_the_same_batch(spark, tmp_path):
    """Barrier mode: each rank in a Spark task. Without the dropout of patches, which ranks draw apart."""
    from etl.loop.launch import launch

    tiny_encoder(tmp_path / "encoder", {"patch_dropout": 0.0})
    for name, changes in {"whole": {}, "parts": {"accumulate": 2, "grad_clip_norm": 1.0}}.items():
        given = {"samples_seen": 8 * 20, "device": "cpu"} | changes
        two = launch(job(tmp_path, f"{name}-2", **given), num_processes=2, local_mode=False)
        one = run(job(tmp_path, f"{name}-1", **given))
        np.testing.assert_allclose(two["losses"], one["losses"], atol=1e-4)
        ours, theirs = (weights(tmp_path / f"{name}-{n}" / "clip") for n in (1, 2))
        assert 0 < furthest(ours, theirs) < 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_the_job_refuses_is_not_tried_again(spark, tmp_path):
    from etl.loop.launch import launch

    said = []
    given = job(tmp_path, "refused", data=str(tmp_path / "none"))
    with pytest.raises(UserError, match="without a manifest an export is not whole"):
        launch(given, num_processes=2, say=said.append)
    assert said == []


def test_restarts_are_bounded(tmp_path, monkeypatch):
    from etl.loop import launch

    runs = []

    class Lost:
        def __init__(self, **options):
            pass

        def run(self, entry):
            runs.append(entry)
            raise RuntimeError("exit code -9")

    monkeypatch.setattr(launch, "TorchDistributor", Lost)
    said = []
    with pytest.raises(RuntimeError, match="training ended 3 times before it was done: exit code -9"):
        launch.launch(job(tmp_path), num_processes=2, max_restarts=2, say=said.append)
    assert len(runs) == 3 and len(said) == 2


def test_a_refusal_that_a_rank_left_is_the_user_s(tmp_path, monkeypatch):
    from etl.loop import launch

    given, runs = job(tmp_path), []

    class Refused:
        def __init__(self, **options):
            pass

        def run(self, entry):
            runs.append(entry)
            given.out.mkdir()
            (given.out / "error.txt").write_text("wanted a finite loss; found nan")
            raise RuntimeError("exit code 2")

    monkeypatch.setattr(launch, "TorchDistributor", Refused)
    with pytest.raises(UserError, match="wanted a finite loss; found nan"):
        launch.launch(given, num_processes=2)
    assert len(runs) == 1
