"""On a standalone cluster whose GPUs are addresses: who gets which, SQL, shipped code, kills (F1, F3), weights (F11).

The executors see the project in the zip only: nothing here would run if `--py-files` did not ship it.
"""

import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from cluster import Driver, project_zip, standalone_cluster, wait_for
from helpers import picture, rows_of, write_shard

from etl.config import load
from etl.jvm import delta_jars
from etl.project import Project
from etl.store import Store
from etl.tables import EMBEDDINGS
from models.records import EncoderRecord

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
NUM_PAIRS = 160
BATCH = 8
SLOW = {"image_size": 64, "layers": 8, "width": 256, "head_width": 64, "patch_size": 8}
"""Some 30 ms an image on one core: a pass takes seconds, so that a kill lands in it."""
ONE_MACHINE = {"spark.cores.max": "4"}
LOST_WORKER, LOST_EXECUTOR = "Python worker exited unexpectedly", "Lost executor"


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    return project_zip(tmp_path_factory.mktemp("zip") / "dfn_etl.zip")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def free_machine(tmp_path_factory):
    """A cluster of one machine for other applications: `driver` holds every GPU of the other two."""
    with standalone_cluster(tmp_path_factory.mktemp("one"), addresses=[["5", "7"]]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def driver(cluster, code):
    """One application for most tests: importing torch costs its four Python workers ten seconds each."""
    conf = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(BATCH),
        "spark.task.maxFailures": "4",
        "spark.excludeOnFailure.enabled": "true",  # as conf/spark/gpu.conf has it
    }
    with cluster.driver("driver", code, **conf) as driver:
        yield driver


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    """Shards of generated pictures with captions, towers with random weights, and a filter with random heads."""
    from test_models_encoder import tiny_clip
    from test_models_filters import random_heads

    from models.filters import save_filter

    folder = tmp_path_factory.mktemp("given")
    (folder / "shards").mkdir()
    for start in range(0, NUM_PAIRS, 20):
        samples = {
            f"{n:04}": {"png": picture(n, (60, 50)), "txt": f"picture {n}".encode()} for n in range(start, start + 20)
        }
        write_shard(folder / "shards" / f"{start:04}.tar", samples)
    tiny_clip(folder / "encoder", vision=SLOW, batch_size=BATCH)
    record = EncoderRecord.read(folder / "encoder")
    save_filter(folder / "filter", random_heads(record.image_dim, record.text_dim, 8), encoder_record=record)
    return {name: folder / name for name in ("shards", "encoder", "filter")}


@pytest.fixture(scope="module")
def clean(driver, given, tmp_path_factory) -> tuple[Path, list]:
    """(folder, rows) of an embed pass that nobody disturbed."""
    out = tmp_path_factory.mktemp("clean") / "embeddings"
    rows = driver.do("bulk", shards=given["shards"], encoder=given["encoder"], out=out)
    assert Counter(status for _, status, _, _ in rows) == {"ok": NUM_PAIRS}
    assert len({vectors for _, _, *both in rows for vectors in both}) == 2 * NUM_PAIRS
    return out, rows


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many of the intervals have an instant in common, at most."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running = [0]
    for _, step in edges:
        running.append(running[-1] + step)
    return max(running)


def at_once_by_address(slots: list[dict]) -> dict[str, int]:
    addresses = {slot["spark"] for slot in slots}
    return {a: most_at_once([(s["start"], s["end"]) for s in slots if s["spark"] == a]) for a in addresses}


def test_every_gpu_is_used_and_none_by_two_tasks_at_once(driver):
    slots = driver.do("slots", num_tasks=24, seconds=0.5)
    assert at_once_by_address(slots) == {"0": 1, "1": 1, "2": 1, "3": 1}
    assert most_at_once([(slot["start"], slot["end"]) for slot in slots]) > 2
    assert [slot["ours"] for slot in slots] == [slot["spark"] for slot in slots]
    assert [slot["device"] for slot in slots] == [f"cuda:{slot['spark']}" for slot in slots]


def test_the_executors_have_the_project_from_the_zip(driver, cluster):
    paths = {Path(slot["code"]) for slot in driver.do("slots", num_tasks=24, seconds=0.2)}
    assert {path.parts[-4:] for path in paths} == {("dfn_etl.zip", "etl", "encode", "gpu.py")}
    assert {path.relative_to(cluster.folder).parts[0] for path in paths} == {"worker-0", "worker-1"}


def test_two_tasks_share_a_gpu_where_each_wants_half_of_one(free_machine, code):
    with free_machine.driver("halves", code, **ONE_MACHINE, **{"spark.task.resource.gpu.amount": "0.5"}) as halves:
        slots = halves.do("slots", num_tasks=16, seconds=0.5)
    assert at_once_by_address(slots) == {"5": 2, "7": 2}
    assert [slot["ours"] for slot in slots] == [slot["spark"] for slot in slots]


def test_dfn_score_in_sql_gives_the_scores_of_the_bulk_path(driver, given, clean):
    given = {"shards": given["shards"], "encoder": given["encoder"], "filter_": given["filter"]}
    wanted = driver.do("bulk_scores", vectors=clean[0], filter_=given["filter_"])
    found = dict(driver.do("query", **given, statement="SELECT uid, dfn_score(image, text) FROM pairs"))
    assert found == pytest.approx(wanted, abs=1e-6)
    assert len({round(score, 4) for score in found.values()}) > NUM_PAIRS / 2


