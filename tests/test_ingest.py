"""Ingest through the runner: tars and parquet files as they come in, two tables out, and a ledger that adds up."""

import gzip
import hashlib
import io
import json
import struct
import tarfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import imagehash
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import picture, places, rows_of, uid, write_shard
from PIL import Image

from etl.config import load
from etl.run import Runner
from etl.samples import corpora
from etl.shards import RangeReader
from etl.stages import ingest
from etl.stages.metadata import scan_metadata
from etl.store import Store
from etl.tables import INPUTS, PAIRS

NOT_PAIRS = {"duplicate_uid", "missing_partner"}


def ingested(store, folder: Path, *, shards="*.tar", metadata=None, **settings):
    """One run over a folder, then the ledger's own promise, whatever is in it."""
    named = {"shards": shards, "metadata": metadata, "images": None}
    source = SimpleNamespace(**{key: glob and f"{folder}/{glob}" for key, glob in named.items()})
    root = str(folder) if shards else ""
    config = ingest.Config(source="mine", shards_root=root, metadata=source.metadata, num_tasks=2, **settings)
    run = Runner(store, {"pool": "pool"}).run(ingest.STAGE, "pool", config, source=source)
    pairs, files = store.read("pool", PAIRS).toPandas(), ledger(store)
    assert all(num_members == sum(by_status.values()) for _, num_members, by_status in files.values())
    kept = sum(n for *_, by_status in files.values() for status, n in by_status.items() if status not in NOT_PAIRS)
    assert (len(pairs), pairs.uid.nunique()) == (kept, kept)
    return run


def ledger(store) -> dict:
    """File name -> (status, samples, samples by status)."""
    rows = store.read("pool", INPUTS).collect()
    assert len({row["uri"] for row in rows}) == len(rows)
    return {Path(row["uri"]).name: (row["status"], row["num_members"], row["num_by_status"]) for row in rows}


def found(store, *columns) -> list[tuple]:
    return rows_of(store.read("pool", PAIRS), *columns)


def versions(store) -> list[int]:
    return [len(store.history("pool", table)) for table in (PAIRS, INPUTS)]


def sample(number: int, image: bytes | None = None, text: str | bytes | None = None, **document) -> dict[str, bytes]:
    """The members of a sample whose uid is `number`."""
    members = {"json": json.dumps({"uid": uid(number), **document}).encode()}
    if image is not None:
        members["jpg"] = image
    if text is not None:
        members["txt"] = text.encode() if isinstance(text, str) else text
    return members


