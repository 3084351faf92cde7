"""Runs that are killed and run again (F4, F5): the tables of an unbroken run, nothing doubled, nothing left running."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, running_in, write_shard

from etl.config import DatasetConfig, load
from etl.filters.filters import Filters
from etl.project import Project
from etl.run import Runner
from etl.stage import Stage
from etl.stages import STAGES, ingest, score, selection
from etl.store import Store
from etl.tables import (
    CANDIDATES,
    CRAWL_FILES,
    DATASET_TABLES,
    FEATURE_FILES,
    FETCHES,
    PAIRS,
    PROJECT_TABLES,
    SHARDS,
    VARIANTS,
)

slow = [pytest.mark.slow, pytest.mark.timeout(3600)]
CHUNK = 50
NUM_CALLS = 700
"""Rows that an unbroken run of the tiny recipe puts through the encoder: 400 of the pool, 100 of each other set, those
of the evaluation set once more as edited."""
OF_TIME = {
    "ingested_at",
    "ended_at",
    "decided_at",
    "seconds",
    "cpu_seconds",
    "timings",
    "num_rows_written",
    "git_commit",
}
OF_HISTORY = {"inputs", "output_version", "key", "run_id", "selection_id"}
"""What counts commits, or is named after their number."""
UNWRITTEN = (CANDIDATES, CRAWL_FILES, FEATURE_FILES, FETCHES, SHARDS)
"""Tables of no stage that is run here."""
SECONDS_TO_END = 15


def contents(store: Store, datasets, left_out=OF_TIME) -> dict[str, list]:
    """dataset.table -> rows in order, of every table there is. No key may be there twice."""
    found = {}
    for dataset, table in places(store, datasets):
        rows = [row.asDict(recursive=True) for row in store.read(dataset, table).collect()]
        keys = {tuple(row[column] for column in table.key) for row in rows}
        assert len(keys) == len(rows), f"{dataset}.{table.name}: rows are doubled"
        for row in rows:
            if "facts_json" in row:
                facts = json.loads(row["facts_json"])
                row["facts_json"] = {fact: value for fact, value in facts.items() if fact not in left_out}
        values = [{column: value for column, value in row.items() if column not in left_out} for row in rows]
        found[f"{dataset}.{table.name}"] = sorted(values, key=repr)
    return found


def places(store: Store, datasets) -> list:
    every = [(name, table) for name in datasets for table in DATASET_TABLES] + [("", t) for t in PROJECT_TABLES]
    return [(dataset, table) for dataset, table in every if store.exists(dataset, table)]


def differing(found: dict, expected: dict) -> list[str]:
    """Names of the tables that are not the same, value for value."""
    return [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]


def newest_versions(store: Store, datasets) -> dict[str, int]:
    return {f"{d}.{table.name}": store.history(d, table)[0].version for d, table in places(store, datasets)}


class KillError(Exception):
    """Stands for a kill, within this process."""


class Killer:
    """Every write to a table is killed twice, once before and once right after its commit; then it may pass."""

    def __init__(self, monkeypatch, is_chosen=lambda table: True, moments=("before", "after")):
        self.seen: dict[str, int] = {}
        self.step = 0
        write = Store._write

        def killed(store, frame, dataset, table, note, mode, options):
            name = f"{dataset}.{table.name} {self.step} {note.get('chunk')}"
            number = self.seen.get(name, 0)
            moment = moments[number] if is_chosen(table) and number < len(moments) else ""
            self.seen[name] = number + 1
            if moment == "before":
                raise KillError(name)
            write(store, frame, dataset, table, note, mode, options)
            if moment == "after":
                raise KillError(name)

        monkeypatch.setattr(Store, "_write", killed)

    def until_done(self, run) -> int:
        """Calls `run`, the next step, until nothing kills it. Returns how often it was killed."""
        self.step += 1
        for number in range(100):
            try:
                run()
            except KillError:
                continue
            return number
        raise AssertionError("killed 100 times, and still not done")


@pytest.mark.slow
def test_a_kill_between_pairs_and_inputs_doubles_nothing(spark, tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):  # the last picture of a shard is the first of the next one: the same url, so the same uid
        pictures = range(4 * number, 4 * number + 5)
        samples = {
            f"{n:03}": {"png": picture(n), "txt": b"one", "json": json.dumps({"url": f"http://x/{n}"}).encode()}
            for n in pictures
        }
        samples[f"{number}-broken"] = {"png": b"none", "txt": b"broken"}
        write_shard(shards / f"{number}.tar", samples)
    config = ingest.Config(source="mine", shards_root=str(shards), chunk_rows=1)
    source = DatasetConfig(kind="pool", shards=f"{shards}/*.tar")
    stores = [Store(spark, str(tmp_path / name)) for name in ("unbroken", "broken")]
    whole, broken = (lambda s=s: Runner(s, {"pool": "pool"}).run(ingest.STAGE, "pool", config, source=source)
                     for s in stores)  # fmt: skip
    whole()
    assert Killer(monkeypatch, lambda table: table == PAIRS, ["after"]).until_done(broken) == 3
    expected, found = (contents(store, ["pool"], OF_TIME | OF_HISTORY) for store in stores)
    assert len(expected["pool.pairs"]) == 3 * 5 - 2 + 3
    by_status = [row["num_by_status"] for row in expected["pool.inputs"]]
    assert sum(counts.get("duplicate_uid", 0) for counts in by_status) == 2
    assert differing(found, expected) == []
    assert broken().is_up_to_date


@pytest.fixture
def two_shards(tmp_path, tiny_corpus):
    """make(name) -> a project in a folder of its own: 100 pairs of the tiny pool, and an evaluation set."""

    def make(name: str) -> Project:
        pool = {"datasets.pool.corpus": "null", "datasets.pool.shards": f"{tiny_corpus}/0000[01].tar"}
        settings = {**pool, "output": tmp_path / name, "stages.embed.chunk_rows": CHUNK, "stages.ingest.chunk_rows": 1}
        settings["image_models"] = "[open_nsfw, centerface]"  # in embed's pass, with commits of its own
        settings["stages.dedup_semantic.is_on"] = True
        return Project(load(["tiny"], [f"{key}={value}" for key, value in settings.items()]))

    return make


@pytest.fixture
def tiny_corpus():
    from etl.samples import corpora

    return corpora.build("pool", load(["tiny"]).datasets["pool"].corpus)


@pytest.fixture
def random_filter(tmp_path, two_shards):
    from models.filters import Heads, save_filter

    record, _ = two_shards("any").encoder
    random = np.random.default_rng(0)
    shapes = [(8, record.image_dim), (8,), (8, record.text_dim)]
    heads = Heads(*(random.standard_normal(shape).astype(np.float32) for shape in shapes), log_scale=1.0)
    save_filter(tmp_path / "filter", heads, encoder_record=record)
    return tmp_path / "filter"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_before_and_after_every_commit_of_every_stage(spark, two_shards, random_filter, monkeypatch):
    def run(name: str, stage: Stage, dataset: str):
        project = two_shards(name)  # as a new process has it, with nothing remembered
        settings = project.with_filter(stage, random_filter) if stage is score.STAGE else None
        if stage is selection.STAGE:
            book = Filters(project, dataset, {selection.DFN: random_filter})
            settings = book.scoring(project.config.stages.selection)
        return project.run(stage, dataset, settings)

    def steps(name: str):
        kinds = {dataset: found.kind for dataset, found in two_shards(name).config.datasets.items()}
        # Of other pools, encoders and filters.
        unused = ("collect", "download", "face_boxes", "features", "published_scores", "fusion", "listed")
        stages = [stage for stage in STAGES if stage.name not in unused]
        places = [(stage, dataset) for stage in stages for dataset in ("things", "pool")]
        return [partial(run, name, stage, dataset) for stage, dataset in places if kinds[dataset] in stage.kinds]

    for step in steps("unbroken"):
        step()
    killer = Killer(monkeypatch)
    for step in steps("broken"):
        killer.until_done(step)
    written = {name.partition(" ")[0] for name in killer.seen}
    wanted = {table.name for table in DATASET_TABLES if table not in UNWRITTEN}
    assert {f"{'things' if name == VARIANTS.name else 'pool'}.{name}" for name in wanted} <= written
    stores = [two_shards(name).store for name in ("unbroken", "broken")]
    expected, found = (contents(store, ["pool", "things"], OF_TIME | OF_HISTORY) for store in stores)
    assert len(found["pool.selections"]) == 15
    assert differing(found, expected) == []
    before = newest_versions(stores[1], ["pool", "things"])
    assert all(step().is_up_to_date for step in steps("broken"))
    assert newest_versions(stores[1], ["pool", "things"]) == before


class Command:
    """`dfn run` on the tiny recipe, in a session of its own, with what it says in files."""

    number = 0

    def __init__(self, output: Path):
        output.mkdir(exist_ok=True)
        Command.number += 1
        self.calls_file, self.log = output / f"calls-{Command.number}", output / f"log-{Command.number}"
        self.out = self.log.with_suffix(".out")
        settings = {"output": output, "stages.embed.chunk_rows": CHUNK, "stages.embed.calls_file": self.calls_file}
        settings |= {f"datasets.{name}.corpus.pairs_per_shard": 25 for name in ("pool", "clean", "things")}  # 24 shards
        command = [sys.executable, "-m", "etl", "run", "--conf", "tiny", "--json"]
        command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with self.log.open("w") as log, self.out.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=log, start_new_session=True)

    def said(self) -> str:
        return self.log.read_text()

    def calls(self) -> int:
        """Rows that went through the encoder."""
        return sum(map(int, self.calls_file.read_text().split())) if self.calls_file.exists() else 0

    def wait_for(self, is_reached, seconds: float = 1200):
        deadline = time.monotonic() + seconds
        while not is_reached(self):
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return self

    def result(self) -> dict:
        code = self.process.wait(1200)
        assert code == 0, self.said()
        return json.loads(self.out.read_text().splitlines()[-1])

    def running(self) -> dict[int, str]:
        """Processes of the command's session that still run: JVM and Python workers too, whoever their parent is."""
        return running_in(self.process.pid)

    @cached_property
    def ended(self) -> dict:
        """Sees the command to its end after a signal: exit code, seconds, and what still runs after SECONDS_TO_END."""
        started = time.monotonic()
        try:
            code = self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.monotonic() - started
        while self.running() and time.monotonic() - started < SECONDS_TO_END:
            time.sleep(0.1)
        left = self.running()
        for process in left:
            os.kill(process, signal.SIGKILL)
        return {"code": code, "seconds": seconds, "left": left, "seconds_all": time.monotonic() - started}


