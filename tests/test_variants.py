"""Edited copies of evaluation pictures: what the stage writes is what ingest and embed make of such files."""

import io

import numpy as np
import pydantic
import pytest
from PIL import Image

from etl.config import load
from etl.encode.variants import SIDE_PX, Prepared, VariantsReader, VariantsSpec
from etl.recipe import edits_of, idle_stages
from etl.stages import embed, variants
from etl.tables import PAIRS, VARIANTS
from etl.tar import RangeReader
from models import edits
from models.encoder import Encoder
from models.images import decode_rgb, inspect
from models.pixels import decode


def test_what_is_written_of_a_picture_is_what_would_be_said_of_its_edited_files(tiny):
    """Each by hand, from the picture in its shard: hashes to the bit, vectors but for the rounding of batches."""
    project = tiny[0]
    root, encoder = project.sources["things"].shards.rpartition("/")[0], Encoder.load(project.encoder[1])
    rows = {row["uid"]: row for row in project.store.read("things", VARIANTS).collect()}
    pairs = project.store.read("things", PAIRS).orderBy("uid").collect()
    assert sorted(rows) == [pair["uid"] for pair in pairs] and len(rows) == 100
    with RangeReader() as reader:
        for pair in pairs[::30]:
            picture = decode_rgb(reader.read(f"{root}/{pair['shard']}", pair["offset_bytes"], pair["size_bytes"]))
            row = rows[pair["uid"]]
            assert [look["edit"] for look in row["looks"]] == ["recompressed", "mirrored"]
            assert (row["encoder"], row["encoder_version"], row["status"]) == (
                project.encoder[0].name, project.encoder[0].version, "ok"
            )  # fmt: skip
            for look in row["looks"]:
                file = edits.VARIANTS[look["edit"]](picture)
                assert look["phash"] == inspect(file).phash
                (wanted,) = encoder.encode_images([encoder.preprocess(file)])
                found = np.frombuffer(look["image_embedding"], "<f2")
                np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert len({bytes(look["image_embedding"]) for row in rows.values() for look in row["looks"]}) > 190


def test_they_are_made_in_the_pass_of_embed_and_not_again(tiny):
    """One decode: with embed nothing is left for the stage itself, nor for a second run of either."""
    project = tiny[0]
    parts = project.parts(embed.STAGE, "things")
    assert [stage.name for stage, _ in parts] == ["embed", "variants"]
    assert [embed.settings(config) for _, config in parts[1:]] == [embed.settings(parts[0][1])]
    ((pool_stage, pool),) = project.parts(embed.STAGE, "pool")
    assert pool_stage is embed.STAGE and pool.chunk_rows == 100
    assert [config.chunk_rows for _, config in parts] == [33, 33]  # three forward passes of a picture, not one
    runs = [run for run in project.runs if run.stage == "variants"]
    assert [(run.dataset, run.num_rows_in) for run in runs][:1] == [("things", 100)]
    assert project.run(variants.STAGE, "things").is_up_to_date


@pytest.mark.parametrize(("overrides", "idle", "used"), [
    ([], None, tuple(edits.VARIANTS)),
    (["stages.variants.edits=[cropped, mirrored, cropped]"], None, ("cropped", "mirrored")),
    (["stages.variants.edits=[]"], "stages.variants.edits, such as [mirrored]", ()),
    (["stages.decontaminate_semantic.is_on=false"], "stages.decontaminate_semantic.is_on: true", ()),
    (["encoder={published: datacomp_b32}"], "no encoder.published", ()),
])  # fmt: skip
def test_where_nothing_asks_for_them_none_are_made(overrides, idle, used):
    config = load(["local"], ["name=a", "datasets={pool: {kind: pool, metadata: /none/*.parquet}}", *overrides])
    assert (idle_stages(config).get("variants"), edits_of(config)) == (idle, used)


def test_an_edit_that_is_not_known_is_told_with_those_that_are():
    with pytest.raises(pydantic.ValidationError, match=r"of recompressed, mirrored, .*; found turned inside"):
        variants.Config(edits=("mirrored", "turned inside"))


def test_a_large_picture_is_made_smaller_before_it_is_edited(tiny):
    spec = VariantsSpec(str(tiny[0].encoder[1]), ("mirrored", "white border"))
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((3000, 2000), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, "PNG")
    found = spec.prepare()(decode(file.getvalue()))
    large.thumbnail((SIDE_PX, SIDE_PX))
    assert large.size == (512, 341)
    assert found.phashes == [inspect(edits.VARIANTS[name](large)).phash for name in spec.edits]
    assert len(found.pixels) == 2 and found.pixels[0].shape == found.pixels[1].shape


class Broken:
    """An encoder whose vector of the third picture it sees is not a number."""

    num_oom_halvings = 0
    record = type("Record", (), {"batch_size": 8})

    def encode_images(self, images):
        vectors = np.arange(len(images) * 4, dtype=np.float32).reshape(-1, 4) + 1
        vectors[2] = np.nan
        return vectors


def test_a_picture_of_which_one_copy_has_no_number_has_no_looks():
    reader = VariantsReader(Broken(), 2)
    assert reader.batch_size == 4 and VariantsReader(Broken(), 9).batch_size == 1
    results = reader.encode([Prepared([n, -n], [None, None]) for n in (1, 2, 3)])
    found = reader.finish(results, ["", "", ""])
    assert found["status"] == ["ok", "invalid_output", "ok"] and found["phashes"] == [[1, -1], None, [3, -3]]
    assert found["image_embeddings"][1] is None
    last = [np.frombuffer(vector, "<f2").tolist() for vector in found["image_embeddings"][2]]
    assert last == [[17, 18, 19, 20], [21, 22, 23, 24]]
