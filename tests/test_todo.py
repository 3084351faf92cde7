"""`dfn status`: what it says is left is what the next run does, whatever state a run was left in."""

import pytest
from helpers import picture, write_shard

from etl.config import load
from etl.job import Progress
from etl.project import Project
from etl.stages import dedup, ingest, signals
from etl.tables import SIGNALS
from etl.todo import Todo

STAGES = ("ingest.pool", "signals.pool", "dedup.pool", "decontaminate.pool", "embed.pool")


class StoppedError(Exception):
    """As if somebody had pulled the plug after a commit."""


def stop(_: Progress) -> None:
    raise StoppedError


@pytest.fixture
def made(spark, tmp_path):
    """made(*settings, on_progress) -> the project as a new process has it; two shards of four pairs each are there."""
    (tmp_path / "in").mkdir()
    for shard in range(2):
        add_shard(tmp_path, shard)

    def project(*settings, on_progress=lambda _: None):
        named = ["datasets.pool.kind=pool", f"datasets.pool.shards={tmp_path}/in/*.tar", f"output={tmp_path}/out"]
        return Project(load([], [*named, *settings]), on_progress=on_progress)

    return project


def add_shard(folder, shard):
    pairs = {f"{n}": {"png": picture(n), "txt": f"a picture of {n}".encode()} for n in range(4 * shard, 4 * shard + 4)}
    write_shard(folder / "in" / f"{shard}.tar", pairs)


def told(project, *stages):
    """Stage -> what is said of it, without what is not set and without seconds."""
    todo = Todo(project)
    every = {f"{standing.stage}.{standing.dataset}": standing.told() for standing in todo.standings}
    found = {name: {k: v for k, v in every[name].items() if v is not None} for name in stages or STAGES}
    for line in found.values():
        line.pop("about_seconds", None), line.pop("version", None)
    return found


@pytest.mark.slow
def test_from_nothing_to_all_and_what_is_left_at_each_step(made, tmp_path):
    said = told(made())
    assert said["ingest.pool"] == {"state": "not begun", "rows_left": "2 of 2"}
    assert said["signals.pool"] == {
        "state": "not begun", "why": "reads pool.pairs, not there yet", "runs_after": "ingest.pool"
    }  # fmt: skip
    assert not made().store.exists("pool", SIGNALS), "a look makes no table"
    with pytest.raises(StoppedError):
        made("stages.ingest.chunk_rows=1", on_progress=stop).run(ingest.STAGE, "pool")
    said = told(made("stages.ingest.chunk_rows=1"))
    assert said["ingest.pool"] == {"state": "half done", "rows_left": "1 of 2"}
    assert said["signals.pool"] == {"state": "not begun", "runs_after": "ingest.pool", "rows_left": "at least 4 of 4"}
    assert made().run(ingest.STAGE, "pool").num_rows_written == 1
    made().run(signals.STAGE, "pool"), made().run(dedup.STAGE, "pool")
    said = told(made())
    assert {name: line["state"] for name, line in said.items()} == dict(
        zip(STAGES, ["up to date"] * 3 + ["not begun"] * 2, strict=True)
    )
    assert said["embed.pool"] == {"state": "not begun", "rows_left": "8 of 8"}
    assert Todo(made()).next()["first"] == "decontaminate.pool"
    add_shard(tmp_path, 2)
    said = told(made())
    assert said["ingest.pool"] == {"state": "stale", "why": "rows came since", "rows_left": "1 of 3"}
    assert said["signals.pool"] == {"state": "up to date", "runs_after": "ingest.pool"}
    made().run(ingest.STAGE, "pool")
    said = told(made())
    assert said["signals.pool"] == {"state": "stale", "why": "rows came since", "rows_left": "4 of 12"}
    changed = said["dedup.pool"]
    assert changed["why"].startswith("pool.pairs changed (version ") and changed["rows_left"] == "12 of 12"
    assert made().run(signals.STAGE, "pool").num_rows_written == 4
    # Every row anew, in chunks of a shard each, of which one is committed.
    other = "stages.signals.chunk_rows=4"
    assert told(made(other))["signals.pool"] == {
        "state": "stale", "why": "settings changed: chunk_rows: 1000000 before, 4 now", "rows_left": "12 of 12"
    }  # fmt: skip
    with pytest.raises(StoppedError):
        made(other, on_progress=stop).run(signals.STAGE, "pool")
    assert told(made(other))["signals.pool"] == {"state": "half done", "rows_left": "8 of 12"}
    assert made(other).run(signals.STAGE, "pool").num_rows_written == 8
    assert told(made(other))["signals.pool"] == {"state": "up to date"}


@pytest.mark.slow
def test_the_cost_is_the_pace_of_the_last_runs(made):
    project = made()
    project.run(ingest.STAGE, "pool")
    seconds = project.run(signals.STAGE, "pool").seconds
    (standing,) = [s for s in Todo(made("stages.signals.chunk_rows=4")).standings if s.stage == "signals"]
    assert standing.rows_left == 8 and standing.seconds == pytest.approx(seconds, rel=0.01)
    left = Todo(made("stages.signals.chunk_rows=4")).next()
    assert left["first"] == "signals.pool" and left["about_seconds"] == pytest.approx(seconds, abs=0.06)
    assert "embed.pool" in left["cost_not_known_of"]
