"""Lists and loose images as others publish them: rows, damages with their reasons, what is packed. No Spark."""

import bz2
import gzip
import hashlib
import json
import os
from pathlib import Path

import imagehash
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import picture, uid
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from etl.config import load
from etl.intake import list_formats
from etl.intake.blocklists import read_blocklists
from etl.intake.lists import scan_list
from etl.intake.packing import list_folders, sweep
from etl.shards import RangeReader, ShardSummary, ShardWriter
from etl.stage import UserError
from etl.stages import ingest
from etl.stages.inputs import COLUMNS, scanner
from etl.stages.metadata import scan_metadata
from etl.web.url_lists import candidates_of, scan_urls

KINDS = ("uid", "url", "text", "width_px")


def scanned(path: Path, columns=None, kinds=KINDS, needs=(("text", "url"),), **how) -> tuple[list[dict], str, str]:
    """(rows, status, reason) of a list."""
    *batches, end = scan_list(str(path), columns=columns or {}, kinds=kinds, needs=needs, **how)
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert isinstance(end, ShardSummary)
    assert end.num_members == len(rows)
    return rows, end.status, end.status_reason or ""


# --- formats

ROWS = [{"url": "http://a/1", "text": 'said "no", then\nleft', "width_px": 640},
        {"url": "http://a/2", "text": "três\t€", "width_px": None},
        {"url": None, "text": "x", "width_px": 7}]  # fmt: skip