def header_only(width: int, height: int) -> bytes:
    """A PNG that declares this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def phash(image: bytes) -> int:
    bits = imagehash.phash(Image.open(io.BytesIO(image)).convert("RGB")).hash.flatten()
    number = int("".join("1" if bit else "0" for bit in bits), 2)
    return number - 2**64 if number >= 2**63 else number


# --- every status

HTML = b"<!DOCTYPE html><html><body>404</body></html>"
JPEG = picture(2, (40, 30), "JPEG")
CONTROL = "nul\0inside \u202ereversed\r\n\t\u200b"
LONG = "x" * 1_000_000
MIXED = {  # key -> (members, status, text, width, height)
    "a0": (sample(1, picture(1), "a bird"), "ok", "a bird", 8, 6),
    "a1": (sample(2, JPEG, CONTROL), "ok", CONTROL, 40, 30),
    "a2": (sample(3, picture(3), LONG), "ok", LONG, 8, 6),
    "a3": (sample(4, picture(4), ""), "ok", "", 8, 6),
    "a4": (sample(5, picture(5), caption="from the json"), "ok", "from the json", 8, 6),
    "b0": (sample(6, header_only(65_000, 65_000), "huge"), "too_many_pixels", "huge", None, None),
    "b1": (sample(7, b"", "empty"), "empty_file", "empty", None, None),
    "b2": (sample(8, HTML, "a page"), "not_an_image", "a page", None, None),
    "b3": (sample(9, JPEG[: len(JPEG) // 2], "half"), "decode_error", "half", None, None),
    "b4": (sample(10, b"\0\0\1\0" + bytes(60), "icon"), "unsupported_format", "icon", None, None),
    "b5": (sample(11, picture(6), b"caf\xe9"), "invalid_text", None, 8, 6),
    "b6": (sample(12, picture(7)), "missing_text", None, 8, 6),
    "b7": (sample(13, None, "no image"), "missing_partner", None, None, None),
    "b8": (sample(14, bytes(2 << 20), "too large"), "too_large", "too large", None, None),
    "b9": (sample(15, HTML, b"\xff"), "not_an_image", None, None, None),
    "c0": (sample(1, picture(8), "again"), "duplicate_uid", None, None, None),
    "c1": (sample(13, picture(22), "came after its caption"), "ok", "came after its caption", 8, 6),
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(spark, tmp_path_factory):
    """(folder, store): every status in one.tar; two.tar repeats a sample; the rest are no whole tars."""
    folder = tmp_path_factory.mktemp("mixed")
    write_shard(folder / "one.tar", {key: members for key, (members, *_) in MIXED.items()})
    write_shard(folder / "two.tar", {"x": sample(20, picture(20), "new"), "y": sample(2, picture(21), "seen in one")})
    whole = (folder / "two.tar").read_bytes()
    (folder / "three_cut.tar").write_bytes(cut_after_two(folder))
    (folder / "four_text.tar").write_text("nothing like a tar")
    (folder / "five_gzip.tar").write_bytes(gzip.compress(whole))
    (folder / "six_empty.tar").write_bytes(b"")
    (folder / "seven_link.tar").write_bytes(with_link())
    store = Store(spark, str(tmp_path_factory.mktemp("tables")))
    ingested(store, folder, max_member_bytes=(1 << 20) + 4096)
    return folder, store


def cut_after_two(folder: Path) -> bytes:
    write_shard(folder / "cut", {str(n): sample(30 + n, picture(30 + n), f"number {n}") for n in range(4)})
    offset, size = places(folder / "cut")["2.jpg"]
    whole = (folder / "cut").read_bytes()
    (folder / "cut").unlink()
    return whole[: offset + size // 2]


def with_link() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        link = tarfile.TarInfo("k.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, data in {"k.txt": b"a link", "../up.txt": b"outside"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_every_status_with_all_that_is_known_of_its_row(mixed):
    folder, store = mixed
    wanted, place = [], places(folder / "one.tar")
    for key, (members, status, text, width, height) in MIXED.items():
        if status in NOT_PAIRS:
            continue
        data = members["jpg"]
        is_decoded, is_read = width is not None, status != "too_large"
        kind = {b"\x89PN": "png", b"\xff\xd8\xff": "jpeg", b"\0\0\1": "ico", b"<!D": "html", b"": None}.get(data[:3])
        wanted.append((
            json.loads(members["json"])["uid"], None, text, "mine", "one.tar", *place[f"{key}.jpg"],
            hashlib.sha256(data).hexdigest() if is_read else None, phash(data) if is_decoded else None,
            kind if is_read else None, width, height, status,
        ))  # fmt: skip
    columns = [c for c in ingest.COLUMNS if c != "status_reason"]
    rows = rows_of(store.read("pool", PAIRS).where("shard = 'one.tar'"), *columns)
    assert rows == sorted(wanted)


def test_a_reason_stands_beside_every_status_but_ok(mixed):
    rows = found(mixed[1], "status", "status_reason")
    assert all((status == "ok") == (reason is None) for status, reason in rows)
    assert not any("\n" in (reason or "") for _, reason in rows)


def test_the_ledger_of_whole_and_broken_files(mixed):
    one = {"ok": 6, "invalid_text": 1, "missing_text": 1, "missing_partner": 1, "duplicate_uid": 1, "not_an_image": 2}
    one |= dict.fromkeys(("too_many_pixels", "empty_file", "decode_error", "unsupported_format", "too_large"), 1)
    assert ledger(mixed[1]) == {
        "one.tar": ("ok", 17, one),
        "two.tar": ("ok", 2, {"ok": 1, "duplicate_uid": 1}),
        "three_cut.tar": ("cut", 2, {"ok": 2}),
        "four_text.tar": ("not_a_tar", 0, {}),
        "five_gzip.tar": ("not_a_tar", 0, {}),
        "six_empty.tar": ("not_a_tar", 0, {}),
        "seven_link.tar": ("ok", 2, {"unsafe_member": 1, "missing_partner": 1}),
    }


def test_pointers_read_the_very_bytes(mixed):
    folder, store = mixed
    rows = store.read("pool", PAIRS).where("sha256 IS NOT NULL").collect()
    pointers = [(f"{folder}/{row['shard']}", row["offset_bytes"], row["size_bytes"]) for row in rows]
    with RangeReader() as reader:
        payloads = [reader.read(*pointer) for pointer in pointers]
    assert [hashlib.sha256(data).hexdigest() for data in payloads] == [row["sha256"] for row in rows]
    of_uid = {row["uid"]: data for row, data in zip(rows, payloads, strict=True)}
    assert of_uid[uid(1)] == picture(1)  # not picture(8), which came second
    assert of_uid[uid(31)] == picture(31)


def test_the_same_again_writes_nothing_and_new_shards_alone_are_scanned(mixed, monkeypatch):
    """Last of the module's, for it adds a shard."""
    folder, store = mixed
    settings = {"max_member_bytes": (1 << 20) + 4096}
    before, had = versions(store), found(store, *ingest.COLUMNS)
    again = ingested(store, folder, **settings)
    assert again.is_up_to_date
    assert versions(store) == before
    write_shard(folder / "eight.tar", {"n": sample(40, picture(40), "late"), "o": sample(20, picture(41), "known")})
    with_bytes = {path: path.read_bytes() for path in folder.glob("*.tar") if path.name != "eight.tar"}
    for path in with_bytes:  # Whoever scans one of them now finds it empty.
        path.write_bytes(b"")
    try:
        run = ingested(store, folder, **settings)
    finally:
        for path, data in with_bytes.items():
            path.write_bytes(data)
    assert (run.num_rows_written, run.num_rows_in) == (1, 8)
    assert ledger(store)["eight.tar"] == ("ok", 2, {"ok": 1, "duplicate_uid": 1})
    assert ledger(store)["one.tar"][1] == 17
    new = [row for row in found(store, *ingest.COLUMNS) if row not in had]
    assert [(row[0], row[2], row[4]) for row in new] == [(uid(40), "late", "eight.tar")]
    assert len(found(store, "uid")) == len(had) + 1


