"""Releases of others, each by one command: img2dataset, DataComp, LAION's lists, Delta tables. Rows equal theirs."""

import hashlib
import json
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import release
import yaml
from helpers import frame, picture, rows_of, uid, write_shard
from hostile import Site, image, serving

import etl.__main__
import etl.commands.cli
from etl.intake.table_lists import pin_table
from etl.stage import UserError
from etl.stages import collect, ingest
from etl.store import Store
from etl.tables import CANDIDATES, CRAWL_FILES, FETCHES, INPUTS, PAIRS

PER_SHARD = 3


def md5(url: str, text: str) -> str:
    return hashlib.md5(f"{url}\0{text}".encode()).hexdigest()


def rows_of_img2dataset(shard: int) -> list[dict]:
    """Of one shard: two downloads and one that failed, as its writer describes them."""
    found = []
    for number in range(PER_SHARD):
        is_there = number != 1
        data = picture(10 * shard + number, (40, 30), "JPEG")
        size = {"width": 40, "height": 30, "original_width": 400, "original_height": 300}
        found.append({
            "url": f"http://a.test/{shard}/{number}", "caption": f"caption {shard} {number}",
            "key": f"{shard:05d}{number:04d}", "status": "success" if is_there else "failed_to_download",
            "error_message": None if is_there else "HTTP Error 404: Not Found", "exif": "{}" if is_there else None,
            "sha256": hashlib.sha256(data).hexdigest() if is_there else None,
            **(size if is_there else dict.fromkeys(size)), "data": data if is_there else None,
        })  # fmt: skip
    return found


def write_img2dataset(folder: Path) -> list[dict]:
    """Its layout: NNNNN.tar of KEY.jpg, KEY.txt and KEY.json; NNNNN.parquet; NNNNN_stats.json."""
    rows = []
    folder.mkdir()
    for shard in range(2):
        mine = rows_of_img2dataset(shard)
        table = pd.DataFrame([{k: v for k, v in row.items() if k != "data"} for row in mine])
        table.to_parquet(folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": PER_SHARD, "successes": 2}))
        samples = {
            row["key"]: {"jpg": row["data"], "txt": row["caption"].encode(),
                         "json": json.dumps({k: v for k, v in row.items() if k != "data"}).encode()}
            for row in mine if row["data"]
        }  # fmt: skip
        write_shard(folder / f"{shard:05d}.tar", samples)
        rows += mine
    return rows


def write_datacomp(folder: Path) -> list[tuple]:
    """shards/N.tar whose samples name their uid, metadata/HEX.parquet with all rows; (uid, url, text, has pixels)."""
    rows = [(uid(n + 1), f"http://b.test/{n}", f"a picture of {n}", n != 2) for n in range(5)]
    table = pd.DataFrame({
        "uid": [row[0] for row in rows], "url": [row[1] for row in rows], "text": [row[2] for row in rows],
        "original_width": 40, "original_height": 30,
        "clip_b32_similarity_score": 0.25, "clip_l14_similarity_score": 0.2,
        "face_bboxes": [[] for _ in rows], "sha256": ["a" * 64 for _ in rows],
    })  # fmt: skip
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((len(rows), release.SPACES[name[:3]])) for name in release.ARRAYS}
    release.write_file(folder / "metadata", "0" * 32, table, arrays)
    (folder / "shards").mkdir()
    write_shard(folder / "shards/00000000.tar", {
        f"{n:012d}": {"jpg": picture(50 + n, (40, 30), "JPEG"), "txt": text.encode(),
                      "json": json.dumps({"uid": name, "url": url, "caption": text, "key": f"{n:012d}"}).encode()}
        for n, (name, url, text, has_pixels) in enumerate(rows) if has_pixels
    })  # fmt: skip
    return rows


