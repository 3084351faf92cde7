"""The runner: what is up to date is not done again, what is left is done once, wherever a run was cut."""

from dataclasses import replace

import pytest
from pyspark.sql import functions as F

from etl.run import Runner
from etl.stage import Read, Stage, StageConfig, Table, UserError
from etl.tables import RUNS

WORDS = Table("words", key=("uid",), ddl="uid STRING NOT NULL, shard STRING, text STRING")
SIZES = Table("sizes", key=("uid",), ddl="uid STRING NOT NULL, size INT, status STRING NOT NULL")
LONG = Table("long", key=("uid",), ddl="uid STRING NOT NULL, size INT")
PROOF = Table("proof", key=("name",), ddl="name STRING NOT NULL, num_rows BIGINT NOT NULL")


class Config(StageConfig):
    chunk_rows: int = 2
    factor: int = 1


def measure(words, *, config):
    return words.select(
        "uid", (F.length("text") * config.factor).cast("int").alias("size"), F.lit("ok").alias("status")
    )


def longest(sizes, *, config, facts):
    kept = sizes.where(F.col("size") >= facts["cut"]).select("uid", "size")
    return kept, kept.agg(F.lit("long").alias("name"), F.count(F.lit(1)).alias("num_rows"))


ROWS = Stage("measure", {"words": Read(WORDS)}, (SIZES,), Config, measure, "rows", 1)
TABLE = Stage(
    "longest", {"sizes": Read(SIZES)}, (LONG, PROOF), Config, longest, "table", 1,
    prepare=lambda sizes, config: {"cut": 4 * config.factor},
)  # fmt: skip
FIRST = [("a", "s1", "one"), ("b", "s1", "three"), ("c", "s2", "fives"), ("d", "s2", "six"), ("e", "s3", "eleven")]


@pytest.fixture
def words(store):
    store.create("pool", WORDS)
    add(store, *FIRST)
    return store


def add(store, *tuples):
    frame = store.spark.createDataFrame(list(tuples), "uid string, shard string, text string")
    store.append_once(frame, "pool", WORDS, content=str(tuples), note={"slice": {}})


def found(store, table=SIZES):
    return sorted(tuple(row) for row in store.read("pool", table).collect())


def versions(store, table=SIZES):
    return [commit.version for commit in store.history("pool", table)]


def run(store, stage=ROWS, **config):
    seen = []
    done = Runner(store, {"pool": "pool"}, seen.append).run(stage, "pool", Config(**config))
    return done, [progress.rows_done for progress in seen]


SIZE_OF = [("a", 3, "ok"), ("b", 5, "ok"), ("c", 5, "ok"), ("d", 3, "ok"), ("e", 6, "ok")]


def test_rows_are_committed_by_chunks_of_whole_shards_and_then_up_to_date(words):
    done, progress = run(words)
    assert (found(words), progress, versions(words)) == (SIZE_OF, [2, 4, 5], [3, 2, 1, 0])
    assert (done.num_rows_in, done.num_rows_written, dict(done.num_rows_by_status)) == (5, 5, {"ok": 5})
    again, progress = run(words)
    assert (again.is_up_to_date, progress, versions(words)) == (True, [], [3, 2, 1, 0])


def test_a_run_that_was_cut_goes_on_with_the_chunks_that_are_left(words, monkeypatch):
    writes, append = [], type(words).append_once

    def cut(self, frame, dataset, table, **more):
        if table is SIZES and len(writes) == 1:
            raise KeyboardInterrupt
        writes.append(table)
        append(self, frame, dataset, table, **more)

    monkeypatch.setattr(type(words), "append_once", cut)
    with pytest.raises(KeyboardInterrupt):
        run(words)
    monkeypatch.undo()
    assert len(found(words)) == 4
    _, progress = run(words)
    assert (found(words), progress) == (SIZE_OF, [5])


def test_only_new_rows_are_done_when_the_input_grew_also_within_a_shard(words):
    run(words)
    add(words, ("f", "s0", "zero"), ("g", "s2", "again"))
    done, progress = run(words)
    assert found(words) == [*SIZE_OF, ("f", 4, "ok"), ("g", 5, "ok")]
    assert (done.num_rows_in, done.num_rows_written, progress[-1]) == (7, 2, 7)