# --- chunks


def three_shards(folder: Path) -> None:
    """Samples 1 and 2 come again later; of each the first stays."""
    write_shard(folder / "0.tar", {"a": sample(1, picture(1), "one"), "b": sample(1, picture(9), "one again")})
    write_shard(folder / "1.tar", {"a": sample(2, picture(2), "two"), "b": sample(1, picture(8), "one in 1")})
    write_shard(folder / "2.tar", {"a": sample(2, picture(7), "two in 2"), "b": sample(3, picture(3), "three")})


THREE = [(uid(1), "one", "0.tar", "ok"), (uid(2), "two", "1.tar", "ok"), (uid(3), "three", "2.tar", "ok")]
THREE_LEDGER = {f"{n}.tar": ("ok", 2, {"ok": 1, "duplicate_uid": 1}) for n in range(3)}


def test_the_first_of_a_uid_stays_across_chunks(store, tmp_path):
    three_shards(tmp_path)
    (tmp_path / "2.tar").unlink()
    run = ingested(store, tmp_path, chunk_rows=1)
    assert found(store, "uid", "text", "shard", "status") == THREE[:2]
    assert ledger(store) == {name: THREE_LEDGER[name] for name in ("0.tar", "1.tar")}
    assert (run.num_rows_in, run.num_rows_written, dict(run.num_rows_by_status)) == (2, 2, {"ok": 2})
    before = versions(store)
    assert ingested(store, tmp_path, chunk_rows=1).is_up_to_date
    assert versions(store) == before


@contextmanager
def killed_before_the_ledger(monkeypatch):
    """The first append to `inputs` is not made."""
    append_once = Store.append_once

    def killed(self, frame, dataset, table, **more):
        if table is INPUTS:
            raise KeyboardInterrupt
        append_once(self, frame, dataset, table, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Store, "append_once", killed)
        yield


@pytest.mark.slow
def test_a_kill_between_the_two_tables_of_a_chunk_costs_nothing(store, tmp_path, monkeypatch):
    """Its pairs are in, its line in the ledger is not; then a file more has come, and the chunk is another one."""
    three_shards(tmp_path)
    last = (tmp_path / "2.tar").rename(tmp_path / "2.later")
    with killed_before_the_ledger(monkeypatch):
        ingested(store, tmp_path, chunk_rows=1)
    assert (len(found(store, "uid")), set(ledger(store))) == (2, {"0.tar"})
    last.rename(tmp_path / "2.tar")
    ingested(store, tmp_path, chunk_rows=50)
    assert found(store, "uid", "text", "shard", "status") == THREE
    assert ledger(store) == THREE_LEDGER