def test_dfn_embed_in_sql_gives_the_vectors_of_the_bulk_path(driver, given, clean):
    statement = """
        SELECT uid, found.status, hex(found.image_embedding), hex(found.text_embedding)
        FROM (SELECT uid, dfn_embed(shard, offset_bytes, size_bytes, text) AS found FROM pairs)"""
    given = {"shards": given["shards"], "encoder": given["encoder"], "filter_": given["filter"]}
    assert sorted(driver.do("query", **given, statement=statement)) == clean[1]


class Pass:
    """An embed pass that is under way, with what the driver says from its beginning on."""

    def __init__(self, driver: Driver, given: dict[str, Path], folder: Path):
        self.driver, self.calls_file, self.since = driver, folder / "calls", len(driver.said())
        driver.ask("bulk", shards=given["shards"], encoder=given["encoder"], out=folder / "out", calls=self.calls_file)

    def calls(self) -> list[int]:
        return [int(n) for n in self.calls_file.read_text().split()] if self.calls_file.exists() else []

    def is_amid(self) -> bool:
        return len(self.calls()) >= 4

    def said(self) -> str:
        return self.driver.said()[self.since :]

    def rows(self) -> list:
        answer = self.driver.answer()
        assert "result" in answer, answer
        return answer["result"]


def test_a_python_worker_killed_amid_encoding_changes_no_bit(driver, cluster, given, clean, tmp_path):
    broken = Pass(driver, given, tmp_path)
    log = driver.folder / "log"
    wait_for(broken.is_amid, "a pass under way", log, 120, step=0.01)
    victims = wait_for(lambda: cluster.workers[1].busy_pythons(given["shards"]), "a busy worker", log, 10, step=0.01)
    os.kill(victims[0], signal.SIGKILL)
    assert broken.rows() == clean[1]
    assert LOST_WORKER in broken.said()
    assert LOST_EXECUTOR not in broken.said()
    assert sum(broken.calls()) > NUM_PAIRS  # the killed task had encoded some, and they were encoded again


def test_an_executor_killed_amid_encoding_leaves_exactly_the_rows(driver, cluster, given, clean, tmp_path):
    broken = Pass(driver, given, tmp_path)
    wait_for(broken.is_amid, "a pass under way", driver.folder / "log", 120, step=0.01)
    (victim,) = cluster.workers[0].executors()
    os.kill(victim, signal.SIGKILL)
    assert broken.rows() == clean[1]
    assert LOST_EXECUTOR in broken.said()
    assert sum(broken.calls()) > NUM_PAIRS
    assert wait_for(cluster.workers[0].executors, "another executor", driver.folder / "log", 60) != [victim]


def local_copies(cluster, driver: Driver, encoder: Path, altered: int) -> str:
    """A copy of the encoder on the disk of each machine, one altered; the path that leads each to its own."""
    for number, place in enumerate([*(worker.folder for worker in cluster.workers), driver.folder.parent.parent]):
        copy = shutil.copytree(encoder, place / "encoder")
        if number == altered:
            weights = copy / "model.safetensors"
            data = bytearray(weights.read_bytes())
            data[-2] ^= 1
            weights.write_bytes(data)
    return "../../encoder"


def test_a_machine_with_altered_weights_gives_no_vector(driver, cluster, given, clean, tmp_path):
    """Its tasks fail and say why; Spark gives them to the other machine, and every vector is of the right weights."""
    encoder = local_copies(cluster, driver, given["encoder"], altered=1)
    since = len(driver.said())
    assert driver.do("bulk", shards=given["shards"], encoder=encoder, out=tmp_path / "out") == clean[1]
    said = driver.said()[since:]
    assert f"WeightsError: wanted {encoder}/model.safetensors with sha256" in said
    assert set(re.findall(r"Lost task \S+ in stage \S+ \(TID \d+\) \((\S+) executor", said)) == {"127.0.0.2"}


SUBMITTED = [
    "run",
    "--conf",
    "tiny",
    "--conf",
    "cluster",
    "--dataset",
    "things",
    "--stage",
    "ingest",
    "--stage",
    "embed",
]


def test_dfn_run_through_spark_submit(free_machine, code, given, spark, tmp_path):
    """As docs/how-to/cluster.md has it, on the cluster's executors: its tables are those of a run on this machine."""

    def settings(name: str) -> list[str]:
        return [f"output={tmp_path / name}", f"encoder.folder={given['encoder']}", "stages.embed.num_tasks=4"]

    arguments = [*SUBMITTED, *(part for setting in settings("submitted") for part in ("--set", setting))]
    said = free_machine.submit(code, delta_jars(), *arguments, **ONE_MACHINE)
    assert "embed          things" in said
    (ended,) = [found for found in free_machine.state()["completedapps"] if found["name"] == "dfn"]
    assert ended["state"] == "FINISHED"
    Project(load(["tiny"], settings("local"))).run_all(["ingest", "embed"], ["things"])
    stores = [Store(spark, str(tmp_path / name / "tables")) for name in ("submitted", "local")]
    submitted, local = (rows_of(store.read("things", EMBEDDINGS)) for store in stores)
    assert len(local) == 100
    assert submitted == local
