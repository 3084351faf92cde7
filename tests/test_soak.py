"""Random kills, spread over whole rounds: the tables at the end are those of rounds that nobody killed.

`make soak` kills 50 times, within an hour of two cores; the slow suite ten times. DFN_SOAK_SEED repeats a series.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import running_in
from test_kills import OF_HISTORY, OF_TIME, contents, differing
from test_models_spool import Server

from etl.config import load
from etl.store import Store

VICTIMS = ("driver", "worker", "JVM", "MLflow server")
PAUSE_SECONDS = 5, 40
"""Between kills: at random, so that they meet starts, stages, training and the gate."""
OF_RUNS = (
    OF_TIME | OF_HISTORY | {"decision_id", "champion_compared", "challenger", "config_json", "runs", "inputs_json"}
)


class Round:
    """`dfn loop --conf tiny` in a folder, begun again whenever it was killed."""

    def __init__(self, output: Path, uri: str) -> None:
        self.output, self.log = output, output.with_suffix(".log")
        settings = {"output": output, "tracking_uri": uri, "loop.seeds": "[0,1]", "stages.embed.chunk_rows": 50}
        self._command = [sys.executable, "-m", "etl", "loop", "--conf", "tiny"]
        self._command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self.begin()

    def begin(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def victims(self, who: str) -> list[int]:
        """Processes of that kind that run now; in one process with the driver, the JVM is the executor too."""
        running = running_in(self.process.pid)
        if who == "JVM":
            return [pid for pid, name in running.items() if name == "java"]
        return [pid for pid in running if (pid == self.process.pid) == (who == "driver") and running[pid] != "java"]

    def last_stage(self) -> str:
        said = [line.split() for line in self.log.read_text(errors="replace").splitlines() if " s  " in line]
        return said[-1][2] if said and len(said[-1]) > 2 else "start"

    def end(self) -> None:
        for pid in running_in(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def killed(round_: Round, server: Server, draw: random.Random) -> str:
    """Kills somebody; what was killed, or '' where nobody of that kind ran. A server is started again at once."""
    who = draw.choice(VICTIMS)
    if who == "MLflow server":
        server.kill()
        time.sleep(draw.uniform(0, 10))
        server.start()
        return who
    victims = round_.victims(who)
    if not victims:
        return ""
    os.kill(draw.choice(victims), signal.SIGKILL)
    return who


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rounds_that_are_killed_at_random_end_as_those_that_are_not(spark, tmp_path, mlflow_template):
    seed, num_kills = (int(os.environ.get(f"DFN_SOAK_{name}", value)) for name, value in (("SEED", 12), ("KILLS", 10)))
    draw = random.Random(seed)
    for name in ("clean-server", "server"):
        (tmp_path / name).mkdir()
        shutil.copyfile(mlflow_template, tmp_path / name / "server.db")
    server = Server(tmp_path / "clean-server").start()
    clean = Round(tmp_path / "clean", server.uri)
    assert clean.process.wait(1500) == 0, clean.log.read_text()
    server.kill()
    datasets = load(["tiny"]).datasets
    expected = contents(Store(spark, str(clean.output / "tables")), datasets, OF_RUNS)
    server = Server(tmp_path / "server").start()
    kills, num_rounds, current = [], 0, Round(tmp_path / "round-0", server.uri)
    try:
        while True:
            time.sleep(draw.uniform(*PAUSE_SECONDS))
            code = current.process.poll()
            if code is None and len(kills) < num_kills:
                if who := killed(current, server, draw):
                    kills.append((who, current.last_stage()))
                continue
            if code is None:
                code = current.process.wait(1500)
            if code != 0:
                current.end()
                current.begin()
                continue
            current.begin()  # once more: what waited for MLflow, which may have been down at the end, is decided now
            assert current.process.wait(1500) == 0, current.log.read_text()
            found = contents(Store(spark, str(current.output / "tables")), datasets, OF_RUNS)
            assert differing(found, expected) == [], f"seed {seed}, round {num_rounds}, {kills}"
            num_rounds += 1
            if len(kills) >= num_kills:
                break
            current = Round(tmp_path / f"round-{num_rounds}", server.uri)
    finally:
        current.end()
        server.kill()
    sys.stderr.write(f"soak: seed {seed}, {num_rounds} rounds, {len(kills)} kills: {dict(Counter(kills))}\n")