def write_laion(folder: Path, site: Site) -> list[tuple]:
    """Two lists of LAION's columns, and a damaged one: (url, text, sha256, how its download ends)."""
    good = hashlib.sha256(picture(0)).hexdigest()
    rows = [
        (f"{site.url}/0.png", "zero", good, "ok"), (f"{site.url}/1.png", "one &amp; more", None, "ok"),
        (f"{site.url}/2.png", "two", good, "hash_mismatch"), (f"{site.url}/missing", "three", None, "http_error"),
        ("nonsense", "no URL", None, None), (f"{site.url}/4.png", "", None, None),
    ]  # fmt: skip
    folder.mkdir()
    names = ("URL", "TEXT", "sha256")
    table = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    more = {"SAMPLE_ID": range(6), "WIDTH": 8.0, "HEIGHT": 6.0, "similarity": 0.3, "hash": range(6), "LANGUAGE": "en",
            "punsafe": 0.01, "pwatermark": 0.2}  # fmt: skip
    pd.DataFrame(table | more).to_parquet(folder / "part-0.parquet")
    (folder / "part-1.parquet").write_bytes((folder / "part-0.parquet").read_bytes()[:-100])
    pq.write_table(pa.table({"URL": ["http://x"], "SAMPLE_ID": [1]}), folder / "part-2.parquet")
    return rows


# --- rows of their files, through the stages' transforms


def found(spark, folder: Path, names: dict[str, str], **settings) -> list[tuple]:
    """Pairs that ingest makes of files, and the ledger: (rows, {file: (status, samples by status)})."""
    source = SimpleNamespace(**{"shards": None, "metadata": None, "images": None, **names})
    files = spark.createDataFrame(ingest.listing(source))
    config = ingest.Config(source="s", num_tasks=1, shards_root=str(folder), **settings)
    rows, lines = ingest.transform(files, frame(spark, PAIRS, []), config=config)
    ledger = {Path(row["uri"]).name: (row["status"], row["num_by_status"]) for row in lines.collect()}
    return rows_of(rows, *COLUMNS), ledger


COLUMNS = ("uid", "url", "text", "status", "width_px", "height_px", "sha256", "shard")


def of_img2dataset(rows: list[dict]) -> list[tuple]:
    return [
        (md5(row["url"], row["caption"]), row["url"], row["caption"], "ok" if row["data"] else "metadata_only",
         row["width"], row["height"], row["sha256"], f"{row['key'][:5]}.tar" if row["data"] else None)
        for row in rows
    ]  # fmt: skip


def test_img2datasets_tars_with_the_parquet_files_beside_them(spark, tmp_path):
    held = write_img2dataset(tmp_path / "i2d")
    names = {"shards": f"{tmp_path}/i2d/*.tar", "metadata": f"{tmp_path}/i2d/*.parquet"}
    rows, ledger = found(spark, tmp_path / "i2d", names, metadata=names["metadata"])
    assert rows == sorted(of_img2dataset(held))
    known = {"metadata_only": 1, "duplicate_uid": 2}
    assert ledger == {"00000.tar": ("ok", {"ok": 2}), "00001.tar": ("ok", {"ok": 2}),
                      "00000.parquet": ("ok", known), "00001.parquet": ("ok", known)}  # fmt: skip


@pytest.mark.slow
def test_a_table_with_image_bytes_and_with_links(spark, tmp_path):
    """Its data files are the inputs: of an append the new rows come."""
    table = f"table:{tmp_path}/t"
    append(spark, tmp_path / "t", [("http://t.test/1", "one", picture(1)), ("http://t.test/2", "two", None)])
    columns = {"content": "image", "alt": "text"}
    first = ingest.listing(SimpleNamespace(shards=None, metadata=None, images=pin_table(spark, table)))
    append(spark, tmp_path / "t", [("ftp://t.test/3", "three", picture(3))])
    pinned = pin_table(spark, table)
    assert pinned == f"{table}@1"
    how = {"images": pinned, "columns": columns}
    rows, ledger = found(spark, tmp_path / "packed", {"images": pinned}, **how)
    one, three = (hashlib.sha256(picture(n)).hexdigest() for n in (1, 3))
    assert [(*row[1:7], row[7] is not None) for row in rows] == [row[1:] for row in sorted([
        (md5("http://t.test/1", "one"), "http://t.test/1", "one", "ok", 8, 6, one, True),
        (md5("http://t.test/2", "two"), "http://t.test/2", "two", "metadata_only", None, None, None, False),
        (md5("ftp://t.test/3", "three"), "ftp://t.test/3", "three", "ok", 8, 6, three, True),
    ])]  # fmt: skip
    assert sorted(by_status.get("ok") for _, by_status in ledger.values()) == [1, 1]
    everything = ingest.listing(SimpleNamespace(shards=None, metadata=None, images=pinned))
    new = spark.createDataFrame(everything[~everything["uri"].isin(first["uri"])])
    settings = {"urls": pinned, "columns": {"alt": "text"}, "source": "links"}
    candidates, _ = collect.transform(new, frame(spark, CANDIDATES, []), config=collect.Config(**settings))
    assert candidates.count() == 0  # of what was appended: no URL of the web
    old = spark.createDataFrame(first)
    candidates, files = collect.transform(old, frame(spark, CANDIDATES, []), config=collect.Config(**settings))
    assert rows_of(candidates, "text", "url", "crawl") == [
        ("one", "http://t.test/1", "links"), ("two", "http://t.test/2", "links"),
    ]  # fmt: skip
    assert rows_of(files, "status", "num_by_status") == [("ok", {"ok": 2})]
    with pytest.raises(UserError, match="wanted an image column of type BINARY; found string"):
        ingest.transform(old, frame(spark, PAIRS, []), config=ingest.Config(images=pinned, columns={"alt": "image"}))
    with pytest.raises(UserError, match="nowhere: wanted a Delta table"):
        pin_table(spark, f"table:{tmp_path}/nowhere")


