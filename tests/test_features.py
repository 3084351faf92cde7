"""Published vectors through the runner and through `dfn`: whole tables, and a selection that needed no pixels."""

import hashlib
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import rows_of, uid

import etl.__main__
import etl.commands.cli
from etl.config import load
from etl.intake.stay_out import StayOut, key_hash
from etl.project import Project
from etl.run import Runner
from etl.shards import verify
from etl.stage import UserError
from etl.stages import features
from etl.store import Store
from etl.tables import EMBEDDINGS, FEATURE_FILES, SCORES, SELECTIONS
from models.published import PUBLISHED
from models.records import EncoderRecord, WeightsError

DIMS = {"b32": 512, "l14": 768}


def pair_of(cosine: float, dim: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Two float16 vectors with this cosine but for their rounding; of lengths that must not matter."""
    one, other = np.linalg.qr(rng.standard_normal((dim, 2)))[0].T
    text = cosine * one + np.sqrt(1 - cosine**2) * other
    return (one * rng.uniform(0.5, 2)).astype(np.float16), (text * rng.uniform(0.5, 2)).astype(np.float16)


def arrays_of(cosines, seed: int = 0) -> dict[str, np.ndarray]:
    """The four arrays of an npz; {"b32": [...], "l14": [...]} plants other cosines in each space."""
    by_space, rng = cosines if isinstance(cosines, dict) else dict.fromkeys(DIMS, cosines), np.random.default_rng(seed)
    made = {}
    for space, dim in DIMS.items():
        pairs = [pair_of(cosine, dim, rng) for cosine in by_space[space]]
        for side, vectors in zip(("img", "txt"), zip(*pairs, strict=True) if pairs else ((), ()), strict=True):
            made[f"{space}_{side}"] = np.array(vectors, np.float16).reshape(-1, dim)
    return made


def write(folder: Path, name: str, uids: list[str], arrays: dict | None, save=np.savez) -> dict | None:
    """A metadata file as DataComp has it, and beside it the npz."""
    rows = {
        "uid": uids,
        "url": [f"http://{name}/{n}" for n in range(len(uids))],
        "text": [f"caption {u}" for u in uids],
    }
    frame = pd.DataFrame(rows).assign(original_width=640, original_height=480, sha256="a" * 64)
    frame.to_parquet(folder / f"{name}.parquet")
    if arrays is not None:
        save(folder / f"{name}.npz", **arrays)
    return arrays


def loaded(store, folder: Path, name="datacomp_l14", **settings):
    source = SimpleNamespace(metadata=f"{folder}/*.parquet")
    config = features.Config(
        encoder=name, encoder_version=PUBLISHED[name].record.version, without_npz=features.without_npz(source),
        num_tasks=2, **settings,
    )  # fmt: skip
    return Runner(store, {"pool": "pool"}).run(features.STAGE, "pool", config, source=source)


def statuses(store, *more: str) -> list[tuple]:
    return rows_of(store.read("pool", EMBEDDINGS), "uid", "status", *more)


def ledger(store) -> dict:
    """File name -> (status, rows, rows by status)."""
    rows = store.read("pool", FEATURE_FILES).collect()
    assert len({row["uri"] for row in rows}) == len(rows)
    assert all(row["num_rows"] == sum(row["num_by_status"].values()) for row in rows)
    return {Path(row["uri"]).stem: (row["status"], row["num_rows"], row["num_by_status"]) for row in rows}


def versions(store) -> list[int]:
    return [len(store.history("pool", table)) for table in (EMBEDDINGS, FEATURE_FILES)]


# --- what is loaded


def test_vectors_are_loaded_byte_for_byte_under_the_version_of_their_record(store, tmp_path):
    cosines = {"b32": [0.1, -0.2, 0.3], "l14": [0.9, 0.0, -0.5]}
    arrays = write(tmp_path, "0", [uid(n) for n in range(3)], arrays_of(cosines))
    loaded(store, tmp_path)
    loaded(store, tmp_path, "datacomp_b32")
    wanted = []
    for space, model in (("b32", "ViT-B-32"), ("l14", "ViT-L-14")):
        record = {
            "name": f"datacomp_{space}", "source": "published", "published_as": f"openai {model} as published with "
            "DataComp", "image_dim": DIMS[space], "text_dim": DIMS[space], "shares_space": True, "is_normalised": True,
            "dtype": "float16",
        }  # fmt: skip
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        sides = [[row.tobytes() for row in arrays[f"{space}_{side}"]] for side in ("img", "txt")]
        wanted += [(f"datacomp_{space}", version, uid(n), sides[0][n], sides[1][n], "ok", None) for n in range(3)]
    read = store.read("pool", EMBEDDINGS)
    assert rows_of(read.drop("cosine")) == wanted
    found = [row["cosine"] for row in read.orderBy("encoder", "uid").collect()]
    np.testing.assert_allclose(found, [*cosines["b32"], *cosines["l14"]], atol=1e-3)
    exact = [
        float(i @ t / np.linalg.norm(i) / np.linalg.norm(t))
        for s in DIMS
        for i, t in zip(*(arrays[f"{s}_{side}"].astype(float) for side in ("img", "txt")), strict=True)
    ]
    np.testing.assert_allclose(found, exact, atol=2e-7)


def test_more_rows_than_a_batch_stay_in_order(store, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "BATCH_ROWS", 4)  # in this process: by the loader itself
    arrays = write(tmp_path, "0", [uid(n) for n in range(10)], arrays_of(np.linspace(-0.9, 0.9, 10)))
    config = features.Config(encoder="datacomp_l14")
    load_files = features.loader(config)
    files = features.listing(SimpleNamespace(metadata=f"{tmp_path}/*.parquet"))
    *parts, summary = load_files(iter([pa.RecordBatch.from_pandas(files)]))
    assert [len(part) for part in parts] == [4, 4, 2]
    rows = pa.Table.from_batches(parts).to_pandas()
    assert rows["uid"].tolist() == [uid(n) for n in range(10)]
    assert rows["number"].tolist() == list(range(10))
    assert rows["text_embedding"].tolist() == [row.tobytes() for row in arrays["l14_txt"]]
    assert summary.select(["is_file", "status"]).to_pylist() == [{"is_file": True, "status": "ok"}]


# --- what is quarantined

GOOD = {"ok": 2}
SHAPE = "shape (2, 768), a row for each of the parquet file"
NONE = {"no_vectors": 2}
BROKEN = {  # name -> (status of the file, what the reason says, rows by status)
    "a_good": ("ok", None, GOOD),
    "b_cut": ("bad_npz", "BadZipFile", NONE),
    "c_objects": ("bad_npz", "l14_img: wanted numbers of type float16; found object", NONE),
    "d_fewer_rows": ("bad_npz", f"l14_img: wanted {SHAPE}; found (1, 768)", NONE),
    "e_no_npz": ("no_vectors", "there is no npz of its name beside it", NONE),
    "f_other_dims": ("bad_npz", f"l14_img: wanted {SHAPE}; found (2, 7)", NONE),
    "g_no_array": ("bad_npz", "wanted arrays l14_img, l14_txt; There is no item named 'l14_txt.npy'", NONE),
    "h_flipped_bit": ("bad_npz", "BadZipFile: Bad CRC-32", NONE),
    "i_integers": ("bad_npz", "l14_txt: wanted numbers of type float16; found int64", NONE),
    "j_bad_parquet": ("bad_parquet", "Parquet", {}),
    "k_no_rows": ("ok", None, {}),
    "l_other_layout": ("ok", None, GOOD),
    "m_bad_rows": ("ok", None, {"ok": 1, "invalid_output": 4}),
    "n_empty_npz": ("bad_npz", "BadZipFile", NONE),
    "o_false_header": ("bad_npz", "l14_img: wanted 3072 bytes of numbers; found", NONE),
}  # fmt: skip
NOT_PUBLISHED = "the release holds NaN, infinity or zeros"


def write_broken(folder: Path) -> dict[str, dict]:
    """The files of BROKEN; file number k has the uids from 100 k on. Returns the arrays that were meant."""
    meant = {}
    for number, name in enumerate(BROKEN):
        count = {"k_no_rows": 0, "m_bad_rows": 5}.get(name, 2)
        arrays = meant[name] = arrays_of([0.5, -0.25, 0.1, 0.2, 0.3][:count], number)
        given, save = dict(arrays), np.savez
        if name == "c_objects":
            given["l14_img"] = np.array([{}, {}], dtype=object)
        elif name == "d_fewer_rows":
            given = {key: array[:1] for key, array in arrays.items()}
        elif name == "e_no_npz":
            given = None
        elif name == "f_other_dims":
            given["l14_img"] = arrays["l14_img"][:, :7]
        elif name == "g_no_array":
            del given["l14_txt"]
        elif name == "i_integers":
            given["l14_txt"] = np.ones((2, 768), np.int64)
        elif name == "l_other_layout":
            save = np.savez_compressed
            given = {key: np.asfortranarray(array.astype(">f4")) for key, array in arrays.items()}
        elif name == "m_bad_rows":
            with np.errstate(over="ignore"):
                arrays["l14_img"][1, 5], arrays["l14_txt"][2], arrays["l14_txt"][3, 0] = np.nan, 0, -np.inf
                given["l14_txt"] = arrays["l14_txt"].astype(np.float32)
                given["l14_txt"][4, 0] = 1e6  # no float16
        write(folder, name, [uid(100 * number + n) for n in range(count)], given, save)
        break_bytes(folder, name)
    return meant


def break_bytes(folder: Path, name: str) -> None:
    path = folder / f"{name}.{'parquet' if name == 'j_bad_parquet' else 'npz'}"
    if name in ("b_cut", "j_bad_parquet"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "n_empty_npz":
        path.write_bytes(b"")
    elif name == "h_flipped_bit":
        data = bytearray(path.read_bytes())
        data[data.index(b"l14_txt.npy") + 400] ^= 1
        path.write_bytes(data)
    elif name == "o_false_header":
        with np.load(path, allow_pickle=False) as archive:
            whole = dict(archive)
        import zipfile

        with zipfile.ZipFile(path, "w") as archive:
            for key, array in whole.items():
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array_header_1_0(
                        member, {"descr": "<f2", "fortran_order": False, "shape": array.shape}
                    )
                    member.write(array.tobytes()[:-2] if key == "l14_img" else array.tobytes())


@pytest.mark.parametrize("chunk_rows", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_file_that_is_not_what_it_should_be_is_quarantined_with_a_reason_and_the_others_load(
    store, tmp_path, chunk_rows
):
    meant = write_broken(tmp_path)
    run = loaded(store, tmp_path, chunk_rows=chunk_rows)
    wanted = []
    for number, (name, (status, _, _)) in enumerate(BROKEN.items()):
        for n in range(0 if name in ("j_bad_parquet", "k_no_rows") else len(meant[name]["l14_img"])):
            sides = [meant[name][f"l14_{side}"][n].tobytes() for side in ("img", "txt")]
            is_there = status == "ok" and (name != "m_bad_rows" or n == 0)
            row_status = "ok" if is_there else "invalid_output" if status == "ok" else "no_vectors"
            wanted.append((uid(100 * number + n), row_status, *(sides if is_there else (None, None))))
    assert statuses(store, "image_embedding", "text_embedding") == wanted
    rows = {name: (status, sum(by.values()), by) for name, (status, _, by) in BROKEN.items()}
    assert ledger(store) == rows
    assert (run.num_rows_in, sum(run.num_rows_by_status.values())) == (len(BROKEN), len(BROKEN))
    files = {Path(r["uri"]).stem: r["status_reason"] for r in store.read("pool", FEATURE_FILES).collect()}
    assert {name for name, reason in files.items() if reason is None} == {n for n, b in BROKEN.items() if b[1] is None}
    assert [(n, files[n]) for n, (_, says, _) in BROKEN.items() if says and says not in files[n]] == []
    reasons = {row[0]: row[2] for row in statuses(store, "status_reason") if row[1] != "ok"}
    for number, (name, (status, _, _)) in enumerate(BROKEN.items()):
        own = {reasons[u] for u in reasons if int(u, 16) // 100 == number}
        says = f"{status}: {files[name]}"[:200] if status != "ok" else NOT_PUBLISHED
        assert own <= {says}, name
    before = versions(store)
    assert loaded(store, tmp_path, chunk_rows=chunk_rows).is_up_to_date
    assert versions(store) == before


# --- one row per uid, whatever comes when


@pytest.mark.parametrize("chunk_rows", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_the_first_of_a_uid_stays_and_a_row_without_one_gets_that_of_ingest(store, tmp_path, chunk_rows):
    first = write(tmp_path, "0", [uid(1), uid(2), uid(1)], arrays_of([0.1, 0.2, 0.3], 1))
    second = write(tmp_path, "1", [uid(2), "no uid", uid(3).upper()], arrays_of([0.4, 0.5, 0.6], 2))
    third = write(tmp_path, "2", [uid(3), uid(4)], arrays_of([0.7, 0.8], 3))
    made = hashlib.md5(b"http://1/1\0caption no uid").hexdigest()
    wanted = [(uid(1), first, 0), (uid(2), first, 1), (uid(3), second, 2), (uid(4), third, 1), (made, second, 1)]
    loaded(store, tmp_path, chunk_rows=chunk_rows)
    assert statuses(store, "image_embedding") == [(u, "ok", a["l14_img"][n].tobytes()) for u, a, n in wanted]
    assert ledger(store) == {"0": ("ok", 3, {"ok": 3}), "1": ("ok", 3, {"ok": 3}), "2": ("ok", 2, {"ok": 2})}


@pytest.mark.slow
def test_vectors_of_what_was_forgotten_are_counted_and_not_loaded(store, tmp_path):
    write(tmp_path, "0", [uid(0), uid(1), uid(2)], arrays_of([0.1, 0.2, 0.3]))
    loaded(store, tmp_path, stay_out=StayOut(frozenset({bytes.fromhex(key_hash("uid", uid(1)))})))
    assert statuses(store) == [(uid(0), "ok"), (uid(2), "ok")]
    assert ledger(store) == {"0": ("ok", 3, {"ok": 2, "forgotten": 1})}


@pytest.mark.slow
def test_new_files_alone_are_read_and_a_late_npz_begins_anew(store, tmp_path):
    write(tmp_path, "0", [uid(0)], arrays_of([0.5]))
    loaded(store, tmp_path)
    (tmp_path / "0.npz").rename(tmp_path / "0.kept")
    np.savez(tmp_path / "0.npz", nothing=np.zeros(1))  # whoever reads it again finds no vectors
    write(tmp_path, "1", [uid(1)], arrays_of([0.5]))
    run = loaded(store, tmp_path)
    assert (run.num_rows_in, run.num_rows_written) == (2, 1)
    assert statuses(store) == [(uid(0), "ok"), (uid(1), "ok")]
    (tmp_path / "0.kept").rename(tmp_path / "0.npz")
    write(tmp_path, "2", [uid(2)], None)
    loaded(store, tmp_path)
    assert statuses(store) == [(uid(0), "ok"), (uid(1), "ok"), (uid(2), "no_vectors")]
    write(tmp_path, "2", [uid(2)], arrays_of([0.5]))
    loaded(store, tmp_path)
    assert statuses(store) == [(uid(n), "ok") for n in range(3)]
    assert ledger(store) == {str(n): ("ok", 1, {"ok": 1}) for n in range(3)}
    before = versions(store)
    assert loaded(store, tmp_path).is_up_to_date
    assert versions(store) == before


@pytest.mark.slow
def test_a_kill_between_the_two_tables_of_a_chunk_costs_nothing(store, tmp_path, monkeypatch):
    """Its vectors are in, its line in the ledger is not; then a file more has come, and the chunk is another one."""
    for n in range(2):
        write(tmp_path, str(n), [uid(n), uid(9)], arrays_of([0.5, 0.1 * n], n))
    append_once = Store.append_once

    def killed(self, frame, dataset, table, **more):
        if table is FEATURE_FILES:
            raise KeyboardInterrupt
        append_once(self, frame, dataset, table, **more)

    monkeypatch.setattr(Store, "append_once", killed)
    with pytest.raises(KeyboardInterrupt):
        loaded(store, tmp_path, chunk_rows=1)
    monkeypatch.undo()
    assert (len(statuses(store)), set(ledger(store))) == (3, {"0"})
    write(tmp_path, "2", [uid(2)], arrays_of([0.5]))
    loaded(store, tmp_path, chunk_rows=20)
    assert statuses(store) == [(uid(n), "ok") for n in (0, 1, 2, 9)]
    assert ledger(store) == {"0": ("ok", 2, GOOD), "1": ("ok", 2, GOOD), "2": ("ok", 1, {"ok": 1})}


# --- from metadata to a selection


@pytest.fixture
def dfn(spark, monkeypatch, capsys):
    """dfn(*arguments) -> (exit code, the last line of --json)."""
    monkeypatch.setattr(etl.commands.cli, "stop_at_signals", lambda: None)

    def call(*arguments):
        code = etl.__main__._run(partial(etl.__main__.app, [*arguments, "--json", "--quiet"]))
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else err

    return call


@pytest.mark.slow
def test_the_clip_score_baseline_from_metadata_and_npz_alone(dfn, store, tmp_path):
    """Top 30 % by L/14 of three files of 40 rows; B/32 would have chosen others."""
    rng = np.random.default_rng(7)
    uids = [rng.bytes(16).hex() for _ in range(120)]
    cosines = {space: rng.permutation(np.linspace(-0.6, 0.6, 120)) for space in DIMS}
    for n in range(3):
        rows = slice(40 * n, 40 * n + 40)
        write(tmp_path, f"{n:032x}", uids[rows], arrays_of({s: c[rows] for s, c in cosines.items()}, n))
    top = {s: sorted(uids[i] for i in np.argsort(-c)[:36]) for s, c in cosines.items()}
    assert top["l14"] != top["b32"]
    conf = ["--conf", "datacomp", "--set", f"datasets.pool.metadata={tmp_path}/*.parquet"]
    conf += ["--set", f"output={tmp_path}/out", "--set", f"tables={store.root}"]
    code, done = dfn("run", *conf)
    assert (code, done["ingest.pool"], done["features.pool"]) == (0, {"ok": 3}, {"ok": 3})
    assert "embed.pool" not in done
    other = [*conf, "--set", "encoder.published=datacomp_b32"]
    assert dfn("run", *other, "--stage", "features") == (0, {"features.pool": {"ok": 3}})
    for space, chosen_by in (("b32", other), ("l14", conf)):
        code, receipt = dfn("select", *chosen_by, "--filter", "cosine")
        assert (code, receipt["num_rows"]) == (0, 36)
        chosen = store.read("pool", SELECTIONS, where={"selection_id": receipt["selection_id"]})
        assert [row[0] for row in rows_of(chosen, "uid")] == top[space]
        where = {"filter": f"cosine_datacomp_{space}"}
        scored = {row["uid"]: row["score"] for row in store.read("pool", SCORES, where=where).collect()}
        stored = store.read("pool", EMBEDDINGS, where={"encoder": f"datacomp_{space}"}).collect()
        # The same sum in another order, on some CPUs: the last bit of a float32.
        assert scored == pytest.approx({row["uid"]: row["cosine"] for row in stored}, abs=1e-6)
        np.testing.assert_allclose([scored[u] for u in uids], cosines[space], atol=1e-3)
    code, done = dfn("export", receipt["selection_id"], f"{tmp_path}/exported", *conf)
    assert (code, done["shards"], done["samples"]) == (0, 0, 0)
    halves = [(int(u[:16], 16), int(u[16:], 16)) for u in top["l14"]]
    assert [tuple(map(int, u)) for u in np.load(tmp_path / "exported/uids.npy", allow_pickle=False)] == halves
    assert verify(f"{tmp_path}/exported") == []


@pytest.mark.slow
def test_a_published_column_alone_gives_datacomps_clip_score_list(dfn, tmp_path):
    """No npz, no shard: the threshold is the value at index 30 % from the top, and its equals stay."""
    rng = np.random.default_rng(8)
    uids, scores = [rng.bytes(16).hex() for _ in range(100)], rng.integers(0, 12, 100).astype(np.float32) / 16
    for n in range(2):
        rows = slice(50 * n, 50 * n + 50)
        columns = {"uid": uids[rows], "text": ["x"] * 50, "clip_l14_similarity_score": scores[rows]}
        pq.write_table(pa.table(columns), tmp_path / f"{n:032x}.parquet")
    conf = ["--conf", "datacomp", "--conf", "baselines/clip_score", "--set", f"output={tmp_path}/out"]
    conf += ["--set", f"datasets.pool.metadata={tmp_path}/*.parquet"]
    assert dfn("run", *conf, "--stage", "ingest") == (0, {"ingest.pool": {"ok": 2}})
    code, receipt = dfn("select", *conf)
    kept = scores >= -np.sort(-scores)[30]
    assert (code, receipt["num_rows"]) == (0, int(kept.sum())) and kept.sum() > 31
    assert dfn("export", receipt["selection_id"], f"{tmp_path}/exported", *conf)[0] == 0
    halves = sorted((int(u[:16], 16), int(u[16:], 16)) for u, is_kept in zip(uids, kept, strict=True) if is_kept)
    assert np.load(tmp_path / "exported/uids.npy", allow_pickle=False).tolist() == halves
    proof = dfn("select", *conf, "--receipt", f"{tmp_path}/exported/manifest.json")
    assert (proof[0], proof[1]["how"], proof[1]["is_proved"]) == (0, "replayed", True)
    code, same = dfn("diff", receipt["selection_id"], *conf, "--against", f"{tmp_path}/exported/uids.npy")
    assert (code, same["jaccard"], same["not_in_the_pool"]) == (0, 1.0, 0)
    code, found = dfn("explain", uids[0], *conf)
    assert found["selections"] == {f"clip_score {receipt['selection_id']}": "kept" if kept[0] else "outside_rule"}


@pytest.mark.slow
def test_a_bad_npz_is_a_partial_run_and_pairs_without_pixels_are_chosen_only_where_the_rule_says_so(dfn, tmp_path):
    write(tmp_path, "0", [uid(n) for n in range(4)], arrays_of([0.1, 0.4, 0.2, 0.3]))
    write(tmp_path, "1", [uid(n) for n in range(4, 8)], None)
    conf = ["--conf", "datacomp", "--set", f"datasets.pool.metadata={tmp_path}/*.parquet"]
    conf += ["--set", f"output={tmp_path}/out", "--set", "stages.selection.keep.top_fraction=0.5"]
    code, error = dfn("select", *conf, "--filter", "cosine")
    assert code == 2 and "found nothing ingested of pool; fix: dfn run" in error
    code, done = dfn("run", *conf, "--stage", "ingest", "--stage", "features")
    assert (code, done) == (3, {"ingest.pool": {"ok": 2}, "features.pool": {"ok": 1, "no_vectors": 1}})
    facts = {}
    for among in ("[ok]", "[ok, metadata_only]"):
        _, receipt = dfn("select", *conf, "--filter", "cosine", "--set", f"stages.selection.among={among}")
        facts[among] = receipt["facts"]["num_rows_by_status"]
    assert facts == {
        "[ok]": {"kept": 0, "below_cut": 0, "metadata_only": 8},
        "[ok, metadata_only]": {"kept": 2, "below_cut": 2, "no_score": 4},
    }
    write(tmp_path, "1", [uid(n) for n in range(4, 8)], arrays_of([0.5, 0.05, 0.6, 0.01]))  # the rest has come
    assert dfn("run", *conf, "--stage", "features") == (0, {"features.pool": {"ok": 2}})
    _, receipt = dfn("select", *conf, "--filter", "cosine")
    assert receipt["facts"]["num_rows_by_status"] == {"kept": 4, "below_cut": 4}
    assert receipt["facts"]["threshold_uid"] == uid(3)
    _, same = dfn("select", *conf, "--set", "filters.mine={cosine: true}", "--filter", "mine")
    assert same["selection_id"] == receipt["selection_id"], "a filter of the config, by its name"


# --- what is refused


def project_of(*overrides: str) -> Project:
    return Project(load(["datacomp"], ["datasets.pool.metadata=/x/*.parquet", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["encoder.folder=/e"], "encoder: wanted one encoder; found folder and published"),
        (["encoder.published=datacomp_h14"], "encoder.published"),
        (["datasets.pool.metadata=null", "datasets.pool.shards=/x/*.tar"], "wanted pools with metadata.*found pool"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_meant(overrides, says):
    with pytest.raises(UserError, match=says):
        project_of(*overrides)


def test_what_needs_weights_says_that_published_vectors_have_none(monkeypatch, tmp_path):
    monkeypatch.setenv("DFN_CACHE", str(tmp_path))
    project = project_of()
    record, folder = project.encoder
    assert record == PUBLISHED["datacomp_l14"].record == type(record).read(folder)
    with pytest.raises(WeightsError, match=r"wanted the fields of EncoderRecord; found .*record\.json"):
        EncoderRecord.read(folder)
    for stage, other, says in (("embed", project, "no encoder.published"), ("features", None, "encoder.published, ")):
        other = other or Project(load(["tiny"]))
        with pytest.raises(UserError, match=f"stage {stage}: wanted {says}"):
            other.run_all([stage], ["pool"])
