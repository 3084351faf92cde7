"""The web pool through Spark: crawl files to candidates to shards to pairs; killed, and run again."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, rows_of
from hostile import Site, hang_up, image, redirect, serving, status, with_exif
from PIL import Image
from web import page, wat, write_crawl

from etl.config import load
from etl.intake.stay_out import StayOut, key_hash
from etl.project import Project
from etl.shards import index, scan
from etl.stage import UserError
from etl.stages import collect, download, ingest
from etl.store import Store
from etl.tables import CANDIDATES, CRAWL_FILES, FETCHES, INPUTS, PAIRS
from etl.web.fetch_shards import ShardSink, noted, take_over
from etl.web.retry import retry
from models.images import inspect, sha256_hex


def uid_of(url: str, text: str) -> str:
    return hashlib.md5(f"{url}\0{text}".encode()).hexdigest()


def project_of(folder: Path, store=None, **settings) -> Project:
    given = {
        "name": "web", "output": folder / "out", "datasets.pool.kind": "pool",
        "datasets.pool.crawl": folder / "crawl/*", "stages.download.allowed_networks": "[127.0.0.1/32]",
        "stages.download.delay_seconds": 0, "stages.download.backoff_seconds": 0.05, "stages.download.num_tasks": 2,
        "stages.collect.num_tasks": 2, "stages.ingest.num_tasks": 2, "stages.download.deadline_seconds": 5, **settings,
    }  # fmt: skip
    project = Project(load(["local"], [f"{key}={value}" for key, value in given.items()]))
    if store is not None:
        project.__dict__["store"] = store
    return project


def imgs(*pairs: tuple[str, str]) -> str:
    return "".join(f'<img src="{src}" alt="{alt}">' for src, alt in pairs)


@pytest.fixture(scope="module")
def web(spark, tmp_path_factory):
    """(site, project, folder): two pages in two files that overlap, one of them cut, collected and downloaded once."""
    folder = tmp_path_factory.mktemp("web")
    big = picture(9, (900, 300), "PNG")
    answers = {f"/{n}.png": image(picture(n)) for n in range(6)} | {
        "/big.png": image(big), "/exif.jpg": image(with_exif()), "/page": status(200, b"<!doctype html>"),
        "/noai.png": image(picture(20), X_Robots_Tag="noai"),
        "/robots.txt": status(200, b"User-agent: *\nDisallow: /no/"),
        "/no/a.png": image(picture(21)), "/lost": hang_up, "/half.png": image(picture(22)[:60]),
        "/stolen.png": image(picture(23)), "/anim.gif": image(picture(24, kind="GIF")),
    }  # fmt: skip
    with serving(Site(answers)) as site:
        names = [*(f"{n}.png" for n in range(6)), "big.png", "exif.jpg", "page", "noai.png", "no/a.png", "lost",
                 "half.png", "stolen.png", "anim.gif", "missing"]  # fmt: skip
        one = page(f"{site.url}/one", imgs(*((name, f"one {name}") for name in names), ("data:x", "no"), ("a", "")))
        two = page(
            f"{site.url}/two", imgs(("0.png", "one 0.png"), ("1.png", "another text"), ("http://10.0.0.1/a", "inside"))
        )
        three = page(f"{site.url}/three", "<meta name=robots content=noai>" + imgs(("2.png", "of a page that says no")))
        link = {"path": "IMG@/src", "url": "3.png", "alt": "from a &quot;WAT&quot;"}
        write_crawl(folder / "crawl/CC-MAIN-2024-22-a.warc.gz", one)
        cut = write_crawl(
            folder / "crawl/b.warc.gz", two, three, wat(f"{site.url}/four", [link]), page(f"{site.url}/", "x")
        )
        cut.write_bytes(cut.read_bytes()[:-30])
        (folder / "block.txt").write_text(f"{sha256_hex(picture(23))}\n")
        store = Store(spark, str(folder / "tables"))
        settings = {"stages.download.blocklists": f"[{folder / 'block.txt'}]", "stages.download.resize_px": 512}
        project = project_of(folder, store, **settings)
        for stage in (collect.STAGE, download.STAGE, ingest.STAGE):
            project.run(stage, "pool")
        yield site, project, folder


def test_candidates_are_those_of_the_pages_each_uid_once(web):
    site, project, _ = web
    rows = project.store.read("pool", CANDIDATES).collect()
    found = {(row["url"].removeprefix(site.url), row["text"], row["crawl"], Path(row["file"]).name) for row in rows}
    assert all(row["uid"] == uid_of(row["url"], row["text"]) for row in rows)
    assert len(found) == len(rows) == 16 + 4
    assert {row for row in found if row[3] == "b.warc.gz"} == {
        ("/1.png", "another text", "pool", "b.warc.gz"), ("http://10.0.0.1/a", "inside", "pool", "b.warc.gz"),
        ("/2.png", "of a page that says no", "pool", "b.warc.gz"), ("/3.png", 'from a "WAT"', "pool", "b.warc.gz"),
    }  # fmt: skip
    assert {row[2] for row in found if row[3] != "b.warc.gz"} == {"CC-MAIN-2024-22"}
    assert [row["opt_out_evidence"] for row in rows if row["opt_out_evidence"]] == ["meta robots: noai"]
    assert {row["alt_raw"] for row in rows if "WAT" in row["text"]} == {'from a "WAT"'}


@pytest.mark.slow
def test_every_file_has_a_line_and_every_element_a_status(web):
    _, project, _ = web
    rows = project.store.read("pool", CRAWL_FILES).collect()
    found = {Path(row["uri"]).name: (row["status"], row["num_images"], row["num_by_status"]) for row in rows}
    assert found == {
        "CC-MAIN-2024-22-a.warc.gz": ("ok", 18, {"ok": 16, "unsupported_url": 1, "missing_text": 1}),
        "b.warc.gz": ("cut", 5, {"ok": 4, "duplicate_uid": 1}),
    }
    pages = {Path(row["uri"]).name: row["num_pages_by_status"] for row in rows}
    assert pages["CC-MAIN-2024-22-a.warc.gz"] == {"ok": 1}
    assert pages["b.warc.gz"]["ok"] == 3
    assert [line for line in project.has_partial_inputs() if "b.warc.gz: cut" in line]


@pytest.mark.slow
def test_every_candidate_has_one_fetch_with_its_status(web):
    site, project, _ = web
    rows = project.store.read("pool", FETCHES).collect()
    assert len(rows) == len({row["uid"] for row in rows}) == 20
    texts = {row["uid"]: row["text"] for row in project.store.read("pool", CANDIDATES).collect()}
    assert {texts[row["uid"]]: row["status"] for row in rows if row["status"] != "ok"} == {
        "one page": "not_an_image", "one noai.png": "opted_out", "one no/a.png": "opted_out",
        "one lost": "connect_error", "one half.png": "decode_error", "one stolen.png": "blocklisted",
        "one missing": "http_error", "inside": "blocked_address", "of a page that says no": "opted_out",
    }  # fmt: skip
    evidence = {row["opt_out_evidence"] for row in rows if row["status"] == "opted_out"}
    assert evidence == {
        "X-Robots-Tag: noai", "robots.txt: dfn-etl may not fetch /no/a.png", f"{site.url}/three: meta robots: noai",
    }  # fmt: skip
    assert (site.asked("/no/a.png"), site.asked("/missing")) == (0, 1)
    assert {row["num_attempts"] for row in rows if row["status"] == "connect_error"} == {3}


@pytest.mark.slow
def test_what_is_stored_is_ingested_with_uid_url_and_caption(web):
    site, project, folder = web
    fetched = {row["uid"]: row for row in project.store.read("pool", FETCHES).where("status = 'ok'").collect()}
    pairs = {row["uid"]: row for row in project.store.read("pool", PAIRS).collect()}
    texts = {row["uid"]: row["text"] for row in project.store.read("pool", CANDIDATES).collect()}
    assert set(pairs) == set(fetched)
    for uid, pair in pairs.items():
        assert (pair["url"], pair["text"], pair["shard"]) == (fetched[uid]["url"], texts[uid], fetched[uid]["shard"])
    assert {row["status"] for row in project.store.read("pool", INPUTS).collect()} == {"ok"}
    stored = {pair["url"].removeprefix(site.url): pair for pair in pairs.values()}
    assert (stored["/big.png"]["image_format"], stored["/big.png"]["width_px"]) == ("jpeg", 512)
    assert (stored["/0.png"]["image_format"], stored["/0.png"]["sha256"]) == ("png", sha256_hex(picture(0)))
    assert (stored["/exif.jpg"]["width_px"], stored["/exif.jpg"]["height_px"]) == (30, 40)  # still turned
    assert stored["/anim.gif"]["image_format"] == "png"
    for tar in (folder / "out/web/pool").glob("*/*.tar"):
        data = tar.read_bytes()
        assert b"secret place" not in data
        with tarfile.open(tar) as members:
            kinds = [Image.open(members.extractfile(m)).getexif() for m in members if m.name.endswith(".jpg")]
        assert all(0x8825 not in exif for exif in kinds)
    hidden = [path.name for path in (folder / "out/web/pool").glob("*/.*")]
    assert hidden == []  # no note is left, and nothing unfinished


@pytest.mark.slow
def test_run_again_nothing_is_asked_for_and_a_new_file_costs_what_is_new(web):
    site, project, folder = web
    fresh = project_of(folder, project.store, **{
        "stages.download.blocklists": f"[{folder / 'block.txt'}]", "stages.download.resize_px": 512,
    })  # fmt: skip
    site.requests.clear()
    assert all(fresh.run(stage, "pool").is_up_to_date for stage in (collect.STAGE, download.STAGE, ingest.STAGE))
    assert site.requests == []
    write_crawl(folder / "crawl/c.warc", page(f"{site.url}/five", imgs(("5.png", "new"), ("0.png", "one 0.png"))))
    done = [fresh.run(stage, "pool") for stage in (collect.STAGE, download.STAGE, ingest.STAGE)]
    assert [run.num_rows_written for run in done] == [1, 1, 1]
    assert sorted(path for _, path in site.requests) == ["/.well-known/tdmrep.json", "/5.png", "/robots.txt"]
    assert ("new", "ok") in rows_of(fresh.store.read("pool", PAIRS), "text", "status")


@pytest.mark.slow
def test_what_failed_and_may_pass_is_fetched_once_more_and_nothing_else(spark, tmp_path):
    answers = {"/good.png": image(picture(1)), "/cut": hang_up, "/busy.png": status(503), "/page": status(200, b"no")}
    names = [*(path[1:] for path in answers), "gone.png"]
    with serving(Site(answers)) as site:
        write_crawl(tmp_path / "crawl/a.warc.gz", page(f"{site.url}/one", imgs(*((n, f"of {n}") for n in names))))
        project = project_of(tmp_path, Store(spark, str(tmp_path / "tables")), **{"stages.download.chunk_rows": 1})
        with pytest.raises(UserError, match="retry: wanted downloads of pool; found none"):
            retry(project, "pool")
        stages = (collect.STAGE, download.STAGE, ingest.STAGE)
        for stage in stages:
            project.run(stage, "pool")
        before = {row["url"].rpartition("/")[2]: row for row in project.store.read("pool", FETCHES).collect()}
        assert {name: row["status"] for name, row in before.items()} == {
            "good.png": "ok", "cut": "connect_error", "busy.png": "http_error", "page": "not_an_image",
            "gone.png": "http_error",
        }  # fmt: skip
        with pytest.raises(UserError, match="--status: wanted a status of fetches that is not ok; found ok"):
            retry(project, "pool", ["ok"])
        site.requests.clear()
        site.answers |= {"/cut": image(picture(2)), "/busy.png": image(picture(3)), "/gone.png": image(picture(4))}
        done = retry(project, "pool")
        assert done == {"tried": {"connect_error": 1, "http_error": 1}, "now": {"ok": 2}}
        asked = {path for _, path in site.requests}
        assert asked - {"/robots.txt", "/.well-known/tdmrep.json"} == {"/cut", "/busy.png"}
        assert retry(project, "pool") == {"tried": {}, "now": {}}
        again = [project.run(stage, "pool") for stage in stages]
        assert [run.num_rows_written for run in again] == [0, 0, 1]  # the new shard
        assert retry(project, "pool", ["http_error"]) == {"tried": {"http_error": 1}, "now": {"ok": 1}}
        project.run(ingest.STAGE, "pool")
        after = {row["url"].rpartition("/")[2]: row for row in project.store.read("pool", FETCHES).collect()}
        assert {name: row["status"] for name, row in after.items()} == {
            **dict.fromkeys(names, "ok"),
            "page": "not_an_image",
        }
        assert [after[name] for name in ("good.png", "page")] == [before[name] for name in ("good.png", "page")]
        pairs = project.store.read("pool", PAIRS).where("status = 'ok'").collect()
        assert {row["text"] for row in pairs} == {f"of {name}" for name in names} - {"of page"}
        assert len(pairs) == 4


def test_the_stages_of_the_web_are_not_run_without_a_crawl(spark, tmp_path):
    (tmp_path / "none").mkdir()
    config = load(["local"], [f"output={tmp_path}", f"datasets.a={{kind: pool, shards: {tmp_path}/none/*.tar}}"])
    project = Project(config)
    project.__dict__["store"] = Store(spark, str(tmp_path / "tables"))
    assert [run.stage for run in project.run_all(["collect", "download"])] == []
    with pytest.raises(UserError, match=r"stage download: wanted datasets.a.crawl or .urls"):
        project.run(download.STAGE, "a")
    with pytest.raises(UserError, match="wanted one of: a corpus; a crawl"):
        load(["local"], ["datasets.a={kind: pool, crawl: x/*.warc, shards: y/*.tar}"])
    with pytest.raises(UserError, match="allowed_networks"):
        load(["local"], ["datasets.a={kind: pool, crawl: x/*}", "stages.download.allowed_networks=[nonsense]"])


# --- one task, without Spark


def task_rows(site: Site, count: int, **known) -> list[dict]:
    row = {"page_url": None, "crawl": "c", "host": "127.0.0.1", "sha256": None, "opt_out_evidence": None, **known}
    urls = [f"{site.url}/{n}" for n in range(count)]
    return [{"uid": uid_of(url, "t"), "url": url, "text": "t", **row} for url in urls]


def downloaded(folder: Path, rows: list[dict], **settings) -> list[dict]:
    import pyarrow as pa

    how = {
        "allowed_networks": ("127.0.0.1/32",),
        "web_folder": str(folder),
        "delay_seconds": 0,
        "backoff_seconds": 0.01,
    }
    config = download.Config(**{**how, **settings})
    config.folder.mkdir(parents=True, exist_ok=True)
    batches = download.downloader(config)(iter([pa.RecordBatch.from_pylist(rows)]))
    return [row for batch in batches for row in batch.to_pylist()]


def test_bytes_that_are_not_those_of_the_index_are_in_no_shard(tmp_path):
    with serving(Site({f"/{n}": image(picture(n)) for n in range(2)})) as site:
        rows = task_rows(site, 2)
        rows[0]["sha256"], rows[1]["sha256"] = sha256_hex(picture(0)).upper(), sha256_hex(picture(0))
        found = downloaded(tmp_path, rows)
    assert {row["url"][-1]: row["status"] for row in found} == {"0": "ok", "1": "hash_mismatch"}
    (tar,) = tmp_path.glob("*/*.tar")
    samples = [row for row in scan(str(tar)) if isinstance(row, dict)]
    assert [row["sha256"] for row in samples] == [sha256_hex(picture(0))]


def test_an_image_whose_perceptual_hash_is_near_a_blocked_one_is_in_no_shard(tmp_path):
    phash = inspect(picture(0)).phash % (1 << 64)
    (tmp_path / "never.txt").write_text(f"{phash ^ 0b1011:016x}\n")
    with serving(Site({f"/{n}": image(picture(n)) for n in range(2)})) as site:
        found = downloaded(tmp_path / "web", task_rows(site, 2), blocklists=(tmp_path / "never.txt",))
    assert {row["url"][-1]: (row["status"], row["status_reason"]) for row in found} == {
        "0": ("blocklisted", "its perceptual hash, 3 bits away"), "1": ("ok", None),
    }  # fmt: skip
    (tar,) = (tmp_path / "web").glob("*/*.tar")
    assert picture(0) not in tar.read_bytes()


def test_what_was_forgotten_is_neither_asked_for_nor_stored_nor_written_down(tmp_path):
    """By its bytes, by a URL that leads to it, by its own URL; beside one that comes in."""
    with serving(Site({f"/{n}": image(picture(n)) for n in range(3)})) as site:
        site.answers["/1"] = redirect("/gone")
        keys = [("sha256", sha256_hex(picture(0))), ("url", f"{site.url}/gone")]
        stay_out = StayOut(frozenset(bytes.fromhex(key_hash(*key)) for key in keys))
        found = downloaded(tmp_path, task_rows(site, 3), stay_out=stay_out)
        assert "/gone" not in {path for _, path in site.requests}
    told = {row["url"][-1]: (row["status"], row["status_reason"], row["sha256"], row["final_url"]) for row in found}
    assert told["2"][0] == "ok"
    blocked = ("blocklisted", "it was forgotten", None)
    assert (told["0"][:3], told["1"]) == (blocked, (*blocked, None))
    (tar,) = tmp_path.glob("*/*.tar")
    assert picture(0) not in tar.read_bytes()
    assert picture(2) in tar.read_bytes()


def test_a_large_jpeg_is_decoded_small_and_made_smaller_to_the_pixel(monkeypatch):
    """Against a resize of the whole picture by its exact area."""
    sizes = []
    whole = Image.Image.thumbnail
    monkeypatch.setattr(
        Image.Image, "thumbnail", lambda self, *more, **how: (sizes.append(self.size), whole(self, *more, **how))[1]
    )
    y, x, c = np.mgrid[:1000, :1500, :3]
    picture_of_sines = Image.fromarray((127 + 120 * np.sin(x / 40 + c) * np.cos(y / 30)).astype(np.uint8))
    picture_of_sines.save(file := io.BytesIO(), "JPEG", quality=95)
    made, extension = download.stored_form(file.getvalue(), download.Config(resize_px=300))
    found = Image.open(io.BytesIO(made))
    assert (extension, found.size, sizes) == ("jpg", (300, 200), [(750, 500)])
    wanted = picture_of_sines.resize((300, 200), Image.Resampling.BOX)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(wanted).astype(int))
    assert difference.mean() < 1.5
    assert difference.max() < 24


def test_what_an_attempt_stored_before_it_broke_is_not_fetched_again(tmp_path, monkeypatch):
    """Also what is in a tar that was cut in the middle of a sample."""
    with serving(Site({f"/{n}": image(picture(n, (120, 90))) for n in range(8)})) as site:
        rows = task_rows(site, 8)
        add, count = ShardSink.add, []

        def killed(self, *args):
            count.append(args[0]["uid"])
            if len(count) == 6:  # as after a kill -9: nothing is closed, the last sample is half there
                monkeypatch.setattr(ShardSink, "close", lambda self: None)
                add(self, *args)
                path = next(self._folder.glob(".task*.tmp"))
                os.truncate(path, path.stat().st_size - 700)
                self._writer._sink.file.close()  # frees the lock, as the end of the process does
                raise MemoryError
            add(self, *args)

        monkeypatch.setattr(ShardSink, "add", killed)
        with pytest.raises(BaseException):  # noqa: B017 - a group, with the error in it
            downloaded(tmp_path, rows, per_host=1, pairs_per_shard=4)
        monkeypatch.undo()
        stored, lost = set(count[:5]), count[5]
        site.requests.clear()
        found = downloaded(tmp_path, rows, pairs_per_shard=4)
        assert {row["uid"]: row["status"] for row in found} == {row["uid"]: "ok" for row in rows}
        asked = [path for _, path in site.requests if path[1:].isdigit()]
        assert len(asked) == len(set(asked)) == 3
        assert lost in {row["uid"] for row in rows if row["url"].rpartition("/")[2] in {path[1:] for path in asked}}
        assert not stored & {row["uid"] for row in rows if f"/{row['url'][-1]}" in asked}
        in_shards = [
            row["uid"] for tar in sorted(tmp_path.glob("*/*.tar")) for row in scan(str(tar)) if isinstance(row, dict)
        ]
        assert sorted(in_shards) == sorted(row["uid"] for row in rows)
        assert all(tar.stat().st_size % 10240 == 0 for tar in tmp_path.glob("*/*.tar"))
        by_shard = {row["uid"]: row["shard"] for row in found}
        assert all((tmp_path / shard).exists() for shard in by_shard.values())


def test_a_tar_whose_writer_lives_is_left_alone(tmp_path):
    sink = ShardSink(tmp_path, 0, 10)
    sink.add({"uid": "a" * 32, "shard": None}, b"image", "png", "text", {})
    assert take_over(tmp_path) == 0
    (unfinished,) = tmp_path.glob(".*.tmp")
    assert f"{'a' * 32}.txt".encode() in unfinished.read_bytes()  # what was added is on the disk, and not in a buffer
    assert (list(tmp_path.glob("*.tar")), len(list(tmp_path.glob(".*.tmp")))) == ([], 1)
    sink.close()
    (tar,) = tmp_path.glob("*.tar")
    assert list(noted(tmp_path)) == ["a" * 32]
    with tar.open("rb") as file:
        assert [member.name for member in index(file)] == [f"{'a' * 32}.{kind}" for kind in ("json", "png", "txt")]
    assert json.loads((tmp_path / f".{tar.name}.json").read_text())["rows"][0]["shard"] == f"{tmp_path.name}/{tar.name}"
    assert io.BytesIO(tar.read_bytes()).getbuffer().nbytes % 10240 == 0


# --- killed


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_9_in_mid_download_fetches_nothing_twice_that_was_stored_and_loses_nothing(spark, tmp_path):
    count = 240

    def slowly(data: bytes):
        def answer(handler):
            time.sleep(0.05)
            handler.send(data)

        return answer

    with serving(Site({f"/{n}.png": slowly(picture(n)) for n in range(count)})) as site:
        write_crawl(
            tmp_path / "crawl/a.warc", page(f"{site.url}/p", imgs(*((f"{n}.png", f"number {n}") for n in range(count))))
        )
        settings = {"stages.download.per_host": 4, "stages.download.pairs_per_shard": 25}
        project = project_of(tmp_path, **settings)
        given = {
            "output": tmp_path / "out", "datasets.pool.kind": "pool", "datasets.pool.crawl": tmp_path / "crawl/*",
            "stages.download.allowed_networks": "[127.0.0.1/32]", "stages.download.delay_seconds": 0, **settings,
        }  # fmt: skip
        command = [sys.executable, "-m", "etl", "run", "--conf", "local", "--stage", "collect", "--stage", "download"]
        command += [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
        killed = subprocess.Popen(command, start_new_session=True, stderr=(tmp_path / "log").open("w"))
        deadline = time.monotonic() + 600
        while len({path for _, path in site.requests if path.endswith(".png")}) < count // 2:
            assert killed.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        time.sleep(1)
        folder = next((tmp_path / "out/web/pool").glob("*"))
        stored = set(noted(folder))
        for path in folder.glob(".*.tmp"):
            stored |= {row["uid"] for row in scan(str(path)) if isinstance(row, dict) and row["status"] == "ok"}
        before = list(site.requests)
        site.requests.clear()
        assert subprocess.run(command, check=True, timeout=900)
        again = {
            uid_of(f"{site.url}{path}", f"number {path[1:-4]}") for _, path in site.requests if path.endswith(".png")
        }
        assert len(stored) > 25
        assert again & stored == set()
        store = Store(spark, project.config.tables_root)
        rows = store.read("pool", FETCHES).collect()
        assert {row["status"] for row in rows} == {"ok"}
        assert len(rows) == len({row["uid"] for row in rows}) == count
        in_shards = [row["uid"] for tar in folder.glob("*.tar") for row in scan(str(tar)) if isinstance(row, dict)]
        assert sorted(in_shards) == sorted(row["uid"] for row in rows)
        print({"asked before the kill": len(before), "stored": len(stored), "asked after it": len(again)})
