"""One decode, many readers: two encoders share each chunk's pass, and their tables are those of runs of their own."""

import json
import os
import signal
import sys
import tarfile
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from helpers import picture, places, write_shard
from pyspark import cloudpickle
from test_models_encoder import tiny_clip

from etl.cache import cache_folder
from etl.config import load
from etl.encode.gpu import Pass, make_pass
from etl.encode.image_models import fetched
from etl.encode.readers import EncoderSpec
from etl.export.export import export_selection
from etl.project import Project
from etl.samples.packages import fetch_package
from etl.stages import embed, image_signals, ingest, listed
from etl.tables import EMBEDDINGS, IMAGE_SIGNALS, PAIRS, RUNS
from models import faces
from models.data import uid_to_u8
from models.encoder import Encoder
from models.faces import FaceReader
from models.images import decode_rgb
from models.nsfw import NsfwReader, prepare

NUM_SHARDS, PER_SHARD = 3, 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """36 pairs in three shards; one image is damaged, one caption is missing."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(NUM_SHARDS):
        samples = {}
        for n in range(PER_SHARD):
            seed = number * PER_SHARD + n
            kind = "jpg" if n % 2 else "png"
            image = picture(seed, (40 + n, 30 + number), "JPEG" if n % 2 else "PNG")
            samples[f"{n:02}"] = {kind: image, "txt": f"picture number {seed}".encode()}
        samples["03"]["jpg"] = samples["03"]["jpg"][:200]
        write_shard(folder / f"{number}.tar", samples)
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Two tiny CLIPs of other weights and another batch size."""
    root = tmp_path_factory.mktemp("encoders")
    records = [tiny_clip(root / name, seed=seed, batch_size=size) for name, seed, size in (("a", 0, 8), ("b", 1, 5))]
    return [(record, root / name) for record, name in zip(records, ("a", "b"), strict=True)]


@pytest.fixture
def project(spark, shards, encoders, tmp_path):
    """project(main, *more) -> a project whose encoders are those numbers; all on the same tables."""

    def make(main: int, *more: int, **settings) -> Project:
        values = {
            "datasets.pool.corpus": "null", "datasets.pool.shards": f"{shards}/*.tar", "output": tmp_path,
            "encoder.packages": "null", "encoder.folder": encoders[main][1], "stages.embed.chunk_rows": PER_SHARD,
            **{f"more_encoders.e{number}.packages": "null" for number in more},
            **{f"more_encoders.e{number}.folder": encoders[number][1] for number in more},
            **settings,
        }  # fmt: skip
        return Project(load(["tiny"], [f"{key}={value}" for key, value in values.items()]))

    return make


class Passes(list):
    """The number of readers of every pass over a chunk; the pass that is number `stop_at` is not made."""

    stop_at: int | None = None


@pytest.fixture
def passes(monkeypatch):
    made = Passes()
    original = embed.make_pass

    def counted(work, root):
        made.append(len(work.readers))
        if len(made) == made.stop_at:
            raise RuntimeError(f"killed at pass {made.stop_at}")
        return original(work, root)

    monkeypatch.setattr(embed, "make_pass", counted)
    return made


def image_bytes(project, shards) -> dict[str, bytes]:
    """uid -> file, of every pair whose image is whole."""
    found = {}
    for row in project.store.read("pool", PAIRS).where("status = 'ok'").collect():
        with (shards / row["shard"]).open("rb") as file:
            file.seek(row["offset_bytes"])
            found[row["uid"]] = file.read(row["size_bytes"])
    return found


def assert_vectors_are_those_of_the_encoder_alone(project, record, folder, shards) -> None:
    """To the bit, called pair by pair."""
    encoder, files = Encoder.load(folder), image_bytes(project, shards)
    texts = {row["uid"]: row["text"] for row in project.store.read("pool", PAIRS).collect()}
    where = {"encoder": record.name, "encoder_version": record.version}
    stored = project.store.read("pool", EMBEDDINGS, where=where).collect()
    assert {row["uid"]: row["status"] for row in stored} == {u: "ok" if u in files else "decode_error" for u in texts}
    for row in (row for row in stored if row["status"] == "ok"):
        image_I = encoder.encode_images([encoder.preprocess(files[row["uid"]])])[0]
        text_T = encoder.encode_texts([texts[row["uid"]]])[0]
        assert row["image_embedding"] == image_I.astype("<f2").tobytes()
        assert row["text_embedding"] == text_T.astype("<f2").tobytes()
        assert row["cosine"] == pytest.approx(float(image_I @ text_T), abs=1e-6)


