"""`dfn verify` of a project: contracts, shards with a manifest, an encoder and its vectors. Each fault is planted."""

import json
from pathlib import Path

import pytest
from helpers import frame, picture, write_shard
from training_data import tiny_encoder

from etl.checks import contracts, pixels, verify
from etl.config import load
from etl.project import Project
from etl.shard_writer import write_manifest
from etl.stage import Table
from etl.tables import EMBEDDINGS, PAIRS
from models.canary import CANARIES, write_canaries
from models.encoder import Encoder
from models.records import sha256_file

FRUIT = Table(
    "fruit",
    key=("name",),
    ddl="name STRING NOT NULL, grams INT, kind STRING",
    checks={"grams_positive": "grams > 0"},
)


def said(store, dataset: str, columns: str, *rows: str) -> list[str]:
    """Of a table that somebody else made."""
    name = store.name(dataset, FRUIT)
    store.spark.sql(f"CREATE TABLE {name} ({columns}) USING DELTA")
    if rows:
        store.spark.sql(f"INSERT INTO {name} VALUES {', '.join(rows)}")
    return [line.partition("; fix:")[0] for line in contracts.problems_of(store, dataset, FRUIT)]


def test_a_table_that_breaks_its_contract_is_told_by_what_it_breaks(store):
    whole = "name STRING, grams INT, kind STRING"
    assert said(store, "a", whole, "('a', 1, 'x')", "('b', NULL, NULL)") == []
    assert said(store, "b", whole, "('a', 1, 'x')", "('a', 0, 'x')", "(NULL, 1, 'x')") == [
        "b.fruit: 1 rows break the check grams_positive", "b.fruit: 1 rows break the check name is not NULL",
        "b.fruit: 1 keys (name) come more than once",
    ]  # fmt: skip
    assert said(store, "c", "name STRING, grams BIGINT") == [
        "c.fruit: wanted the column kind; found none", "c.fruit: grams: wanted int; found bigint"
    ]  # fmt: skip


def test_a_damaged_table_is_a_line_that_names_it_and_no_exception(store):
    store.create("garden", FRUIT)
    store.append_once(store.rows("garden", FRUIT, [("a", 1, "x")]), "garden", FRUIT, content="1", note={"slice": {}})
    for file in Path(store.root, "garden", "fruit").glob("*.parquet"):
        file.unlink()
    (line,) = contracts.problems_of(store, "garden", FRUIT)
    assert line.startswith("garden.fruit: cannot be read: ")
    assert line.endswith("fix: give its files back, or drop it and run again (dfn run)")


@pytest.fixture(scope="module")
def project(spark, tmp_path_factory) -> Project:
    """Six pairs in two shards with a manifest, and their vectors under a small encoder."""
    root = tmp_path_factory.mktemp("checks")
    for number in range(2):
        numbers = range(3 * number, 3 * number + 3)
        samples = {f"{n:032x}": {"png": picture(n, size=(40, 30)), "txt": b"a caption"} for n in numbers}
        write_shard(root / "in" / f"{number}.tar", samples)
    entries = [{"shard": path.name, "num_samples": 3, "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
               for path in sorted((root / "in").glob("*.tar"))]  # fmt: skip
    write_manifest(str(root / "in"), entries, {})
    encoder = tiny_encoder(root / "encoder")
    write_canaries(encoder, Encoder.load(encoder))
    (root / "conf.yaml").write_text(json.dumps({
        "name": "checks", "output": str(root / "out"), "evalsets": {"root": str(root / "sets")},
        "encoder": {"folder": str(encoder)}, "datasets": {"pool": {"kind": "pool", "shards": f"{root}/in/*.tar"}},
    }))  # fmt: skip
    project = Project(load([str(root / "conf.yaml")]))
    project.run_all(["ingest", "signals", "embed"])
    return project


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_a_whole_project_passes(project):
    assert list(verify.contents(project)) == []
    assert list(verify.rows(project)) == []


@pytest.mark.slow
@pytest.mark.parametrize("at", [100, 700, -1], ids=["a header", "an image", "the end"])
def test_one_flipped_byte_anywhere_in_a_shard_is_found(project, at):
    path = project.config.output_folder.parent / "in" / "1.tar"
    flip(path, at)
    try:
        (place,) = verify.places(project)
        found = list(pixels.shard_problems(project, place))
    finally:
        flip(path, at)
    assert found and all(line.startswith(f"pool: {path}: ") and "; fix: " in line for line in found)
    assert any("its sha256 is another" in line for line in found)


@pytest.mark.slow
def test_without_a_manifest_a_flipped_byte_of_an_image_is_found(project):
    folder = project.config.output_folder.parent / "in"
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").unlink()
    (place,) = verify.places(project)
    try:
        assert list(pixels.shard_problems(project, place)) == []
        row = project.store.read("pool", PAIRS).where("shard = '1.tar'").orderBy("offset_bytes").first()
        flip(folder / "1.tar", row["offset_bytes"] + 60)
        (line,) = pixels.shard_problems(project, place)
        flip(folder / "1.tar", row["offset_bytes"] + 60)
        what = f"another sha256 at {row['offset_bytes']}"
        assert line.startswith(f"pool: 1.tar: 1 of its images are not what ingest read ({what}); fix: ")
    finally:
        (folder / "manifest.json").write_bytes(manifest)


@pytest.mark.slow
def test_vectors_that_are_not_the_encoders_and_canaries_that_differ_are_found(project):
    store, folder = project.store, project.encoder[1]
    row = store.read("pool", EMBEDDINGS).orderBy("uid").first().asDict()
    other = bytes(reversed(row["image_embedding"]))
    store.merge(frame(store.spark, EMBEDDINGS, [{**row, "image_embedding": other}]), "pool", EMBEDDINGS,
                note={"slice": {}}, do="update")  # fmt: skip
    (line,) = pixels.encoder_problems(project)
    assert line.startswith("pool.embeddings: 1 of 6 vectors that were made again are others; fix: ")
    store.merge(frame(store.spark, EMBEDDINGS, [row]), "pool", EMBEDDINGS, note={"slice": {}}, do="update")
    kept = (folder / CANARIES).read_text()
    changed = json.loads(kept)
    changed["images"][0] += 0.1
    (folder / CANARIES).write_text(json.dumps(changed))
    (line,) = pixels.encoder_problems(project)
    (folder / CANARIES).write_text(kept)
    assert "wanted canary images with cosines" in line and "fix: " in line
    assert list(pixels.encoder_problems(project)) == []
