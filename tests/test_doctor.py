"""dfn doctor: what is wrong on driver, executors, GPUs, data or MLflow is named, with what mends it."""

import copy
import json
from functools import partial

import mlflow
import pytest
from helpers import picture, write_shard
from pyspark.sql import functions as F

from etl.__main__ import _run, app
from etl.config import load
from etl.doctor import Check, Doctor, slots
from etl.probe import looks, make_look
from etl.project import Project


@pytest.fixture
def doctor(tmp_path, mlflow_uri) -> Doctor:
    write_shard(tmp_path / "in" / "0.tar", {"a": {"png": picture(1), "txt": b"a picture"}})
    (tmp_path / "in" / "empty.bin").write_bytes(b"")
    settings = [f"output={tmp_path}/out", f"tracking_uri={mlflow_uri}", "datasets.pool.kind=pool",
                f"datasets.pool.shards={tmp_path}/in/*.tar", "datasets.gone.kind=eval",
                f"datasets.gone.shards={tmp_path}/elsewhere/*.tar", "datasets.hollow.kind=eval",
                f"datasets.hollow.metadata={tmp_path}/in/*.bin"]  # fmt: skip
    return Doctor(Project(load([], settings)), num_tasks=3)


@pytest.mark.slow
def test_every_part_is_looked_at_and_what_fails_stops_no_other(spark, doctor, tmp_path, mlflow_uri):
    found = {check.name: check for check in doctor.checks()}
    assert list(found) == ["driver", "spark", "tables", "executors", "code", "gpus", "data pool", "data gone",
                           "data hollow", "mlflow"]  # fmt: skip
    assert [name for name, check in found.items() if not check.is_ok] == ["data gone", "data hollow"]
    gone = f"wanted files; found none that match {tmp_path}/elsewhere/*.tar; fix: datasets.gone"
    assert str(found["data gone"]) == f"FAILED: {gone}"
    assert found["data pool"].found == f"1 files; executors read {tmp_path}/in/0.tar"
    assert found["gpus"].found == "none: models run on CPUs"
    assert found["mlflow"].found.endswith("runs can be written, 0 registered models seen")
    assert not list((tmp_path / "out" / "tables" / "project").iterdir())  # its table is gone
    (made,) = (e for e in mlflow.MlflowClient(mlflow_uri).search_experiments() if e.name != "Default")
    assert made.artifact_location.startswith(tmp_path.as_uri()), "what a run after this logs lies beside the store"


def test_the_command_exits_with_2_and_says_all_of_it(spark, tmp_path, mlflow_uri, capsys):
    write_shard(tmp_path / "in" / "0.tar", {"a": {"png": picture(1), "txt": b"a picture"}})
    settings = [f"output={tmp_path}/out", f"tracking_uri={mlflow_uri}", "datasets.pool.kind=pool"]

    def call(shards):
        given = [*settings, f"datasets.pool.shards={shards}"]
        code = _run(partial(app, ["doctor", "--json", "-q", "--tasks", "2", *(x for s in given for x in ("-s", s))]))
        return code, json.loads(capsys.readouterr().out)

    code, told = call(f"{tmp_path}/in/*.tar")
    assert (code, [line for line in told.values() if line.startswith("FAILED")]) == (0, [])
    code, told = call(f"{tmp_path}/no/*.tar")
    assert (code, [name for name, line in told.items() if line.startswith("FAILED")]) == (2, ["data pool"])


def test_executors_tell_what_they_cannot_import(spark):
    asked = spark.range(0, 2, 1, 2).select(looks(("numpy", "no_such_package"))(F.col("id")).alias("told"))
    told = [json.loads(row["told"]) for row in asked.collect()]
    assert [each["errors"] for each in told] == [{"no_such_package": "ModuleNotFoundError: No module named "
                                                                     "'no_such_package'"}] * 2  # fmt: skip
    here = make_look(("numpy",))()
    assert [(each["packages"], each["code"]) for each in told] == [(here["packages"], here["code"])] * 2


@pytest.fixture(scope="module")
def healthy() -> dict:
    return make_look()()


def told(healthy, **changes):
    """Two tasks of one host that are as the driver, but for what a path such as packages__torch changes in one."""
    other = copy.deepcopy(healthy)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = other
        for parent in parents:
            place = place[parent]
        place[last] = value
    return [healthy, other | {"host": "node-2"}]


@pytest.mark.parametrize(
    ("check", "changes", "found"),
    [
        ("_executors", {}, None),
        ("_executors", {"packages__torch": "1.0"}, "torch on node-2: 1.0, on the driver"),
        ("_executors", {"python": "3.9.1"}, "Python on node-2: 3.9, on the driver"),
        ("_code", {}, None),
        ("_code", {"code__models__content": "0" * 12}, "other code than the driver's: models on node-2 is "),
        ("_code", {"code": {"models": {}}, "errors": {"etl": "ModuleNotFoundError: etl"}},
         "other code than the driver's: etl on node-2 is ModuleNotFoundError: etl"),
        ("_gpus", {"gpu": "0", "num_cuda": 0}, "Spark gives 1 addresses and torch sees no CUDA there"),
        ("_gpus", {"num_cuda": 2}, "2 GPUs and no address for any task: all would take the first"),
    ],
)  # fmt: skip
def test_what_differs_from_the_driver_is_named(healthy, check, changes, found):
    made: Check = getattr(Doctor(Project(load(["tiny"], []))), check)(told(healthy, **changes))
    assert (made.is_ok, bool(made.fix)) == (found is None, found is not None)
    assert found is None or made.found.startswith(found), made.found


@pytest.mark.parametrize(
    ("cores", "cpus", "gpus", "share", "says"),
    [
        (0, 0, 0, 0, ""),
        (8, 1, 2, 1, ", 2 tasks an executor, 6 cores are left to decoding threads"),
        (8, 4, 2, 1, ", 2 tasks an executor"),
        (8, 0, 2, 0.3, ", 6 tasks an executor, 2 cores are left to decoding threads"),  # 3 a GPU
        (4, 1, 2, 0.25, ", 4 tasks an executor: 4 more would fit its GPUs"),
        (8, 1, 4, 2, ", 2 tasks an executor, 6 cores are left to decoding threads"),
    ],
)
def test_cores_are_held_against_gpus(cores, cpus, gpus, share, says):
    assert slots(cores, cpus, gpus, share) == says