def said_of_pictures(project, model: str, signal: str) -> dict:
    rows = project.store.read("pool", IMAGE_SIGNALS, where={"model": model}).collect()
    return {row["uid"]: row[signal] for row in rows}


def scores_of_the_model_alone(project, shards) -> dict[str, float]:
    reader = NsfwReader.load(fetched("open_nsfw", print)["model_folder"])
    wanted = dict.fromkeys(said_of_pictures(project, "open_nsfw", "nsfw_score"))
    for uid, data in image_bytes(project, shards).items():
        (score,) = reader.run([prepare(np.asarray(decode_rgb(data)), reader.record)])
        wanted[uid] = float(score)
    return wanted


@pytest.mark.slow
def test_four_models_share_one_pass_and_each_has_the_table_of_a_run_of_its_own(project, encoders, passes, shards):
    together = project(0, 1, image_models="[open_nsfw, centerface]")
    together.run(ingest.STAGE, "pool")
    together.run(embed.STAGE, "pool")
    assert passes == [4] * NUM_SHARDS
    assert [run.num_rows_by_status for run in together.runs[-4:]] == [{"ok": 33, "decode_error": 3}] * 4
    assert together.run(image_signals.STAGE, "pool").is_up_to_date
    for encoder in encoders:
        assert_vectors_are_those_of_the_encoder_alone(together, *encoder, shards)
    found = said_of_pictures(together, "open_nsfw", "nsfw_score")
    assert found == pytest.approx(scores_of_the_model_alone(together, shards), abs=1e-6)
    boxes = said_of_pictures(together, "centerface", "face_boxes")  # of noise
    assert boxes == {uid: None if score is None else [] for uid, score in found.items()}

    passes.clear()
    again = project(0, 1, image_models="[open_nsfw, centerface]")
    again.run(embed.STAGE, "pool")
    assert [run.is_up_to_date for run in again.runs] == [True, True, True, True]
    assert passes == []
    facts = [row["facts_json"] for row in together.store.read("", RUNS).where("name = 'embed'").collect()]
    assert all("decode_seconds" in fact for fact in facts)


@pytest.mark.slow
def test_faces_that_the_pass_found_are_gone_from_an_export(project, tmp_path):
    """A page with twelve press photographs, and a picture of noise."""
    (page,) = fetch_package("python-sklearn-doc", cache=cache_folder()).glob("**/_images/plot_face_recognition_1.png")
    samples = {"faces": {"png": page.read_bytes()}, "noise": {"png": picture(0, (90, 60))}}
    write_shard(tmp_path / "in" / "a.tar", {key: {**image, "txt": key.encode()} for key, image in samples.items()})
    only = {"datasets.pool.shards": f"{tmp_path}/in/*.tar", "output": tmp_path / "out"}
    own = project(0, image_models="[centerface]", **only)
    own.run(ingest.STAGE, "pool")
    own.run(embed.STAGE, "pool")
    uids = {row["text"]: row["uid"] for row in own.store.read("pool", PAIRS).collect()}
    boxes = said_of_pictures(own, "centerface", "face_boxes")
    assert (len(boxes[uids["faces"]]), boxes[uids["noise"]]) == (12, [])

    np.save(tmp_path / "list.npy", uid_to_u8(list(uids.values())))
    run = own.runner.run(listed.STAGE, "pool", listed.of_list(tmp_path / "list.npy", "mine"))
    how = {"shards_root": str(tmp_path / "in"), "blur_faces": True}
    export_selection(own.store, "pool", str(run.slice["selection_id"]), tmp_path / "export", **how)
    with tarfile.open(tmp_path / "export" / "00000.tar") as tar:
        found = {text: tar.extractfile(f"{uid}.png").read() for text, uid in uids.items()}
    assert found["noise"] == samples["noise"]["png"]
    reader = FaceReader.load(fetched("centerface", print)["model_folder"])
    seen = [np.asarray(decode_rgb(data)) for data in (samples["faces"]["png"], found["faces"])]
    before, after = reader.run([faces.prepare(rgb, reader.record) for rgb in seen])
    assert (len(before), after) == (12, [])
    facts = json.loads((tmp_path / "export" / "manifest.json").read_text())["blur_faces"]
    assert (facts["num_pairs_with_faces"], facts["num_pairs_not_looked_at"]) == (1, 0)


