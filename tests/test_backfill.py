"""Promotion and backfill are two acts: scheduled runs keep to @serving, and a backfill moves it when all is covered."""

import json
from functools import partial

import pytest
from helpers import picture, write_shard
from test_models_encoder import TINY, tiny_clip
from test_models_filters import random_heads

from etl.__main__ import _run, app
from etl.loop.backfill import Plan, model_of
from etl.stage import UserError
from etl.store import Store
from etl.tables import EMBEDDINGS, RUNS, SCORES
from models import registry, spool
from models.filters import save_filter
from models.tracking import answering

PER_SHARD = 8


def add_shard(folder, number):
    seeds = range(number * PER_SHARD, (number + 1) * PER_SHARD)
    samples = {f"{n}": {"png": picture(n, (40, 30)), "txt": f"picture number {n}".encode()} for n in seeds}
    write_shard(folder / f"{number}.tar", samples)


@pytest.fixture(scope="module")
def world(tmp_path_factory, mlflow_template):
    """Two shards, a small CLIP as encoder, and two registered filters of it; no alias."""
    root = tmp_path_factory.mktemp("backfill")
    (root / "shards").mkdir()
    for number in (0, 1):
        add_shard(root / "shards", number)
    record, uri = tiny_clip(root / "encoder"), f"sqlite:///{root}/mlflow.db"
    (root / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    for seed in (1, 2):
        heads = root / "models" / f"filter-{seed}"
        dim = TINY["embed_dim"]
        save_filter(heads, random_heads(dim, dim, 3, seed=seed), encoder_record=record)
        told = {"params": {}, "metrics": {}, "step_losses": [1.0], "inputs": {}, "folder": heads}
        run_id = spool.log_training_run(uri, "tiny", f"filter {seed}", **told)
        with answering(uri):
            registry.register_filter(run_id, heads, root / "encoder")
    return root


@pytest.fixture
def dfn(spark, world, capsys):
    """dfn(command, *arguments) -> (exit code, the JSON line, stderr)."""
    settings = {
        "datasets.pool.corpus": "null", "datasets.pool.shards": f"{world}/shards/*.tar", "output": world,
        "encoder.packages": "null", "encoder.folder": world / "encoder", "stages.embed.chunk_rows": PER_SHARD,
    }  # fmt: skip

    def call(command, *arguments):
        capsys.readouterr()
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        code = _run(partial(app, [command, "--conf", "tiny", "--json", *options, *arguments]))  # later ones win
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    return call


def aliases(world, **moved):
    """Of the filter, after those in `moved` were set."""
    with answering(f"sqlite:///{world}/mlflow.db"):
        for alias, number in moved.items():
            registry.set_alias("dfn_filter", alias, number)
        return registry.aliases("dfn_filter")


def scored(spark, world):
    """Rows by filter version, in the order of their number in the registry."""
    store = Store(spark, f"{world}/tables")
    if not store.exists("pool", SCORES):
        return []
    rows = store.read("pool", SCORES).groupBy("filter_version").count().collect()
    counts = {row["filter_version"]: row["count"] for row in rows}
    with answering(f"sqlite:///{world}/mlflow.db"):
        return [counts.get(registry.tags_of("dfn_filter", number)["filter_version"], 0) for number in "12"]


def written(spark, world, stage):
    """Rows that each run of a stage wrote, and its hours, oldest first."""
    runs = Store(spark, f"{world}/tables").read("", RUNS).where(f"name = '{stage}'").orderBy("ended_at").collect()
    return [(json.loads(row["facts_json"])["num_rows_written"], row["seconds"] / 3600) for row in runs]


@pytest.mark.slow
def test_scheduled_runs_score_new_pairs_under_serving_until_a_backfill_moves_it(spark, world, dfn):
    _, first, _ = dfn("run", "--dataset", "pool")
    assert (first["embed.pool"], "serving" in first, "backfill" in first) == ({"ok": 16}, False, False)
    aliases(world, champion="1")
    _, told, _ = dfn("run", "--dataset", "pool")
    assert told["serving"] == "none" and "0 pairs to encode and 16 to score, unknown hours" in told["backfill"]

    code, plan, err = dfn("backfill")  # no run of the stage tells what it takes
    assert (code, plan["rows_to_encode"], plan["rows_to_score"], plan["hours"]) == (2, 0, 16, "unknown")
    assert "fix: --yes" in err and scored(spark, world) == [] and aliases(world) == {"champion": "1"}
    code, done, _ = dfn("backfill", "--yes")
    assert (code, done["serving"], scored(spark, world)) == (0, "version 1", [16, 0])
    assert aliases(world) == {"champion": "1", "serving": "1"}

    aliases(world, champion="2")
    add_shard(world / "shards", 2)
    _, told, _ = dfn("run", "--dataset", "pool")
    assert [rows for rows, _ in written(spark, world, "embed")] == [16, 8]
    assert (told["serving"], scored(spark, world)) == ("version 1", [24, 0])
    assert "version 2 is the champion and not serving: a backfill takes 0 pairs to encode and 24" in told["backfill"]

    code, plan, err = dfn("backfill", "--set", "backfill.max_gpu_hours=0")
    assert (code, scored(spark, world), aliases(world)["serving"]) == (2, [24, 0], "1")
    assert "wanted at most 0 hours of work; found 0 pairs to encode and 24 to score, about" in err
    _, plan, _ = dfn("backfill", "--plan")
    embeds, scores = written(spark, world, "embed"), written(spark, world, "score")
    assert plan["max_gpu_hours"] == pytest.approx(2 * (embeds[-1][1] + scores[-1][1]), rel=0.01)
    assert plan["hours"] == pytest.approx(24 * sum(h for _, h in scores) / sum(rows for rows, _ in scores), rel=0.01)
    code, done, _ = dfn("backfill", "--set", "backfill.max_gpu_hours=1")
    assert (code, done["serving"], scored(spark, world)) == (0, "version 2", [24, 24])
    assert aliases(world) == {"champion": "2", "serving": "2"}
    assert Store(spark, f"{world}/tables").read("pool", EMBEDDINGS).count() == 24
    _, told, _ = dfn("run", "--dataset", "pool")
    assert (told["serving"], "backfill" in told, len(written(spark, world, "embed"))) == ("version 2", False, 2)

    tiny_clip(world / "other", seed=1)  # the project goes on with another encoder
    code, told, _ = dfn("run", "--dataset", "pool", "--set", f"encoder.folder={world}/other")
    assert (code, told["embed.pool"], scored(spark, world)) == (0, {"ok": 24}, [24, 24])
    assert told["serving"] == "version 2" and told["not_scored"].startswith("wanted encoder ")


@pytest.mark.parametrize(
    ("rows", "hours", "most", "asks"),
    [
        ((0, 0), 0.0, 0.0, False),
        ((0, 5), 1.0, 1.0, False),
        ((5, 0), 1.01, 1.0, True),
        ((5, 5), None, 9.0, True),  # not known
        ((5, 5), 0.1, None, True),  # nothing to hold it against
        ((0, 0), 0.0, None, False),
    ],
)
def test_work_above_the_limit_or_unknown_wants_consent(rows, hours, most, asks):
    assert Plan("models:/f@champion", "v", *rows, hours, most).wants_consent is asks


def test_only_registered_filters_can_serve():
    assert [model_of(uri) for uri in ("models:/a_b@champion", "models:/a_b/3")] == ["a_b", "a_b"]
    with pytest.raises(UserError, match="wanted models:/NAME@ALIAS"):
        model_of("build/filter")