CSV = 'URL,other,TEXT,WIDTH\nhttp://a/1,o,"said ""no"", then\nleft",640\nhttp://a/2,o,"três\t€",wide\n,o,x,7\n'
JSON = "".join(
    json.dumps({"URL": row["url"], "TEXT": row["text"], "WIDTH": row["width_px"], "more": [1]}) + "\n" for row in ROWS
)
FILES = {
    "a.csv": CSV.encode(), "a.CSV.gz": gzip.compress(CSV.encode()), "bom.csv": b"\xef\xbb\xbf" + CSV.encode(),
    "a.tsv": CSV.replace("\t", "|").replace(",", "\t").replace(" then", " then").encode(),
    "a.jsonl": JSON.encode(), "a.ndjson.bz2": bz2.compress(JSON.encode()),
    "crlf.jsonl": JSON.replace("\n", "\r\n").encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("batch_rows", [1, 2, 10_000])
def test_a_list_has_the_same_rows_in_every_format(tmp_path, name, batch_rows):
    (tmp_path / name).write_bytes(FILES[name])
    rows, status, reason = scanned(tmp_path / name, batch_rows=batch_rows)
    wanted = [
        {k: v.replace(",", "\t").replace("\t€", "|€") if name == "a.tsv" and k == "text" else v for k, v in row.items()}
        for row in ROWS
    ]
    assert (rows, status, reason) == (wanted, "ok", "")


DAMAGED = {  # name -> (bytes, rows before the damage if that is known, status, what its reason has)
    "short.csv": (b"url,text\nhttp://a,one\nhttp://b\nhttp://c,three\n", 1, "bad_list", "line 3: 1 of 2 columns"),
    "quote.csv": (b'url,text\nhttp://a,one\nhttp://b,"two" more\n', 1, "bad_list", "expected after"),
    "latin.csv": (b"url,text\nhttp://a,one\nhttp://b,caf\xe9\n", 0, "bad_list", "utf-8"),
    "lines.jsonl": (b'{"url": "http://a", "text": "x"}\n[1]\n', 1, "bad_list", "line 2 is no object"),
    "half.jsonl": (b'{"url": "http://a", "text": "x"}\n{"url": "ht', 1, "bad_list", "Unterminated string"),
    "nested.jsonl": (b'{"url": "http://a", "text": {"en": "x"}}\n', 0, "bad_list", "line 1: wanted text; found"),
    "cut.csv.gz": (gzip.compress(CSV.encode() * 3)[:-30], None, "bad_list", "ended before"),
    "no.csv.gz": (b"nothing packed", 0, "bad_list", "gzip"),
    "header.csv": (b"http://a\tone\nhttp://b\ttwo\n", 0, "bad_list", "column for text or url; found http://a one"),
    "empty.csv": (b"", 0, "bad_list", "wanted a column for text or url"),
    "empty.jsonl": (b"", 0, "bad_list", "wanted a column for text or url"),
    "text.txt": (b"http://a\n", 0, "bad_list", "wanted a list (parquet, csv, tsv, jsonl, ndjson); found text.txt"),
    "a.parquet": (b"PAR1", 0, "bad_parquet", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damage_ends_its_list_with_a_reason_and_what_came_before_stays(tmp_path, name):
    data, num_rows, status, reason = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    rows, found, why = scanned(tmp_path / name, batch_rows=2)
    assert (len(rows) if num_rows is not None else None, found) == (num_rows, status)
    assert reason in why
    assert why.isprintable()


def test_a_line_without_an_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(list_formats, "MAX_LINE_CHARS", 1000)
    (tmp_path / "a.jsonl").write_text('{"url": "' + "x" * 5000)
    assert scanned(tmp_path / "a.jsonl")[1:] == ("bad_list", "a line of more than 1000 characters")
    assert scanned(tmp_path / "missing.csv")[1] == "bad_list"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl", "csv.gz", "parquet"]))
def test_any_bytes_end_with_a_line_in_the_ledger(data, kind):
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"dfn-any-{os.getpid()}.{kind}"
    path.write_bytes(data)
    try:
        *batches, end = scan_metadata(str(path), columns={}, source_default="s")
    finally:
        path.unlink()
    assert end.status in ("ok", "bad_list", "bad_parquet")
    assert sum(map(len, batches)) == end.num_members


# --- columns


def test_a_column_that_the_config_names_must_be_there(tmp_path):
    """F10: renamed in one file of many. Another column of the same kind will not do for a name that was given."""
    (tmp_path / "a.csv").write_text("link,text,alt\nhttp://a,not this,mine\n")
    (tmp_path / "b.csv").write_text("link,alternative\nhttp://a,x\n")
    columns = {"link": "url", "alt": "text"}
    assert scanned(tmp_path / "a.csv", columns)[0] == [{"url": "http://a", "text": "mine"}]
    rows, status, reason = scanned(tmp_path / "b.csv", columns)
    assert (rows, status) == ([], "bad_list")
    assert reason == "wanted column alt, which the dataset's columns name; found link, alternative"


@pytest.mark.parametrize(("override", "message"), [
    ("datasets.a={kind: pool, metadata: x/*, columns: {alt: caption}}", r"datasets\.a\.columns\.alt: .*'text'"),
    ("datasets.a={kind: pool, metadata: x/*, columns: {a: text, b: text}}", "found several for text"),
    ("datasets.a={kind: pool, images: x/*/, shards: y/*.tar}", "wanted one of: a corpus"),
    ("datasets.a={kind: pool, urls: x/*, metadata: y/*}", "wanted one of: a corpus"),
    ("datasets.a={kind: pool, images: 'table:a.b.c', metadata: y/*}", "wanted one of: a corpus"),
    ("datasets.a={kind: pool, images: 'table:a`; DROP TABLE b'}", "wanted table:NAME"),
    ("datasets.a={kind: pool, urls: 's4://x/*.csv'}", "wanted a kind of URL that fsspec reads"),
])  # fmt: skip
def test_a_mistake_is_told_before_spark_starts(override, message):
    with pytest.raises(UserError, match=message):
        load(["local"], [override])


@pytest.mark.parametrize("given", ["images: x/*/, metadata: x/*.parquet", "urls: 'table:main.web.links@7'",
                                   "images: 'table:/data/t'", "urls: 'x/*.csv.gz', columns: {alt: text}"])  # fmt: skip
def test_what_may_stand_together(given):
    assert load(["local"], [f"datasets.a={{kind: pool, {given}}}"]).of_kind("pool") == ["a"]


# --- lists of URLs


def test_rows_of_a_list_become_candidates_or_say_why_not(tmp_path):
    """As LAION has them; captions stay as they are, and the uid is that of what the list says."""
    rows = [
        ("http://A.test/ä#x", " as &amp; is\n", "a" * 64), ("ftp://a.test/1", "x", None),
        ("http://a.test/2", " ", None),
        ("http://a.test/3", None, None), (None, "x", None), ("http://a.test/4", "y" * 20_000, None),
        ("http://me:secret@a.test/", "x", None), ("http://a.test/5", "five", "no sha"),
    ]  # fmt: skip
    names = ("URL", "TEXT", "sha256")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "a.parquet")
    batch, end = scan_urls(f"{tmp_path}/a.parquet", columns={})
    found = list(candidates_of(batch))
    assert [row["status"] for row in found] == ["ok", "unsupported_url", "missing_text", "missing_text",
                                                "unsupported_url", "too_large", "unsupported_url", "ok"]  # fmt: skip
    assert found[0] == {
        "uid": hashlib.md5("http://A.test/ä#x\0 as &amp; is\n".encode()).hexdigest(), "url": "http://a.test/%C3%A4",
        "text": " as &amp; is\n", "sha256": "a" * 64, "status": "ok",
    }  # fmt: skip
    assert (found[7]["sha256"], end.status) == (None, "ok")
    (tmp_path / "b.csv").write_text("url\nhttp://a\n")
    (end,) = scan_urls(f"{tmp_path}/b.csv", columns={})
    assert end.status_reason == "wanted a column for text; found url"


# --- images that lie in no tar


def read(uri: str, folder: Path, pattern: str = "", **settings) -> tuple[list[dict], dict]:
    """Rows as ingest gets them of one input, and its line; what has pixels was packed, and reads back."""
    config = ingest.Config(shards_root=str(folder), source="mine", images=pattern, **settings)
    files = pa.RecordBatch.from_pylist([{"uri": uri, "reader": "images"}])
    *rows, line = [row for batch in scanner(config)(iter([files])) for row in batch.to_pylist()]
    rows.sort(key=lambda row: row["number"])
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert [row["is_file"] for row in (*rows, line)] == [False] * len(rows) + [True]
    with RangeReader() as reader:
        for row in rows:
            if row["sha256"]:
                data = reader.read(row["shard"], row["offset_bytes"], row["size_bytes"])
                assert hashlib.sha256(data).hexdigest() == row["sha256"]
    assert not list(folder.glob(".*.tmp"))
    return rows, line


def seen(rows: list[dict], *names: str) -> list[tuple]:
    return [tuple(row[name] for name in names) for row in rows]


def md5(name: str, text: str) -> str:
    return hashlib.md5(f"{name}\0{text}".encode()).hexdigest()


def put(folder: Path, **files: bytes | str | dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        (folder / name.replace("__", ".")).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def test_a_folder_of_files_as_img2dataset_writes_it(tmp_path):
    """KEY.jpg, KEY.txt, KEY.json; and what else may lie there."""
    facts = {"caption": "one", "url": "http://a/1", "key": "000000000", "status": "success", "sha256": "of the source"}
    folder = put(tmp_path / "in/00000", **{
        "000000000.jpg": picture(1, kind="JPEG"), "000000000.txt": "one", "000000000.json": facts,
        "000000001.png": picture(2), "000000001.json": {"caption": "of the json", "uid": uid(7).upper()},
        "a.b.WEBP": picture(3, kind="WEBP"), "a.b.txt": b"caf\xe9", "c.txt": "no image", "d.jpg": b"<html>",
        "d.txt": "a page", ".hidden.jpg": b"x", "stats.csv": "x",
    })  # fmt: skip
    (folder / "e.png").symlink_to("/etc/hostname")
    ((uri, _, etag),) = list_folders(f"{tmp_path}/in/*/")
    assert uri == f"{folder}/#{etag[:12]}"
    rows, line = read(uri, tmp_path / "packed", f"{tmp_path}/in/*/")
    assert (line["uri"], line["status"]) == (uri, "ok")
    latin = hashlib.md5(b"00000/a.b\0caf\xe9").hexdigest()
    assert seen(rows, "uid", "url", "text", "status", "width_px", "image_format") == [
        (md5("http://a/1", "one"), "http://a/1", "one", "ok", 8, "jpeg"),
        (uid(7), None, "of the json", "ok", 8, "png"), (latin, None, None, "invalid_text", 8, "webp"),
        (md5("00000/c", "no image"), None, "no image", "missing_partner", None, None),
        (md5("00000/d", "a page"), None, "a page", "not_an_image", None, "html"),
        (md5("00000/e", ""), None, None, "unsafe_member", None, None),
    ]  # fmt: skip
    assert [row["sha256"] for row in rows[:1]] == [hashlib.sha256(picture(1, kind="JPEG")).hexdigest()]
    (tar,) = (tmp_path / "packed").iterdir()
    assert read(uri, tmp_path / "packed", f"{tmp_path}/in/*/") == (rows, line)  # as after a kill: the same tar again
    assert list((tmp_path / "packed").iterdir()) == [tar]
    put(folder, **{"f.png": picture(9)})
    ((grown, *_),) = list_folders(f"{tmp_path}/in/*/")
    assert grown != uri
    rows, line = read(f"{tmp_path}/in/none/#0", tmp_path / "packed", f"{tmp_path}/in/*/")
    assert (rows, line["status"]) == ([], "unreadable")


def test_a_list_of_image_bytes(tmp_path):
    """img2dataset's parquet format, whose failed rows have none, and the struct of Hugging Face's datasets."""
    table = pa.table({
        "url": ["http://a/1", "http://a/2", None, "http://a/4"], "caption": ["one", "two", "three", None],
        "jpg": pa.array([picture(1, kind="JPEG"), None, picture(3, kind="JPEG"), b""]),
        "status": ["success", "failed_to_download", "success", "success"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    rows, line = read(f"{tmp_path}/a.parquet", tmp_path / "packed")
    assert line["status"] == "ok"
    own = md5(hashlib.sha256(picture(3, kind="JPEG")).hexdigest(), "three")
    wanted = [
        (md5("http://a/1", "one"), "one", "ok"), (md5("http://a/2", "two"), "two", "metadata_only"),
        (own, "three", "ok"), (md5("http://a/4", ""), None, "empty_file"),
    ]  # fmt: skip
    assert sorted(seen(rows, "uid", "text", "status")) == sorted(wanted)
    struct = pa.array([{"bytes": picture(1), "path": "x.png"}, None])
    pq.write_table(pa.table({"image": struct, "text": ["one", "two"]}), tmp_path / "b.parquet")
    rows, _ = read(f"{tmp_path}/b.parquet", tmp_path / "packed")
    assert sorted(seen(rows, "text", "status")) == [("one", "ok"), ("two", "metadata_only")]
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "c.parquet")
    rows, line = read(f"{tmp_path}/c.parquet", tmp_path / "packed")
    assert (rows, line["status"], line["status_reason"]) == (
        [],
        "bad_parquet",
        "wanted a column for image or path; found text",
    )


def test_a_list_of_paths_reads_nothing_outside_its_folder(tmp_path):
    put(tmp_path / "secret", **{"s.png": picture(5)})
    folder = put(tmp_path / "in/deep", **{"ok.png": picture(1), "big.png": bytes(5000)}).parent
    (folder / "link.png").symlink_to(tmp_path / "secret/s.png")
    (folder / "into.png").symlink_to(folder / "deep/ok.png")
    os.mkfifo(folder / "pipe.png")
    paths = {
        "deep/ok.png": "ok", f"{folder}/deep/ok.png": "ok", "into.png": "ok", "../secret/s.png": "unsafe_member",
        f"{tmp_path}/secret/s.png": "unsafe_member", "link.png": "unsafe_member", "/etc/hostname": "unsafe_member",
        "deep/../../secret/s.png": "unsafe_member", "file:///etc/hostname": "unsafe_member", "pipe.png": "unreadable",
        "deep": "unreadable", "none.png": "unreadable", "deep/big.png": "too_large", "": "metadata_only",
    }  # fmt: skip
    lines = [json.dumps({"file_name": path, "text": f"{n}"}) for n, path in enumerate(paths)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    rows, line = read(f"{folder}/metadata.jsonl", tmp_path / "packed", max_member_bytes=4000)
    assert line["status"] == "ok"
    assert dict(sorted((int(row["text"]), row["status"]) for row in rows)) == dict(enumerate(paths.values()))
    assert {row["sha256"] for row in rows} == {None, hashlib.sha256(picture(1)).hexdigest()}
    assert {row["shard"] for row in rows if row["status"] != "ok"} == {None}
    packed = b"".join(path.read_bytes() for path in (tmp_path / "packed").iterdir())
    assert picture(5) not in packed


def test_a_tar_is_full_at_its_cap_and_rows_keep_their_places(tmp_path, monkeypatch):
    monkeypatch.setattr("etl.intake.packing.SAMPLES", 3)
    table = pa.table({"text": [str(n) for n in range(8)], "image": [picture(n) for n in range(8)]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _ = read(f"{tmp_path}/a.parquet", tmp_path / "packed")
    assert seen(rows, "number", "text") == [(n, str(n)) for n in range(8)]
    assert len({row["shard"] for row in rows}) == len(list((tmp_path / "packed").iterdir())) == 3


def test_what_a_kill_left_unfinished_is_swept_but_not_what_is_being_written(tmp_path):
    (tmp_path / ".packed.0.tmp").write_bytes(b"half a tar")
    writer = ShardWriter(f"{tmp_path}/packed")
    writer.lock()
    sweep(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    writer.abort()
    assert list(tmp_path.iterdir()) == []


# --- blocklists


def near(image: bytes, num_bits: int) -> str:
    """A perceptual hash, as imagehash prints it, so many bits from that of an image."""
    import io

    bits = int(str(imagehash.phash(Image.open(io.BytesIO(image)).convert("RGB"))), 16)
    return f"{bits ^ int('1' * num_bits, 2) if num_bits else bits:016x}"


@pytest.mark.parametrize(("line", "why"), [
    (near(picture(1), 0), "its perceptual hash, 0 bits away"),
    (near(picture(1), 4), "its perceptual hash, 4 bits away"),
    (near(picture(1), 5), None), (near(picture(1), 5).upper() + "~5", "its perceptual hash, 5 bits away"),
    (near(picture(1), 1) + "~0", None), (hashlib.sha256(picture(1)).hexdigest(), "its sha256"),
    ("a.test", "the domain a.test"),
])  # fmt: skip
def test_a_blocked_image_is_not_packed_and_one_in_a_tar_has_the_status(tmp_path, line, why):
    (tmp_path / "never.txt").write_text(f"# these\n{line}\n")
    table = pa.table({"url": ["http://x.a.test/1", "http://b.test/2"], "text": ["one", "two"],
                      "image": [picture(1), picture(2)]})  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    blocklists = (tmp_path / "never.txt",)
    rows, _ = read(f"{tmp_path}/a.parquet", tmp_path / "packed", blocklists=blocklists)
    found = dict(seen(rows, "text", "status_reason"))
    assert found == {"one": why, "two": None}
    packed = b"".join(path.read_bytes() for path in (tmp_path / "packed").iterdir())
    assert (picture(1) in packed, picture(2) in packed) == (why is None, True)
    rows, _ = read(f"{tmp_path}/a.parquet", tmp_path / "whole")  # a tar that somebody else made
    (tar,) = (tmp_path / "whole").iterdir()
    config = ingest.Config(blocklists=blocklists)
    files = pa.RecordBatch.from_pylist([{"uri": str(tar), "reader": "shards"}])
    (batch, _) = scanner(config)(iter([files]))
    statuses = {row["text"]: (row["status"], row["status_reason"]) for row in batch.to_pylist()}
    assert statuses == {"one": ("blocklisted" if why else "ok", why), "two": ("ok", None)}
    assert set(COLUMNS) <= set(batch.schema.names)


def test_what_no_decoder_reads_is_no_match_of_a_hash(tmp_path):
    (tmp_path / "never.txt").write_text(f"{near(picture(1), 0)}\n")
    assert read_blocklists([tmp_path / "never.txt"]).of_bytes(b"<html>", 1000) is None
    assert read_blocklists([tmp_path / "never.txt"]).of_bytes(picture(1), 1000) == "its perceptual hash, 0 bits away"
