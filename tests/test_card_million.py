"""The card of a million pairs: its size does not follow the pool. And how long a browser takes to show something."""

import time

import pytest
from chromium import Browser
from helpers import picture, places, write_shard
from pyspark.sql import functions as F

from etl.config import load
from etl.project import Project
from etl.report import card_facts
from etl.report.showing import SHOWN
from etl.run import Runner
from etl.selection.receipts import receipt_of
from etl.stages import selection
from etl.stages.selection import Config, Keep
from etl.tables import DUPLICATES, PAIRS, SCORES, SIGNALS


@pytest.fixture
def compiling(spark):
    """The session with compiled queries: a million rows are worth it."""
    compiled = {"spark.sql.codegen.wholeStage": "true", "spark.sql.codegen.factoryMode": "FALLBACK"}
    before = {name: spark.conf.get(name) for name in compiled}
    for name, value in compiled.items():
        spark.conf.set(name, value)
    yield spark
    for name, value in before.items():
        spark.conf.set(name, value)


@pytest.mark.slow
def test_the_card_of_a_million_pairs_is_small_and_paints_at_once(compiling, tmp_path, capsys):
    """Prints seconds of gathering, bytes, and seconds to first paint: a machine's, so not asserted."""
    spark, num_pairs = compiling, 1_000_000
    (tmp_path / "in").mkdir()
    noise = {f"{n:02}": {"jpg": picture(n, (640, 480), "JPEG")} for n in range(64)}
    write_shard(tmp_path / "in" / "a.tar", noise)
    at = spark.createDataFrame([(int(name[:2]), *place) for name, place in places(tmp_path / "in" / "a.tar").items()],
                               "m bigint, offset_bytes bigint, size_bytes bigint")  # fmt: skip
    settings = [f"output={tmp_path}/out", "datasets.pool.kind=pool", f"datasets.pool.shards={tmp_path}/in/*.tar"]
    project = Project(load([], settings))
    store, number = project.store, F.col("id")
    rows = spark.range(0, num_pairs, 1, 8).withColumn("uid", F.md5(number.cast("string")))
    made = [
        (PAIRS, rows.withColumn("m", number % 64).join(F.broadcast(at), "m").withColumns({
            "text": F.concat(F.lit("a caption of a picture, number "), number),
            "url": F.concat(F.lit("https://host"), F.xxhash64("id") % 5000, F.lit(".example/"), number),
            "shard": F.lit("a.tar"), "image_format": F.lit("jpeg"), "width_px": F.lit(640), "height_px": F.lit(480),
            "status": F.lit("ok"), "source": F.lit("s"),
        })),
        (SIGNALS, rows.withColumns({
            "language": F.concat(F.lit("l"), number % 150), "num_words": (number % 30).cast("int"),
            "nsfw_text_score": F.lit(0.0), "status": F.lit("ok"),
        })),
        (SCORES, rows.withColumn("f", F.explode(F.array(*map(F.lit, "abcdef")))).withColumns({
            "filter": F.col("f"), "filter_version": F.lit("v" * 16), "status": F.lit("ok"),
            "score": ((F.xxhash64("id", "f") % 1_000_000) / 1e6).cast("float"),
        })),
        (DUPLICATES, rows.where(number % 10 < 2).withColumns({
            "method": F.lit("sha256"), "distance": F.lit(0.0),
            "group_uid": F.md5((number - number % 10).cast("string")),
        })),
    ]  # fmt: skip
    for table, wide in made:
        store.create("pool", table)
        schema = store.schema("pool", table)
        lacking = {f.name: F.lit(None).cast(f.dataType) for f in schema.fields if f.name not in wide.columns}
        whole = wide.withColumns(lacking).select(*schema.names)
        store.append_once(whole, "pool", table, content="1", note={"slice": {}})
    rule = Config(keep=Keep(top_fraction=0.15), scored_by={"dfn": ("a", "v" * 16)})
    run = Runner(store, {"pool": "pool"}).run(selection.STAGE, "pool", rule)
    receipt = receipt_of(store, "pool", str(run.slice["selection_id"]))
    started = time.monotonic()
    page = card_facts.write_card(project, "pool", receipt, tmp_path / "card.html")
    seconds = time.monotonic() - started
    with Browser(tmp_path / "profile") as browser:
        opened = browser.open(page)
        assert (opened.console, opened.requests) == ([], [])
        assert browser.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length") == 5 * SHOWN
    size = page.stat().st_size
    told = f"{seconds:.1f} s, {size:,} bytes, first paint after {opened.first_paint_seconds} s"
    with capsys.disabled():
        print(f"\ncard of {num_pairs:,} pairs: {told}")
    assert size < 10_000_000
    assert opened.first_paint_seconds
