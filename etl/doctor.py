"""Whether a run could work here, told before it costs GPU time: a check is what was found, and how to mend it.

Touches a table of its own, removed after, and MLflow's experiment of the project; reads a block of each dataset.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pandas as pd
from pyspark.sql import functions as F

from etl.intake.table_lists import is_table, list_table, pin_table
from etl.probe import IMPORTS, looks, make_look
from etl.project import Project
from etl.shards import list_shards
from etl.stage import Table, UserError, series_udf
from etl.storage import open_ranges, use

PROBED = Table("doctor", key=("host",), ddl="host STRING NOT NULL COMMENT 'that asked'", is_project_wide=True)
BLOCK_BYTES = 512
Told = Mapping[str, Any]
"""What `etl.probe` tells of a process."""
DRIVER_ALSO = ("mlflow", "pydantic", "safetensors")
"""What the driver imports over what executors do."""


@dataclass(frozen=True)
class Check:
    name: str
    is_ok: bool
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return self.found if self.is_ok else f"FAILED: {self.found}; fix: {self.fix}"


@dataclass(frozen=True)
class Doctor:
    project: Project
    num_tasks: int = 16
    """Asked at once: at least as many as there are slots, so that every executor is asked."""

    def checks(self) -> Iterator[Check]:
        """In the order in which a later one needs an earlier one; a failure ends none of the others."""
        yield self._driver()
        yield self._guarded("spark", self._spark, "java -version; spark.master and spark.conf in the config")
        yield self._guarded("tables", self._tables, f"rights to write in {self.project.config.tables_root}")
        try:
            told = self._ask()
        except Exception as error:  # Spark's, of many classes
            fix = "the Python of executors, and --py-files dist/dfn_etl.zip (make zip)"
            yield Check("executors", False, _first_line(error), fix)
        else:
            yield self._executors(told)
            yield self._code(told)
            yield self._gpus(told)
        for name in self.project.config.datasets:
            yield self._guarded(f"data {name}", partial(self._data, name), "the path, as executors see it")
        yield self._guarded("mlflow", self._mlflow, "start it, tracking_uri, or rights to create runs")

    @cached_property
    def _here(self) -> Told:
        return make_look((*IMPORTS, *DRIVER_ALSO))()

    def _ask(self) -> list[Told]:
        """What each task tells of its process."""
        asked = self.project.store.spark.range(0, self.num_tasks, 1, self.num_tasks)
        return [json.loads(row["told"]) for row in asked.select(looks()(F.col("id")).alias("told")).collect()]

    def _guarded(self, name: str, check: Callable[[], str], fix: str) -> Check:
        try:
            return Check(name, True, check())
        except Exception as error:  # whatever breaks is what is told
            found, _, own_fix = (str(error) if "; fix: " in str(error) else _first_line(error)).partition("; fix: ")
            return Check(name, False, found, own_fix or fix)

    def _driver(self) -> Check:
        if errors := self._here["errors"]:
            told = ", ".join(f"{name}: {error}" for name, error in errors.items())
            return Check("driver", False, told, "pip install 'dfn-etl[spark,train]'")
        return Check("driver", True, f"Python {self._here['python']}, {_versions(self._here['packages'])}")

    def _spark(self) -> str:
        spark = self.project.store.spark
        return f"{spark.version}, {self.project.config.spark.master}"

    def _tables(self) -> str:
        store = self.project.store
        table = replace(PROBED, name=f"doctor_{os.getpid()}_{time.time_ns() % 10**6}")
        store.create("", table)
        try:
            store.append_once(store.rows("", table, [("here",)]), "", table, content="probe", note={"slice": {}})
            found = [row["host"] for row in store.read("", table).collect()]
        finally:
            store.drop("", table)
        if found != ["here"]:
            raise UserError(f"wanted the row that was written; found {found}; fix: the store's consistency")
        return f"a table was written, read and removed in {store.root}"

    def _executors(self, told: list[Told]) -> Check:
        """Imports, and versions that are the driver's: vectors and pickled functions depend on them."""
        wrong = {
            f"{name} on {each['host']}: {found}, on the driver {wanted}"
            for each in told
            for name, wanted, found in self._compared(each)
            if found != wanted
        }
        if wrong:
            return Check("executors", False, "; ".join(sorted(wrong)), "one environment: docs/how-to/cluster.md")
        workers, hosts = {(each["host"], each["process"]) for each in told}, {each["host"] for each in told}
        found = f"{len(workers)} Python workers on {len(hosts)} hosts, packages as the driver's"
        return Check("executors", True, found)

    def _compared(self, told: Told) -> Iterator[tuple[str, str, str]]:
        minor = [python.rpartition(".")[0] for python in (self._here["python"], told["python"])]
        yield ("Python", *minor)
        for name in IMPORTS:
            wanted = self._here["packages"].get(name, "none")
            yield name, wanted, told["packages"].get(name) or told["errors"].get(name, "none")

    def _code(self, told: list[Told]) -> Check:
        """A repository of the user may hold packages `etl` and `models` too: it is the content that is compared."""
        wrong = {
            f"{name} on {each['host']} is {each['code'].get(name, {}).get('place') or each['errors'].get(name)}"
            for each in told
            for name, ours in self._here["code"].items()
            if each["code"].get(name, {}).get("content") != ours["content"]
        }
        if wrong:
            fix = "make zip, then --py-files dist/dfn_etl.zip; on Databricks the wheel of this release"
            return Check("code", False, "other code than the driver's: " + "; ".join(sorted(wrong)), fix)
        versions = ", ".join(f"{name} {ours['content']}" for name, ours in self._here["code"].items())
        return Check("code", True, f"{versions}: the same on driver and executors")

    def _gpus(self, told: list[Told]) -> Check:
        given = {(each["host"], each["gpu"]) for each in told if each["gpu"] is not None}
        num_cuda = sum({each["host"]: each["num_cuda"] for each in told}.values())
        if given and any(each["num_cuda"] == 0 for each in told):
            return Check("gpus", False, f"Spark gives {len(given)} addresses and torch sees no CUDA there",
                         "the driver of the GPU, and a CUDA build of torch on executors")  # fmt: skip
        if num_cuda and not given:
            return Check("gpus", False, f"{num_cuda} GPUs and no address for any task: all would take the first",
                         "--properties-file conf/spark/gpu.conf")  # fmt: skip
        if not given:
            return Check("gpus", True, "none: models run on CPUs")
        return Check("gpus", True, f"{len(given)} addresses on {len({host for host, _ in given})} hosts{self._slots()}")

    def _slots(self) -> str:
        conf = self.project.store.spark.conf
        names = ("executor.cores", "task.cpus", "executor.resource.gpu.amount", "task.resource.gpu.amount")
        return slots(*(float(conf.get(f"spark.{name}", "0") or 0) for name in names))

    def _data(self, name: str) -> str:
        dataset = self.project.config.datasets[name]
        if dataset.corpus is not None:
            return "a public corpus, made on first use"
        if table := next((source for source in (dataset.images, dataset.urls) if is_table(source)), None):
            pinned = pin_table(self.project.store.spark, table)
            return f"{len(list_table(pinned)):,} data files of {pinned}"
        pattern = next(iter(dataset.globs))
        files = list_shards(f"{pattern}*" if pattern.endswith("/") else pattern)
        if not files:
            raise UserError(f"wanted files; found none that match {pattern}; fix: datasets.{name}")
        uri, storage = files[0].uri, self.project.config.storage

        def read(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
            use(storage)
            for batch in batches:
                with open_ranges(uri) as file:
                    yield pd.Series([len(file.read(BLOCK_BYTES))] * len(batch))

        asked = self.project.store.spark.range(0, self.num_tasks, 1, self.num_tasks)
        reader = series_udf(read, "long")  # Python: as stages read shards
        lengths = [row["n"] for row in asked.select(reader(F.col("id")).alias("n")).collect()]
        if min(lengths) == 0:
            raise UserError(f"wanted bytes; found none in {uri}; fix: datasets.{name}")
        return f"{len(files):,} files; executors read {uri}"

    def _mlflow(self) -> str:
        import mlflow

        from models.tracking import answering, experiment_of

        uri, name = self.project.tracking_uri, self.project.config.name
        with answering(uri):
            client = mlflow.MlflowClient()
            run = client.create_run(experiment_of(client, name, uri), run_name="doctor")
            client.delete_run(run.info.run_id)
            num_models = len(client.search_registered_models(max_results=100))
        return f"{uri}: runs can be written, {num_models} registered models seen"


def slots(cores: float, cpus: float, gpus: float, share: float) -> str:
    """What an executor runs at once: whichever of cores and GPUs gives fewer tasks leaves the other idle.

    Args:
        cores, gpus: of an executor.
        cpus, share: cores and GPUs of a task; a GPU is shared by floor(1 / share) tasks, as Spark counts. 0: not set.
    """
    if not (cores and gpus and share):
        return ""
    by_core = cores // (cpus or 1)
    by_gpu = gpus * (1 / share // 1) if share < 1 else gpus // share
    if by_core < by_gpu:
        return f", {by_core:.0f} tasks an executor: {by_gpu - by_core:.0f} more would fit its GPUs"
    idle = f", {cores - by_gpu * (cpus or 1):.0f} cores are left to decoding threads" if by_core > by_gpu else ""
    return f", {by_gpu:.0f} tasks an executor{idle}"


def _first_line(error: Exception) -> str:
    """Of an executor's error the last line of its trace says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.partition(":")[0].endswith(("Error", "Exception"))), "")
    return told or f"{type(error).__name__}: {lines[0] if lines else ''}"


def _versions(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())
