"""Pixels that come after their metadata: all tables are those of a run in which both came at once, kills or not."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
from helpers import picture, rows_of, uid, write_shard
from test_models_encoder import tiny_clip

from etl.checks.ledger import dataset_problems
from etl.config import load
from etl.filters.filters import Filters
from etl.forget.find import Place
from etl.forget.takedown import Takedown
from etl.intake.blocklists import Blocklist
from etl.project import Project
from etl.store import Store
from etl.tables import DUPLICATES, EMBEDDINGS, INPUTS, PAIRS, SCORES, SIGNALS

ALL: tuple[str, ...] = ()
WITH_PIXELS = ("ingest", "embed")
TABLES = (PAIRS, SIGNALS, DUPLICATES, EMBEDDINGS, SCORES)
NOT_COMPARED = {"is_late"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("late") / "clip"
    tiny_clip(folder)
    return folder


def sample(number: int, image: bytes, text: str | None = None) -> dict[str, bytes]:
    members = {"json": json.dumps({"uid": uid(number)}).encode(), "png": image}
    return members if text is None else members | {"txt": text.encode()}


def write_metadata(folder: Path, numbers: range) -> None:
    known = {
        "uid": [uid(n) for n in numbers], "url": [f"http://h/{n}" for n in numbers],
        "text": [f"caption {n}" for n in numbers], "original_width": 640, "original_height": 320,
    }  # fmt: skip
    pd.DataFrame(known).to_parquet(folder / "0.parquet")


def write_shards(folder: Path, *, have_others: bool = True) -> None:
    """0 to 7 are in the metadata; 0 has another caption, 1 is damaged, 5 has the picture of 2, 3 comes twice."""
    of_both = {
        "a": sample(0, picture(10), "its own"), "b": sample(1, picture(11)[:40]), "c": sample(2, picture(12)),
        "d": sample(3, picture(13)),
    }  # fmt: skip
    write_shard(folder / "0.tar", of_both | ({"e": sample(20, picture(30), "new")} if have_others else {}))
    if have_others:
        others = {"a": sample(5, picture(12)), "b": sample(3, picture(14)), "c": sample(21, picture(31))}
        write_shard(folder / "1.tar", others)


@pytest.fixture
def make(spark, encoder, tmp_path):
    """make(name, shards=..., metadata=...) -> a project on the tables of that name, with these keys in its config."""

    def project(name: str, *overrides: str, **named: str) -> Project:
        config = {
            "name": name, "output": str(tmp_path / name), "evalsets": {"root": str(tmp_path / "sets")},
            "datasets": {"pool": {"kind": "pool", **{key: f"{tmp_path}/{glob}" for key, glob in named.items()}}},
            "encoder": {"folder": str(encoder)}, "filters": {"clip": {"cosine": True}},
        }  # fmt: skip
        (tmp_path / "conf.yaml").write_text(json.dumps(config))
        return Project(load([str(tmp_path / "conf.yaml")], overrides))

    return project


BOTH = {"shards": "*.tar", "metadata": "*.parquet"}


def run(project: Project, stages: tuple[str, ...] = ALL) -> None:
    project.run_all(stages)
    Filters(project, "pool").scored_by(["clip"])


def contents(project: Project) -> dict[str, list[tuple]]:
    found = {}
    for table in (table for table in TABLES if project.store.exists("pool", table)):
        frame = project.store.read("pool", table)
        found[table.name] = rows_of(frame, *[c for c in frame.columns if c not in NOT_COMPARED])
    return found


def ledger(project: Project) -> dict[str, dict[str, int]]:
    return {Path(row["uri"]).name: row["num_by_status"] for row in project.store.read("pool", INPUTS).collect()}


def problems(project: Project) -> list[str]:
    record = project.encoder[0]
    return list(dataset_problems(Place("pool", project.store, "pool"), {record.name: record.version}))


def late(project: Project) -> list[tuple]:
    return rows_of(project.store.read("pool", PAIRS).where("is_late"), "uid")


def assert_as_if_at_once(make, *settings: str) -> Project:
    """`first` has the tables of a project that begins now, and a run more does nothing. Returns it."""
    first, at_once = make("first", *settings, **BOTH), make("at_once", *settings, **BOTH)
    run(first)
    run(at_once)
    assert contents(first) == contents(at_once)
    assert (problems(first), problems(at_once), late(at_once)) == ([], [], [])
    before = [len(first.store.history("pool", table)) for table in (*TABLES, INPUTS)]
    run(first)
    assert [len(first.store.history("pool", table)) for table in (*TABLES, INPUTS)] == before
    return first


def test_it_is_as_if_both_had_come_at_once(make, tmp_path):
    settings = ("stages.embed.chunk_rows=2", "stages.ingest.chunk_rows=1")
    write_metadata(tmp_path, range(8))
    first = make("first", *settings, **BOTH)
    run(first)
    waiting = contents(first)
    assert {row[-2] for row in waiting["pairs"]} == {"metadata_only"} and problems(first) == []
    assert [row[-1] for row in waiting["scores"]] == ["no_vectors"] * 8
    write_shards(tmp_path)
    first = assert_as_if_at_once(make, *settings)
    assert late(first) == [(uid(n),) for n in (0, 1, 2, 3, 5)]
    assert ledger(first) == {
        "0.parquet": {"metadata_only": 8}, "0.tar": {"ok": 4, "decode_error": 1},
        "1.tar": {"ok": 1, "duplicate_uid": 1, "missing_text": 1},
    }  # fmt: skip


@pytest.mark.slow
def test_a_chunk_of_the_same_uids_is_another_one_when_their_pixels_have_come(make, tmp_path):
    write_metadata(tmp_path, range(4))
    run(make("first", **BOTH))
    write_shards(tmp_path, have_others=False)
    assert late(assert_as_if_at_once(make)) == [(uid(n),) for n in range(4)]


@pytest.mark.slow
def test_captions_stay_where_the_metadata_is_named_no_more(make, tmp_path):
    """Captions, URLs: what the pairs have of their metadata, since the file cannot be asked."""
    write_metadata(tmp_path, range(4))
    run(make("first", metadata="*.parquet"))
    write_shards(tmp_path)
    first, at_once = make("first", shards="*.tar"), make("at_once", **BOTH)
    run(first)
    run(at_once)
    assert contents(first) == contents(at_once)
    texts = {row["uid"]: (row["text"], row["url"]) for row in first.store.read("pool", PAIRS).collect()}
    assert texts[uid(0)] == ("its own", "http://h/0") and texts[uid(2)] == ("caption 2", "http://h/2")


@pytest.mark.slow
def test_of_a_late_pair_that_is_forgotten_the_ledgers_add_up(make, tmp_path):
    write_metadata(tmp_path, range(4))
    run(make("first", metadata="*.parquet"), WITH_PIXELS)
    write_shards(tmp_path)
    first = make("first", **BOTH)
    run(first, WITH_PIXELS)
    takedown = Takedown(first)
    plan = takedown.plan(Blocklist(uids=frozenset({uid(0)})))
    takedown.begin(plan)
    takedown.finish(plan.takedown_id)
    assert problems(first) == [] and len(late(first)) == 3
    run(first, WITH_PIXELS)
    assert problems(first) == [] and len(late(first)) == 3
    assert uid(0) not in {row[0] for row in contents(first)["pairs"]}


WRITES = ("append_once", "merge", "replace")


class Killed(BaseException):
    pass


def kill_at(monkeypatch, number: int) -> list[str]:
    """The write to a table that has this number is not made, nor any after it; returns what was."""
    made: list[str] = []
    for name in WRITES:
        original = getattr(Store, name)

        def write(self, frame, dataset, table, original=original, **more):
            if len(made) >= number:
                raise Killed
            original(self, frame, dataset, table, **more)
            made.append(table.name)

        monkeypatch.setattr(Store, name, write)
    return made


@pytest.mark.slow
def test_a_kill_before_any_write_costs_nothing(make, tmp_path, monkeypatch):
    write_metadata(tmp_path, range(8))
    write_shards(tmp_path)
    at_once = make("at_once", **BOTH)
    run(at_once, WITH_PIXELS)
    wanted, was_killed = contents(at_once), True
    for number in itertools.count():
        named = {"metadata": "*.parquet", "shards": "*.none"}
        run(make(f"late{number}", **named), WITH_PIXELS)
        made = kill_at(monkeypatch, number)
        try:
            run(make(f"late{number}", **BOTH), WITH_PIXELS)
        except Killed:
            monkeypatch.undo()
        else:
            was_killed = False
        again = make(f"late{number}", **BOTH)
        run(again, WITH_PIXELS)
        assert contents(again) == wanted, made
        assert (problems(again), len(late(again))) == ([], 5), made
        if not was_killed:
            break
    assert {"pairs", "inputs", "embeddings", "scores"} <= set(made)