@pytest.mark.parametrize(
    "change", [{"config": {"factor": 10}}, pytest.param({"stage": replace(ROWS, version=2)}, marks=pytest.mark.slow)]
)
def test_rows_of_other_config_or_code_are_replaced(words, change):
    run(words)
    done, _ = run(words, change.get("stage", ROWS), **change.get("config", {}))
    factor = change.get("config", {}).get("factor", 1)
    assert found(words) == [(uid, size * factor, "ok") for uid, size, _ in SIZE_OF]
    assert done.num_rows_written == 5


@pytest.mark.slow
def test_a_run_cut_while_it_replaces_old_rows_does_not_mix_them(words, monkeypatch):
    run(words)
    append = type(words).append_once

    def cut(self, frame, dataset, table, **more):
        if table is SIZES:
            raise KeyboardInterrupt
        append(self, frame, dataset, table, **more)

    monkeypatch.setattr(type(words), "append_once", cut)
    with pytest.raises(KeyboardInterrupt):
        run(words, factor=10)
    monkeypatch.undo()
    assert found(words) == [("a", 30, "ok"), ("b", 50, "ok")]
    run(words, factor=10)
    assert found(words) == [(uid, size * 10, "ok") for uid, size, _ in SIZE_OF]


def test_a_table_stage_replaces_its_slice_only_when_its_input_changed(words):
    run(words)
    done, _ = run(words, TABLE)
    long = [("b", 5), ("c", 5), ("e", 6)]
    assert (found(words, LONG), found(words, PROOF)) == (long, [("long", 3)])
    assert done.facts["cut"] == 4 and done.facts["inputs"] == {"pool.sizes": 3}
    words.optimise("pool", SIZES)
    again, _ = run(words, TABLE)
    assert again.is_up_to_date and versions(words, LONG) == [1, 0]
    add(words, ("f", "s9", "sevenfold"))
    run(words)
    changed, _ = run(words, TABLE)
    assert not changed.is_up_to_date
    assert (found(words, LONG), found(words, PROOF)) == ([*long, ("f", 9)], [("long", 4)])


@pytest.mark.slow
def test_a_kill_between_two_tables_of_a_stage_is_made_good(words, monkeypatch):
    run(words)
    write = type(words).replace

    def cut(self, frame, dataset, table, **more):
        if table is PROOF:
            raise KeyboardInterrupt
        write(self, frame, dataset, table, **more)

    monkeypatch.setattr(type(words), "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        run(words, TABLE)
    monkeypatch.undo()
    assert found(words, PROOF) == []
    done, _ = run(words, TABLE)
    assert not done.is_up_to_date
    assert (found(words, LONG), found(words, PROOF)) == ([("b", 5), ("c", 5), ("e", 6)], [("long", 3)])


def test_an_empty_input_gives_empty_tables_with_the_right_schema(store):
    store.create("pool", WORDS)
    assert run(store)[0].is_up_to_date
    run(store, TABLE)
    assert (found(store), found(store, LONG), found(store, PROOF)) == ([], [], [("long", 0)])
    assert store.read("pool", SIZES).columns == ["uid", "size", "status"]


def test_every_run_leaves_a_row_that_says_what_it_read_and_wrote(words):
    done, _ = run(words)
    row = words.read("", RUNS).collect()[0].asDict()
    assert {key: row[key] for key in ("name", "dataset", "key", "inputs", "output_version", "num_rows_in")} == {
        "name": "measure", "dataset": "pool", "key": done.key, "inputs": {"pool.words": 1}, "output_version": 3,
        "num_rows_in": 5,
    }  # fmt: skip
    assert sum(row["num_rows_by_status"].values()) == row["num_rows_in"]


def test_a_table_that_is_being_written_is_refused(words):
    with words.lease("pool", SIZES), pytest.raises(UserError, match="found it being written by process"):
        run(words)


def test_a_transform_with_other_columns_is_an_error_that_names_them(words):
    wrong = replace(ROWS, transform=lambda words, config: words.select("uid", F.lit(1).alias("length")))
    with pytest.raises(TypeError, match=r"table sizes: .*missing \['size', 'status'\], unknown \['length'\]"):
        run(words, wrong)
    assert found(words) == []