def test_a_kill_before_the_ledger_of_metadata_is_written_makes_no_row_a_duplicate(store, tmp_path, monkeypatch):
    """Its rows have no place in a tar by which they would be known again."""
    for part in range(2):
        rows = {"uid": [uid(3 * part + n) for n in (1, 2, 3, 3)], "text": ["a", "b", "c", "d"], "url": "http://a"}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{part}.parquet")
    metadata = {"shards": None, "metadata": "*.parquet", "chunk_rows": 1}
    with killed_before_the_ledger(monkeypatch):
        ingested(store, tmp_path, **metadata)
    assert (len(found(store, "uid")), set(ledger(store))) == (6, {"0.parquet"})
    ingested(store, tmp_path, **metadata)
    assert ledger(store) == {f"{n}.parquet": ("ok", 4, {"metadata_only": 3, "duplicate_uid": 1}) for n in range(2)}


def test_an_empty_glob_makes_empty_tables(store, tmp_path):
    run = ingested(store, tmp_path)
    assert (run.num_rows_in, run.num_rows_written, run.num_files) == (0, 0, 0)
    assert store.schema("pool", PAIRS).names == [*ingest.COLUMNS, "is_late"]
    assert store.schema("pool", INPUTS).names[0] == "uri"


# --- metadata


def md5(url: str, text: str) -> str:
    return hashlib.md5(f"{url}\0{text}".encode()).hexdigest()