def rows_done(command: Command, dataset: str = "pool") -> list[int]:
    return [int(n) for n in re.findall(rf"embed +{dataset} +(\d+) of \d+ rows, ", command.said())]


def committed(command: Command) -> int:
    """Rows of the pool that this very command committed in embed, as it says."""
    done = rows_done(command)
    return done[-1] - done[0] + CHUNK


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    command = Command(tmp_path_factory.mktemp("unbroken") / "output")
    command.result()
    return command


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """One folder: ended by SIGTERM, by Ctrl-C, by kill -9 half way through embed; run to its end; run once more."""
    output = tmp_path_factory.mktemp("broken") / "output"
    commands = {"SIGTERM": Command(output).wait_for(lambda c: 50 in rows_done(c))}
    seen = {"SIGTERM": commands["SIGTERM"].running()}
    commands["SIGTERM"].process.terminate()
    assert commands["SIGTERM"].ended
    commands["SIGINT"] = Command(output).wait_for(lambda c: 150 in rows_done(c))
    seen["SIGINT"] = commands["SIGINT"].running()
    os.killpg(commands["SIGINT"].process.pid, signal.SIGINT)  # as a terminal does: to all in the foreground
    assert commands["SIGINT"].ended
    # Half of all rows are committed, and the next chunk is in the model.
    half = NUM_CALLS // 2
    commands["SIGKILL"] = Command(output).wait_for(lambda c: half in rows_done(c) and c.calls() > committed(c))
    seen["SIGKILL"] = commands["SIGKILL"].running()
    commands["SIGKILL"].process.kill()
    assert commands["SIGKILL"].ended
    commands["again"] = Command(output)
    commands["again"].result()
    print({name: (c.calls(), rows_done(c), c.__dict__.get("ended")) for name, c in commands.items()})
    return output, commands, seen


