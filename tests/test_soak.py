"""Random kills, spread over whole rounds: the tables at the end are those of a round that nobody killed.

`make soak` kills 50 times, CI ten times where the commit has that turn (`.ci/run`); DFN_SOAK_KILLS says another number,
DFN_SOAK_SEED repeats a series.
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

SERVER = "MLflow server"
VICTIMS = ("driver", "worker", "executor", SERVER)
PAUSE_SECONDS = 5, 60
"""Between kills: at random, so that they meet starts (a quarter to half a minute), stages, training and the gate."""
MLFLOW_IS_AWAY_SECONDS = 0, 10
OF_RUNS = {
    "decision_id", "champion_compared", "challenger", "config_json", "runs", "inputs_json", "mlflow_run_id", "folder",
}  # fmt: skip
"""What names runs of MLflow, whose numbers are drawn, and the folder of a round."""


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
        """Processes of that kind that run now. In a local session the JVM is the executor too."""
        running = running_in(self.process.pid)
        if who == "driver":
            return [self.process.pid]
        is_java = who == "executor"
        return [pid for pid, name in running.items() if pid != self.process.pid and (name == "java") == is_java]

    def last_said(self) -> str:
        """Of the console's lines, what the newest is about: a stage, an induced model, the gate."""
        said = [line.split() for line in self.log.read_text(errors="replace").splitlines() if " s  " in line]
        return said[-1][2] if said and len(said[-1]) > 2 else "start"

    def ended_within(self, seconds: float) -> int | None:
        """Its exit code, at once when it ends; None where it still runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        for pid in running_in(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def to_its_end(self) -> None:
        assert self.process.wait(1500) == 0, self.log.read_text()[-4000:]


def kill_one(round_: Round, server: Server, draw: random.Random) -> str:
    """Who was killed, of those that run; '' where it ended by itself meanwhile. A server is away for seconds."""
    who = draw.choice([who for who in VICTIMS if who == SERVER or round_.victims(who)])
    if who == SERVER:
        server.kill()
        time.sleep(draw.uniform(*MLFLOW_IS_AWAY_SECONDS))
        server.start()
        return who
    victims = round_.victims(who)
    try:
        os.kill(draw.choice(victims), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return ""
    return who


def server_in(folder: Path, template: Path) -> Server:
    folder.mkdir()
    shutil.copyfile(template, folder / "server.db")
    return Server(folder).start()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_rounds_that_are_killed_at_random_end_as_one_that_is_not(spark, tmp_path, mlflow_template):
    seed, num_kills = (int(os.environ.get(f"DFN_SOAK_{name}", value)) for name, value in (("SEED", 12), ("KILLS", 10)))
    draw, begun = random.Random(seed), time.monotonic()
    datasets = load(["tiny"]).datasets

    def tables(round_: Round) -> dict:
        return contents(Store(spark, str(round_.output / "tables")), datasets, OF_TIME | OF_HISTORY | OF_RUNS)

    server = server_in(tmp_path / "clean-server", mlflow_template)
    clean = Round(tmp_path / "clean", server.uri)
    clean.to_its_end()
    server.kill()
    expected = tables(clean)
    assert len(expected[".promotions"]) == 2, clean.log.read_text()[-4000:]
    kills: list[tuple[str, str]] = []
    num_rounds, current = 0, None
    server = server_in(tmp_path / "server", mlflow_template)
    try:
        while len(kills) < num_kills:
            current = Round(tmp_path / f"round-{num_rounds}", server.uri)
            while (code := current.ended_within(draw.uniform(*PAUSE_SECONDS) if len(kills) < num_kills else 1500)) != 0:
                if code is not None:
                    current.end()
                    current.begin()
                    continue
                assert len(kills) < num_kills, current.log.read_text()[-4000:]
                if who := kill_one(current, server, draw):
                    kills.append((who, current.last_said()))
                    sys.stderr.write(f"soak: {time.monotonic() - begun:5.0f} s  kill {len(kills)}: {kills[-1]}\n")
            current.begin()  # what waited for MLflow, which may have been away at the end, is decided now
            current.to_its_end()
            assert differing(tables(current), expected) == [], f"seed {seed}, round {num_rounds}, {kills}"
            num_rounds += 1
    finally:
        if current is not None:
            current.end()
        server.kill()
    assert {who for who, _ in kills} == set(VICTIMS) or num_kills < 10
    sys.stderr.write(f"soak: seed {seed}, {num_rounds} rounds, {len(kills)} kills: {dict(Counter(kills))}\n")