# --- each by one command


@pytest.fixture(scope="module")
def world(spark, tmp_path_factory):
    """(folder, store, dfn, what each release holds): a config that names them all, and the command."""
    folder = tmp_path_factory.mktemp("releases")
    patch = pytest.MonkeyPatch()
    patch.setattr(etl.commands.cli, "stop_at_signals", lambda: None)
    with serving(Site({f"/{n}.png": image(picture(n)) for n in range(5)})) as site:
        held = {"i2d": write_img2dataset(folder / "i2d"),
                "datacomp": write_datacomp(folder / "datacomp"),
                "laion": write_laion(folder / "laion", site)}  # fmt: skip
        append(spark, folder / "images", [("http://t/1", "one", picture(1)), ("http://t/2", "two", None)])
        append(spark, folder / "links", [(f"{site.url}/3.png", "a link", None), ("ftp://x", "none", None)])
        datasets = {
            "i2d": {"shards": f"{folder}/i2d/*.tar", "metadata": f"{folder}/i2d/*.parquet"},
            "datacomp": {"shards": f"{folder}/datacomp/shards/*.tar",
                         "metadata": f"{folder}/datacomp/metadata/*.parquet"},
            "laion": {"urls": f"{folder}/laion/*.parquet"},
            "images": {"images": f"table:{folder}/images", "columns": {"content": "image", "alt": "text"}},
            "links": {"urls": f"table:{folder}/links", "columns": {"alt": "text"}},
        }  # fmt: skip
        config = {
            "name": "releases", "output": f"{folder}/out",
            "datasets": {name: {"kind": "pool", **given} for name, given in datasets.items()},
            "stages": {"download": {"allowed_networks": ["127.0.0.1/32"], "delay_seconds": 0, "num_tasks": 1},
                       "ingest": {"num_tasks": 1}, "collect": {"num_tasks": 1}},
        }  # fmt: skip
        (folder / "releases.yaml").write_text(yaml.safe_dump(config))
        yield folder, Store(spark, f"{folder}/out/tables"), partial(dfn, folder), held
    patch.undo()


def append(spark, path: Path, rows: list[tuple]) -> None:
    """To a Delta table of url, alt, content."""
    frame = spark.createDataFrame(rows, "url string, alt string, content binary").coalesce(1)
    frame.write.format("delta").mode("append").save(str(path))


def dfn(folder: Path, dataset: str, *stages: str) -> int:
    """`dfn run --dataset NAME`; its exit code."""
    named = [part for stage in stages for part in ("--stage", stage)]
    arguments = ["run", "--conf", f"{folder}/releases.yaml", "--dataset", dataset, *named, "--json", "--quiet"]
    return etl.__main__._run(partial(etl.__main__.app, arguments))


def pairs(store: Store, dataset: str) -> list[tuple]:
    return rows_of(store.read(dataset, PAIRS), "uid", "url", "text", "status", "width_px", "height_px", "sha256")


def versions(store: Store, dataset: str) -> list[int]:
    return [len(store.history(dataset, table)) for table in (PAIRS, INPUTS, CANDIDATES) if store.exists(dataset, table)]