class TestKills:
    pytestmark = slow

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
    def test_nothing_is_left_running_and_the_exit_code_is_not_zero(self, broken, name):
        _, commands, seen = broken
        assert {"java", "python"} <= {re.sub(r"[\d.]+$", "", process) for process in seen[name].values()}
        ended = commands[name].ended
        assert ended["code"] not in (0, None)
        assert ended["left"] == {}
        assert ("interrupted: what was committed stays" in commands[name].said()) == (name != "SIGKILL")
        assert "Traceback" not in commands[name].said()

    def test_at_most_55_percent_of_the_calls_are_made_after_a_kill_at_half(self, unbroken, broken):
        _, commands, _ = broken
        assert unbroken.calls() == NUM_CALLS
        assert 0 < commands["again"].calls() <= 0.55 * NUM_CALLS
        assert rows_done(commands["again"])[0] > NUM_CALLS // 2
        result = json.loads(commands["again"].out.read_text().splitlines()[-1])
        assert [name for name in result if name.startswith("embed.")] == ["embed.clean", "embed.pool", "embed.things"]
        assert {name for name, value in result.items() if value != "up to date"} == {
            "embed.clean", "embed.pool", "embed.things", "decontaminate_semantic.clean", "decontaminate_semantic.pool",
        }  # fmt: skip

    def test_the_tables_are_those_of_an_unbroken_run(self, spark, unbroken, broken):
        output, _, _ = broken
        datasets = load(["tiny"]).datasets
        stores = [Store(spark, str(folder / "tables")) for folder in (unbroken.log.parent, output)]
        expected, found = (contents(store, datasets) for store in stores)
        assert len(expected["pool.pairs"]) == len(expected["pool.embeddings"]) == 400
        assert differing(found, expected) == []

    def test_a_third_run_does_nothing_and_says_so(self, spark, broken):
        output, _, _ = broken
        datasets = load(["tiny"]).datasets
        store = Store(spark, str(output / "tables"))
        before = newest_versions(store, datasets)
        third = Command(output)
        assert [name for name, value in third.result().items() if value != "up to date"] == []
        assert third.calls() == 0
        assert newest_versions(store, datasets) == before