@pytest.mark.slow
def test_metadata_alone(store, tmp_path):
    datacomp = pd.DataFrame({
        "uid": [uid(1), uid(2)], "url": ["http://a/1", None], "text": ["one", "two"], "original_width": [640, 100],
        "original_height": [480, 50], "sha256": ["a" * 64, None], "clip_b32_similarity_score": [0.3, 0.2],
    })  # fmt: skip
    datacomp.to_parquet(tmp_path / "0.parquet")
    pd.DataFrame({  # LAION: no uid, sizes as floats with a gap, a row that came before
        "SAMPLE_ID": [7, 8, 9], "URL": ["http://b/1", "http://b/2", "http://b/1"], "TEXT": ["três", None, "três"],
        "WIDTH": [10.0, None, 10.0], "HEIGHT": [20.0, float("nan"), 20.0],
    }).to_parquet(tmp_path / "1.parquet")  # fmt: skip
    whole = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "2.parquet").write_bytes(whole[: len(whole) // 2])
    pd.DataFrame({"uid": [uid(3)], "width": [3]}).to_parquet(tmp_path / "3.parquet")
    twice = {"uid": [uid(2), uid(4), uid(4), uid(4)], "caption": ["two again", "four", "4 b", "4 a"]}
    pd.DataFrame(twice).to_parquet(tmp_path / "4.parquet")
    pd.DataFrame({"uid": [uid(5)], "text": [{"nested": 1}]}).to_parquet(tmp_path / "5.parquet")
    pd.DataFrame({"uid": [uid(6).upper(), "not one"], "text": [6, 7]}).to_parquet(tmp_path / "6.parquet")
    (tmp_path / "7.parquet").write_bytes(b"")
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "8.parquet")
    wanted = [
        (uid(1), "http://a/1", "one", 640, 480, "a" * 64), (uid(2), None, "two", 100, 50, None),
        (uid(4), None, "four", None, None, None), (uid(6), None, "6", None, None, None),
        (md5("", "7"), None, "7", None, None, None), (md5("http://b/1", "três"), "http://b/1", "três", 10, 20, None),
        (md5("http://b/2", ""), "http://b/2", None, None, None, None),
    ]  # fmt: skip
    ingested(store, tmp_path, shards=None, metadata="*.parquet", chunk_rows=4)
    assert found(store, "uid", "url", "text", "width_px", "height_px", "sha256") == sorted(wanted, key=lambda r: r[0])
    assert set(found(store, "status", "shard", "offset_bytes", "source")) == {("metadata_only", None, None, "mine")}
    assert ledger(store) == {
        "0.parquet": ("ok", 2, {"metadata_only": 2}),
        "1.parquet": ("ok", 3, {"metadata_only": 2, "duplicate_uid": 1}),
        "2.parquet": ("bad_parquet", 0, {}),
        "3.parquet": ("bad_parquet", 0, {}),
        "4.parquet": ("ok", 4, {"metadata_only": 1, "duplicate_uid": 3}),
        "5.parquet": ("bad_parquet", 0, {}),
        "6.parquet": ("ok", 2, {"metadata_only": 2}),
        "7.parquet": ("bad_parquet", 0, {}),
        "8.parquet": ("bad_parquet", 0, {}),
    }
    before = versions(store)
    assert ingested(store, tmp_path, shards=None, metadata="*.parquet", chunk_rows=4).is_up_to_date
    assert versions(store) == before


def test_columns_of_other_names(tmp_path):
    named = {"hash": [uid(1)], "alt": ["mine"], "text": ["not this"], "link": ["http://a"], "WIDTH": ["wide"]}
    pd.DataFrame(named).to_parquet(tmp_path / "0.parquet")
    columns = {"hash": "uid", "alt": "text", "link": "url"}
    rows, summary = scan_metadata(f"{tmp_path}/0.parquet", columns=columns, source_default="mine")
    assert rows.to_pylist() == [{
        "uid": uid(1), "url": "http://a", "text": "mine", "source": "mine", "width_px": None, "status": "metadata_only",
    }]  # fmt: skip
    assert (summary.status, summary.num_members) == ("ok", 1)


def test_shards_take_captions_from_metadata_by_uid(store, tmp_path):
    write_shard(tmp_path / "0.tar", {
        "a": sample(1, picture(1)), "b": sample(2, picture(2), "of the txt"), "c": sample(3, picture(3), b"\xff"),
        "d": sample(4, HTML), "e": sample(5, picture(5)), "f": sample(6, None), "g": sample(9, picture(9)),
    })  # fmt: skip
    pd.DataFrame({
        "uid": [uid(n).upper() for n in range(1, 8)] + [uid(1)], "text": [f"caption {n}" for n in range(1, 5)]
        + [None, "caption 6", "caption 7", "another 1"], "url": [f"http://a/{n}" for n in range(1, 9)],
    }).to_parquet(tmp_path / "0.parquet")  # fmt: skip
    (tmp_path / "1.parquet").write_bytes(b"PAR1 no more")
    pd.DataFrame({"URL": ["http://z"], "TEXT": ["no uid here"]}).to_parquet(tmp_path / "2.parquet")
    ingested(store, tmp_path, metadata="*.parquet")
    missing = "missing_text"
    assert found(store, "uid", "text", "url", "shard", "status") == sorted([
        (uid(1), "caption 1", "http://a/1", "0.tar", "ok"), (uid(2), "of the txt", "http://a/2", "0.tar", "ok"),
        (uid(3), None, "http://a/3", "0.tar", "invalid_text"),
        (uid(4), "caption 4", "http://a/4", "0.tar", "not_an_image"), (uid(5), None, "http://a/5", "0.tar", missing),
        (uid(6), "caption 6", "http://a/6", None, "metadata_only"),
        (uid(7), "caption 7", "http://a/7", None, "metadata_only"), (uid(9), None, None, "0.tar", missing),
        (md5("http://z", "no uid here"), "no uid here", "http://z", None, "metadata_only"),
    ], key=lambda row: row[0])  # fmt: skip
    assert ledger(store) == {
        "0.tar": ("ok", 7, {"ok": 2, "invalid_text": 1, "not_an_image": 1, missing: 2, "missing_partner": 1}),
        "0.parquet": ("ok", 8, {"metadata_only": 2, "duplicate_uid": 6}),
        "1.parquet": ("bad_parquet", 0, {}),
        "2.parquet": ("ok", 1, {"metadata_only": 1}),
    }


# --- real data


def test_a_hundred_real_pairs_by_another_way(store):
    """art4apps, as the tiny recipe has it, against tarfile and Pillow."""
    folder = Path(corpora.build("things", load(["tiny"]).datasets["things"].corpus, say=lambda _: None))
    wanted = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, place in places(path).items():
            key, _, extension = name.partition(".")
            if extension in ("txt", "json"):
                continue
            with Image.open(io.BytesIO(members[name])) as image:
                width, height, kind = *image.size, image.format.lower()
            document = json.loads(members[f"{key}.json"])
            text = members[f"{key}.txt"].decode()
            sha256 = hashlib.sha256(members[name]).hexdigest()
            wanted.append((document["uid"], text, path.name, *place, sha256, kind, width, height, "ok"))
    run = ingested(store, folder)
    columns = ("shard", "offset_bytes", "size_bytes", "sha256", "image_format", "width_px", "height_px", "status")
    assert found(store, "uid", "text", *columns) == sorted(wanted)
    assert len(wanted) == 100
    assert (run.num_rows_in, dict(run.num_rows_by_status)) == (2, {"ok": 2})
