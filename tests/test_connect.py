"""The tiny recipe through a Spark Connect server, in processes of their own: the same selections as a classic session.

The server is what a user has: a Spark with Delta, and nothing of this application's session settings.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyspark
import pytest

from etl.jvm import delta_jars
from etl.loop.promotion import Promotions
from etl.session import FAST_LOCAL
from etl.store import Store
from etl.tables import RECEIPTS, SELECTIONS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parent.parent
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
START = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:])
sys.stdin.read()  # until the test ends, however it ends
server.terminate()
server.wait()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a Connect server with Delta."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.jars": ",".join(map(str, delta_jars())),
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        **FAST_LOCAL,
    }
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    command = [
        str(submit),
        "--master",
        "local[2]",
        "--class",
        "org.apache.spark.sql.connect.service.SparkConnectServer",
    ]
    command += [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}
    environment.pop("SPARK_REMOTE", None)
    log = folder / "log"
    with log.open("w") as out:
        started = subprocess.Popen(
            [sys.executable, "-c", START, *command], stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment,
            cwd=folder,
        )  # fmt: skip
    try:
        wait_for(port, started, log)
        yield f"sc://127.0.0.1:{port}"
    finally:
        started.communicate(timeout=60)


def wait_for(port: int, started: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert started.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def dfn(server: str, output: Path, *arguments: str) -> tuple[dict, str]:
    """Runs `dfn` where there is no Java: the last line as JSON, and what was said."""
    environment = {**os.environ, "SPARK_REMOTE": server, "JAVA_HOME": "/nowhere"}
    command = [sys.executable, "-m", "etl", *arguments, "--conf", "tiny", "--set", f"output={output}", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def hashes(receipts: list) -> dict[str, tuple]:
    """A selection's rule -> what it kept. The filter's version is part of the rule."""
    return {receipt["rule"]: (receipt["num_rows"], receipt["hash"]) for receipt in receipts}


def test_a_round_through_connect_selects_the_same_pairs(tiny, server, spark, tmp_path):
    project, ended, _ = tiny
    output = tmp_path / "output"
    result, said = dfn(server, output, "loop")
    assert result["verdict"] == ended.verdict
    stores = (Store(spark, str(output / "tables")), project.store)
    through_connect, classic = (store.read("pool", RECEIPTS).collect() for store in stores)
    assert len(classic) == 1 + 3 + 3  # whole_pool once, since no seed changes it; random and dfn by seed
    assert hashes(through_connect) == hashes(classic)
    kept = [{tuple(row) for row in s.read("pool", SELECTIONS).select("uid", "score").collect()} for s in stores]
    assert kept[0] == kept[1]
    _, said = dfn(server, output, "loop")
    assert " rows in " not in said
    assert "up to date" in said


def run_notebook(server: str, name: str, given: dict[str, str]) -> str:
    """What a notebook prints where there is no Java."""
    parameters = {f"DFN_{key.upper()}": value for key, value in given.items()}
    environment = {**os.environ, **parameters, "SPARK_REMOTE": server, "JAVA_HOME": "/nowhere", "MPLBACKEND": "agg"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "notebooks" / f"{name}.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_notebooks_through_connect_say_what_the_tables_say(tiny, server, tmp_path):
    """A pool's funnel, another rule with who moved, and the decisions: 01, 03 and 05."""
    project, ended, _ = tiny
    shutil.copytree(project.config.output_folder, tmp_path / "copy")
    given = {"conf": "tiny", "set": f"output={tmp_path / 'copy'}"}
    was, is_ = (ended.arms["dfn"].receipts[seed] for seed in (1, 2))
    said = run_notebook(server, "01_pool", given | {"selection": was["selection_id"]})
    assert re.search(rf"kept by the rule +{was['num_rows']} ", said) and re.search("pairs in the pool +400", said)
    rule = {"rule": "stages.selection.keep.top_fraction=0.15", "before": was["selection_id"], "num_pairs": "3"}
    said = run_notebook(server, "03_select", given | rule | {"filter": str(ended.filters[2].final.folder)})
    kept = [
        {
            row["uid"]
            for row in project.store.read("pool", SELECTIONS, where={"selection_id": r["selection_id"]}).collect()
        }
        for r in (was, is_)
    ]
    left, entered = len(kept[0] - kept[1]), len(kept[1] - kept[0])
    assert f"{is_['num_rows']:,} pairs kept, threshold {is_['facts']['threshold']}" in said
    assert f"'left': {left}, 'entered': {entered}" in said
    said = run_notebook(server, "05_promote", given)
    last = Promotions(project.store, "dfn_filter").decisions()[-1]
    assert f"{last.decision_id} " in said and "nothing moved" in said