@pytest.mark.slow
def test_an_encoder_that_comes_later_is_encoded_alone(project, encoders, passes):
    first = project(0)
    first.run(ingest.STAGE, "pool")
    first.run(embed.STAGE, "pool")
    passes.clear()
    later = project(0, 1)
    later.run(embed.STAGE, "pool")
    assert [run.is_up_to_date for run in later.runs] == [True, False]
    assert passes == [1] * NUM_SHARDS


@pytest.mark.slow
def test_a_kill_while_two_runs_lack_other_chunks_loses_nothing(project, encoders, shards, passes, tmp_path):
    """The first encoder has shard 0 already, the second nothing: their chunks meet out of the second's order."""
    one = tmp_path / "shards"
    one.mkdir()
    (one / "0.tar").symlink_to(shards / "0.tar")
    both = {"datasets.pool.shards": f"{one}/*.tar", "stages.ingest.chunk_rows": 1}
    first = project(0, **both)
    first.run(ingest.STAGE, "pool")
    first.run(embed.STAGE, "pool")
    for name in ("1.tar", "2.tar"):
        (one / name).symlink_to(shards / name)
    project(0, **both).run(ingest.STAGE, "pool")

    passes.clear()
    passes.stop_at = 3
    with pytest.raises(RuntimeError, match="killed at pass 3"):
        project(0, 1, **both).run(embed.STAGE, "pool")
    passes.stop_at = None
    again = project(0, 1, **both)
    again.run(embed.STAGE, "pool")
    assert again.runs[1].num_rows_by_status == {"ok": 33, "decode_error": 3}
    for encoder in encoders:
        assert_vectors_are_those_of_the_encoder_alone(again, *encoder, shards)
    last = project(0, 1, **both)
    last.run(embed.STAGE, "pool")
    assert [run.is_up_to_date for run in last.runs] == [True, True]


def crash_at(image_CHW, *, shape, prepare):
    """Kills the process, as a broken decoder would, at the image of one shape."""
    if tuple(image_CHW.shape) == shape:
        os.kill(os.getpid(), signal.SIGSEGV)
    return prepare(image_CHW)


@dataclass(frozen=True)
class CrashingSpec(EncoderSpec):
    shape: tuple[int, ...] = ()

    def prepare(self):
        return partial(crash_at, shape=self.shape, prepare=super().prepare())


@pytest.mark.slow
def test_an_image_that_always_kills_the_decoder_costs_its_own_row(spark, shards, encoders):
    """F2: the first attempt kills the Python worker; the task that Spark runs again decodes in a child process."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    at = places(shards / "1.tar")
    files = [(name, *at[name]) for name in sorted(at) if not name.endswith("txt") and name != "03.jpg"]
    pointers = spark.createDataFrame(
        [("1.tar", *place, name) for name, *place in files], "s string, o long, n long, t string"
    )
    victim = (3, 31, 46)  # 06.png
    found = {}
    for shape in ((), victim):
        dfn_pass = make_pass(Pass((CrashingSpec(str(encoders[0][1]), shape),)), str(shards))
        rows = pointers.coalesce(1).select("t", dfn_pass("s", "o", "n", "t").alias("v")).collect()
        found[shape] = {row["t"]: (row["v"]["r0_status"], row["v"]["r0_image_embedding"]) for row in rows}
    assert [status for status, _ in found[()].values()] == ["ok"] * len(files)
    assert found[victim] == found[()] | {"06.png": ("decoder_crash", None)}