@pytest.mark.slow
def test_img2datasets_own_output(world):
    """Tars, and the parquet files beside them, which know the downloads that failed."""
    _, store, run, held = world
    assert run("i2d", "ingest") == 0
    assert rows_of(store.read("i2d", PAIRS), *COLUMNS) == sorted(of_img2dataset(held["i2d"]))


@pytest.mark.slow
def test_a_release_as_datacomps(world):
    _, store, run, held = world
    assert run("datacomp", "ingest") == 0
    found = rows_of(store.read("datacomp", PAIRS), "uid", "url", "text", "status")
    assert found == sorted((*row[:3], "ok" if row[3] else "metadata_only") for row in held["datacomp"])


@pytest.mark.slow
def test_a_list_as_laions_is_downloaded_and_what_is_damaged_is_told(world, capsys):
    """Exit code 3: one file is cut, one lacks a column (F10)."""
    folder, store, run, held = world
    assert run("laion", "collect", "download", "ingest") == 3
    assert [line.partition("laion/")[2][:26] for line in capsys.readouterr().err.splitlines()] == [
        "part-1.parquet: bad_parque", "part-2.parquet: bad_parque",
    ]  # fmt: skip
    files = {Path(row["uri"]).name: row["num_by_status"] for row in store.read("laion", CRAWL_FILES).collect()}
    assert files == {"part-0.parquet": {"ok": 4, "unsupported_url": 1, "missing_text": 1}, "part-1.parquet": {},
                     "part-2.parquet": {}}  # fmt: skip
    taken = [row for row in held["laion"] if row[3]]
    assert rows_of(store.read("laion", FETCHES), "uid", "status") == sorted((md5(*row[:2]), row[3]) for row in taken)
    found = rows_of(store.read("laion", PAIRS), "uid", "url", "text", "status")
    assert found == sorted((md5(*row[:2]), *row[:2], "ok") for row in taken if row[3] == "ok")
    arguments = ["growth", "--conf", f"{folder}/releases.yaml", "--dataset", "laion", "--json", "--quiet"]
    assert etl.__main__._run(partial(etl.__main__.app, arguments)) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"laion": {
        "candidates": 4, "not_candidates": {"missing_text": 1, "unsupported_url": 1}, "fetched": 2,
        "not_fetched": {"hash_mismatch": 1, "http_error": 1}, "pairs": 2,
    }}  # fmt: skip


@pytest.mark.slow
def test_a_table_with_image_bytes_and_what_is_appended_to_it(world, spark):
    folder, store, run, _ = world
    assert run("images", "ingest") == 0
    one = hashlib.sha256(picture(1)).hexdigest()
    wanted = [(md5("http://t/1", "one"), "http://t/1", "one", "ok", 8, 6, one),
              (md5("http://t/2", "two"), "http://t/2", "two", "metadata_only", None, None, None)]  # fmt: skip
    assert pairs(store, "images") == sorted(wanted)
    before = versions(store, "images")
    assert run("images", "ingest") == 0
    assert versions(store, "images") == before
    append(spark, folder / "images", [("http://t/1", "one", picture(1)), ("http://t/3", "three", picture(3))])
    assert run("images", "ingest") == 0
    three = (md5("http://t/3", "three"), "http://t/3", "three", "ok", 8, 6, hashlib.sha256(picture(3)).hexdigest())
    assert pairs(store, "images") == sorted([*wanted, three])
    ledger = [row["num_by_status"] for row in store.read("images", INPUTS).orderBy("ingested_at").collect()]
    assert ledger == [{"ok": 1, "metadata_only": 1}, {"ok": 1, "duplicate_uid": 1}]
    tars = list((folder / "out/packed/images").glob("*.tar"))
    assert len(tars) == 2
    assert all(tarfile.is_tarfile(tar) for tar in tars)


@pytest.mark.slow
def test_a_table_of_links_becomes_candidates(world):
    _, store, run, _ = world
    assert run("links", "collect") == 0
    assert rows_of(store.read("links", CANDIDATES), "text", "crawl", "number") == [("a link", "links", 0)]
    ((counts,),) = rows_of(store.read("links", CRAWL_FILES), "num_by_status")
    assert counts == {"ok": 1, "unsupported_url": 1}
