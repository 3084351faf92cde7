"""Tars in; rows, bytes and problems out."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import pytest
from helpers import write_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import etl.shards
import etl.tar
from etl.shards import (
    Member,
    RangeReader,
    ShardError,
    ShardSummary,
    ShardWriter,
    index,
    list_shards,
    publish,
    scan,
    verify,
    write_manifest,
)
from models.images import inspect

END = bytes(1024)
UID = "0123456789abcdef0123456789abcdef"


def picture(shade: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 255 - shade)).save(file, kind)
    return file.getvalue()


def blocks(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar without its end: headers as given, or plain files."""
    parts = []
    for member in members:
        name, data = member if isinstance(member, tuple) else ("", b"")
        info = tarfile.TarInfo(name) if name else member
        if name:
            info.size = len(data)
        parts += [info.tobuf(form), data, bytes(-len(data) % 512)]
    return b"".join(parts)


def special(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def walk(data: bytes, **options) -> tuple[list[Member], str]:
    """The members that are whole, and the status at the end."""
    found = []
    try:
        for member in index(io.BytesIO(data), **options):
            found += [member]
    except ShardError as error:
        return [member for member in found if member.status != "cut"], error.status
    return found, "ok"


def scanned(path: Path | str, **options) -> tuple[list[dict], ShardSummary]:
    *rows, summary = scan(str(path), **options)
    return rows, summary


def md5(name: str, caption: bytes) -> str:
    return hashlib.md5(name.encode() + b"\0" + caption).hexdigest()


# --- the walk


def test_index_says_where_each_payload_lies():
    long_name = "deep/" * 60 + "é.jpg"
    data = blocks(("a.jpg", b"x" * 600), ("a.txt", b""), special("d", tarfile.DIRTYPE), (long_name, b"yy")) + END
    members, status = walk(data)
    assert members == [Member("a.jpg", 512, 600), Member("a.txt", 2048, 0), Member(long_name, 4096, 2)]
    assert status == "ok"
    assert [data[m.offset_bytes : m.offset_bytes + m.size_bytes] for m in members] == [b"x" * 600, b"", b"yy"]
    assert walk(blocks((long_name, b"yy"), form=tarfile.GNU_FORMAT) + END)[0][0].name == long_name


def old_gnu_sparse() -> bytes:
    """A header of type S, a further block of its map, and 512 bytes of payload."""
    header = bytearray(special("s.jpg", tarfile.GNUTYPE_SPARSE, size=512).tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    return bytes(header) + bytes(512) + b"s" * 512


UNSAFE = {
    "parent": ("../x.jpg", blocks(("../x.jpg", b"1"))),
    "inner parent": ("a/../../x.jpg", blocks(("a/../../x.jpg", b"1"))),
    "backslashes": ("..\\x.jpg", blocks(("..\\x.jpg", b"1"))),
    "absolute": ("/etc/x.jpg", blocks(("/etc/x.jpg", b"1"))),
    "symlink": ("x.jpg", blocks(special("x.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"))),
    "hard link": ("x.jpg", blocks(special("x.jpg", tarfile.LNKTYPE, linkname="a.jpg", size=999))),
    "device": ("x.jpg", blocks(special("x.jpg", tarfile.CHRTYPE, devmajor=1, devminor=5))),
    "fifo": ("x.jpg", blocks(special("x.jpg", tarfile.FIFOTYPE))),
    "sparse": ("s.jpg", old_gnu_sparse()),
    "pax sparse": ("s.jpg", blocks(special("0/s.jpg", b"0", pax_headers={"GNU.sparse.name": "s.jpg"}))),
    "unknown type": ("x.jpg", blocks(special("x.jpg", b"Z"))),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_members_are_named_and_what_follows_is_found(kind):
    name, data = UNSAFE[kind]
    (unsafe, after), status = walk(data + blocks(("b.jpg", b"22")) + END)
    assert (unsafe.name, unsafe.status, status) == (name, "unsafe_member", "ok")
    assert after == Member("b.jpg", len(data) + 512, 2)


def test_a_member_over_the_cap_is_too_large():
    data = blocks(("a.jpg", b"x" * 11), ("b.jpg", b"x" * 10)) + END
    assert [m.status for m in walk(data, max_member_bytes=10)[0]] == ["too_large", "ok"]


WHOLE = blocks(("a.jpg", b"x" * 600), ("a.txt", b"y"), ("b" * 150 + ".jpg", b"z"))
CUTS = {
    "after a member": WHOLE,
    "after a header": WHOLE + blocks(("c.jpg", b"x"))[:512],
    "in a header": WHOLE + blocks(("c.jpg", b"x"))[:200],
    "in a payload": WHOLE + blocks(("c.jpg", b"x" * 900))[:1024],
    "in the padding": WHOLE[:-1],
    "between the end blocks": WHOLE + bytes(512),
    "in the second end block": WHOLE + bytes(1000),
    "one zero block, then more": WHOLE + bytes(512) + WHOLE,
    "a damaged header": WHOLE + b"?" * 512 + END,
    "1 TB declared": WHOLE + blocks(special("c.jpg", b"0", size=1 << 40), form=tarfile.GNU_FORMAT) + END,
    "1 TB declared by pax": WHOLE + blocks(special("c.jpg", b"0", pax_headers={"size": str(1 << 40)})) + END,
    "less than nothing declared": WHOLE + blocks(special("c.jpg", b"0", size=-1024), form=tarfile.GNU_FORMAT) + END,
    "a name of 2 MiB": WHOLE + blocks(special("L", b"L", size=2 << 20)) + bytes(2 << 20) + END,
}


@pytest.mark.parametrize("kind", CUTS)
def test_a_cut_tar_gives_what_is_whole_and_says_so(kind):
    members, status = walk(CUTS[kind])
    assert (members, status) == (walk(WHOLE + END)[0], "cut")


def test_every_cut_of_a_tar_is_noticed():
    whole = WHOLE + END
    all_members, _ = walk(whole)
    for size in range(512, len(whole), 64):
        members, status = walk(whole[:size])
        assert (members, status) == (all_members[: len(members)], "cut")


@pytest.mark.parametrize(
    "record", [b"0 path=x\n", b"8 path=x\n", b"6 path=\n", b"9 path\n", b"9999999 path=x\n", b"\xff"]
)
def test_a_pax_record_of_a_false_length_ends_the_header(record):
    extended = blocks(special("p", b"x", size=len(record))) + record + bytes(512 - len(record))
    assert walk(extended + blocks(("a.jpg", b"1")) + END)[1] == "ok"


# Named: two processes that collect a second apart must see the same tests, and gzip writes the second.
@pytest.mark.parametrize("data", [b"", b"short", gzip.compress(WHOLE + END), picture(1), b"\xff" * 9999],
                         ids=["empty", "short", "gzip", "png", "ff"])  # fmt: skip
def test_what_is_no_tar_is_not_a_tar(data):
    assert walk(data) == ([], "not_a_tar")


def test_a_tar_of_nothing_is_ok():
    assert walk(END) == ([], "ok")


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=180)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5), st.sampled_from([0, 1, 2]))
def test_the_walk_agrees_with_tarfile(samples, form):
    file = io.BytesIO()
    try:
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for name, data in samples:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    except ValueError:  # USTAR cannot hold each name
        return
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    members, status = walk(file.getvalue())
    assert [(m.name.rstrip("/"), *m[1:3]) for m in members] == [(name.rstrip("/"), *rest) for name, *rest in expected]
    assert status == "ok"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_forged_header_neither_hangs_nor_leads_outside(data):
    forged = bytearray(WHOLE + old_gnu_sparse() + blocks((("é" * 90) + ".txt", b"1")) + END)
    start = 512 * data.draw(st.integers(0, len(forged) // 512 - 1))
    for _ in range(data.draw(st.integers(1, 8))):
        forged[start + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    header = forged[start : start + 512]
    forged[start + 148 : start + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    members, _ = walk(bytes(forged))
    assert all(512 <= m.offset_bytes <= m.offset_bytes + m.size_bytes <= len(forged) for m in members)


@given(st.binary(max_size=3000))
def test_random_bytes_are_no_tar(data):
    assert walk(data)[1] == "not_a_tar" or not any(data[:512])


# --- rows


def row(shard: Path | str, key: str, data: bytes | None, offset: int | None, caption: bytes | None, **other) -> dict:
    """The row of a good sample; `other` says in what it differs."""
    facts = inspect(data) if data and "sha256" not in other else None
    return {
        "uid": md5(f"{str(shard).rpartition('/')[2]}/{key}", caption or b""),
        "url": None,
        "text": None if caption is None else caption.decode(errors="replace"),
        "source": "here",
        "shard": str(shard),
        "offset_bytes": offset,
        "size_bytes": None if data is None else len(data),
        "sha256": None if data is None else hashlib.sha256(data).hexdigest(),
        "phash": facts and facts.phash,
        "image_format": facts and facts.format,
        "width_px": facts and 4,
        "height_px": facts and 3,
        "status": "ok",
        "status_reason": None,
    } | other


def test_a_shard_becomes_rows(tmp_path):
    one, two, three = picture(1), picture(2, "JPEG"), picture(3)
    known = {"uid": UID.upper(), "url": "http://a/b.png", "caption": "from json", "source": "cc"}
    shard = tmp_path / "00000.tar"
    shard.write_bytes(
        blocks(
            ("s/1.jpg", one), ("s/1.txt", b"a caption"),
            ("2.txt", b"nul \0 \x1b[31m \xe2\x80\xae\n"), ("2.jpeg", two), ("2.cls", b"7"),
            ("3.json", json.dumps(known).encode()), ("3.png", three), ("3.webp", one),
            ("README", b"no dot"), (".hidden", b"no key"),
        ) + END
    )  # fmt: skip
    rows, summary = scanned(shard, source_default="here")
    assert rows == [
        row(shard, "s/1", one, 512, b"a caption"),
        row(shard, "2", two, 3584, b"nul \0 \x1b[31m \xe2\x80\xae\n"),
        row(shard, "3", three, 7168, b"from json", uid=UID, url="http://a/b.png", source="cc"),
    ]
    assert summary == ShardSummary(str(shard), shard.stat().st_size, "ok", None, 3)
    data = shard.read_bytes()
    assert [data[r["offset_bytes"] :][: r["size_bytes"]] for r in rows] == [one, two, three]
    without = scanned(shard)[0][0]
    assert without == rows[0] | {"source": None}


def test_a_uid_is_made_of_url_or_place_and_caption(tmp_path):
    shard = tmp_path / "x.tar"
    url = json.dumps({"url": "http://a/é", "uid": "no uid"}).encode()
    shard.write_bytes(blocks(("k.json", url), ("k.txt", b"c"), ("l.json", b"[1]"), ("l.txt", b"c")) + END)
    found = [r["uid"] for r in scanned(shard)[0]]
    assert found == [md5("http://a/é", b"c"), md5("x.tar/l", b"c")]


def captions(tmp_path: Path, *members: tuple[str, bytes]) -> tuple:
    shard = tmp_path / "c.tar"
    shard.write_bytes(blocks(("k.png", picture(1)), *members) + END)
    ((found,), _) = scanned(shard)
    assert (found["phash"], found["width_px"]) == (inspect(picture(1)).phash, 4)
    return found["text"], found["status"], found["status_reason"], found["uid"]


def test_captions_are_taken_byte_for_byte_or_flagged(tmp_path):
    long = b"\xf0\x9f\x8d\x8c" * 250_000
    none = "no .txt and no caption in a .json"
    surrogate = b'{"caption": "a\\ud800"}'
    cases = [
        ([("k.txt", b"a\xffb")], (None, "invalid_text", "not UTF-8 at byte 1", b"a\xffb")),
        ([("k.txt", b"\xed\xa0\x80")], (None, "invalid_text", "not UTF-8 at byte 0", b"\xed\xa0\x80")),
        ([("k.json", surrogate)], (None, "invalid_text", "not UTF-8 at byte 1", b"a\xed\xa0\x80")),
        ([("k.json", b'{"caption": "\xff"}')], (None, "invalid_text", "not UTF-8 at byte 0", b"\xed\xb3\xbf")),
        ([("k.txt", b"")], ("", "ok", None, b"")),
        ([("k.txt", b"\xef\xbb\xbf &amp; \r\n")], ("\ufeff &amp; \r\n", "ok", None, b"\xef\xbb\xbf &amp; \r\n")),
        ([("k.txt", long)], (long.decode(), "ok", None, long)),
        ([("k.txt", b"txt"), ("k.json", b'{"caption": "json"}')], ("txt", "ok", None, b"txt")),
        ([], (None, "missing_text", none, b"")),
        ([("k.json", b'{"caption": 7}')], (None, "missing_text", none, b"")),
        ([("k.json", b"[" * 100_000)], (None, "missing_text", none, b"")),
        ([("k.json", b'{"caption": ')], (None, "missing_text", none, b"")),
    ]
    for members, (*expected, raw) in cases:
        assert captions(tmp_path, *members) == (*expected, md5("c.tar/k", raw))


def test_a_url_that_utf8_cannot_hold_is_null(tmp_path):
    shard = tmp_path / "u.tar"
    shard.write_bytes(blocks(("k.json", b'{"url": "\\ud800", "source": "\\udfff", "caption": "c"}')) + END)
    ((found,), _) = scanned(shard, source_default="d")
    assert (found["url"], found["source"], found["text"]) == (None, "d", "c")


def test_every_row_of_a_dirty_shard_ends_in_a_status(tmp_path):
    good, cut, html = picture(1), picture(2)[:-30], b"<html>404</html>"
    file = io.BytesIO()
    Image.new("RGB", (200, 200)).save(file, "PNG")
    big, avif = file.getvalue(), b"\0\0\0\x20ftypavif\0\0\0\0"
    shard = tmp_path / "dirty.tar"
    images = {"a": good, "b": cut, "c": html, "d": b"", "e": avif, "f": big, "g": bytes(5000)}
    parts = [blocks((f"{key}.jpg", data), (f"{key}.txt", b"\xff")) for key, data in images.items()]
    parts += [
        blocks(("h.txt", b"alone"), ("a.jpg", good), ("a.txt", b"\xff")),
        blocks(special("i.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), ("i.txt", b"link")),
        blocks(("../j.jpg", good), ("k.jpg", good), special("k.txt", tarfile.LNKTYPE, linkname="h.txt")),
        blocks(("l.jpg", good), ("l.jpg", good), special("dev/null", tarfile.CHRTYPE)),
    ]
    shard.write_bytes(b"".join(parts) + END)
    rows, summary = scanned(shard, max_pixels=1000, max_member_bytes=4000)
    keys = ["a", "b", "c", "d", "e", "f", "g", "h", "a", "i", "../j", "k", "l", "l"]
    raw = [b"\xff"] * 7 + [b"alone", b"\xff", b"link"] + [b""] * 4
    assert [r["uid"] for r in rows] == [
        md5(f"dirty.tar/{key}", caption) for key, caption in zip(keys, raw, strict=True)
    ]
    assert [(r["status"], r["status_reason"]) for r in rows] == [
        ("invalid_text", "not UTF-8 at byte 0"),
        ("decode_error", rows[1]["status_reason"]),
        ("not_an_image", "the bytes are html"),
        ("empty_file", "zero bytes"),
        ("unsupported_format", "the bytes are avif"),
        ("too_many_pixels", "200 x 200 pixels; the caps are 1000 pixels and 65535 a side"),
        ("too_large", "the image was not read"),
        ("missing_partner", "no image among its members"),
        ("invalid_text", "not UTF-8 at byte 0"),
        ("unsafe_member", "the image was not read"),
        ("unsafe_member", "the image was not read"),
        ("unsafe_member", "the caption was not read"),
        ("missing_text", "no .txt and no caption in a .json"),
        ("missing_text", "no .txt and no caption in a .json"),
    ]
    formats = ["png", "png", "html", None, "avif", "png", None, None, "png", None, None, "png", "png", "png"]
    assert [r["image_format"] for r in rows] == formats
    assert [r["sha256"] for r in rows[1:3]] == [hashlib.sha256(data).hexdigest() for data in (cut, html)]
    assert summary == ShardSummary(str(shard), shard.stat().st_size, "ok", "1 too_large, 4 unsafe_member", 14)


def test_what_is_not_ok_is_not_read(monkeypatch):
    data = blocks(("a.jpg", b"x" * 5000), ("../b.jpg", b"x" * 3000), ("c.jpg", b"x" * 1000)) + END
    file = Watched(data)
    file.reads = []
    monkeypatch.setattr(etl.shards, "open_shard", lambda uri: file)
    scanned("a.tar", max_member_bytes=4000)
    assert [size for _, size in file.reads if size != 512] == [1000]


def test_of_a_cut_shard_the_sample_at_the_cut_is_left_out(tmp_path):
    shard = tmp_path / "s.tar"
    samples = [(f"{key}.{what}", data) for key in "abc" for what, data in (("png", picture(1)), ("txt", b"t"))]
    whole = blocks(*samples) + END
    shard.write_bytes(whole)
    rows, summary = scanned(shard)
    assert (len(rows), summary.status) == (3, "ok")
    kept = []
    for size in range(512, len(whole), 512):
        shard.write_bytes(whole[:size])
        some, summary = scanned(shard)
        assert (some, summary.status, summary.num_members) == (rows[: len(some)], "cut", len(some))
        kept.append(len(some))
    assert kept == [0] * 4 + [1] * 4 + [2] * 5


def test_a_bad_file_is_a_summary(tmp_path):
    packed = tmp_path / "a.tar"
    packed.write_bytes(gzip.compress(WHOLE + END, mtime=0))
    missing, folder = str(tmp_path / "none.tar"), str(tmp_path)
    found = [scanned(uri) for uri in (packed, missing, folder, "nosuch://x/y.tar")]
    reason = "truncated header; it starts with 1f8b080000000000"
    assert packed.stat().st_size < 512 and found == [
        ([], ShardSummary(str(packed), packed.stat().st_size, "not_a_tar", reason, 0)),
        ([], ShardSummary(missing, None, "unreadable", "FileNotFoundError: No such file or directory", 0)),
        ([], ShardSummary(folder, None, "unreadable", "IsADirectoryError: Is a directory", 0)),
        ([], ShardSummary("nosuch://x/y.tar", None, "unreadable", "ValueError", 0)),
    ]


def test_links_to_files_are_listed_and_dead_ones_too_but_no_folders_or_pipes(tmp_path):
    """A pool of links gave no pairs and no word of it: fsspec calls a link neither file nor folder."""
    write_shard(tmp_path / "real", {"a": {"txt": b"a"}})
    (tmp_path / "link.tar").symlink_to(tmp_path / "real")
    (tmp_path / "dead.tar").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.tar").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "to_pipe.tar").symlink_to(tmp_path / "pipe.tar")
    dead, link = list_shards(f"{tmp_path}/*.tar")
    assert (link.uri, link.size_bytes) == (f"{tmp_path}/link.tar", (tmp_path / "real").stat().st_size)
    assert dead.uri == f"{tmp_path}/dead.tar"
    assert [row.status for row in scan(dead.uri)] == ["unreadable"]
    (_, summary) = scan(link.uri)
    assert (summary.status, summary.num_members) == ("ok", 1)


def test_list_shards_sorts_and_tells_changes(tmp_path):
    assert list_shards(f"{tmp_path}/*.tar") == []
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "d.tar").mkdir()
    os.utime(tmp_path / "a.tar", ns=(5, 1_700_000_000_123_456_789))
    first, second = list_shards(f"{tmp_path}/*.tar")
    assert first == (f"{tmp_path}/a.tar", 5, "1700000000123456789-5")
    assert second[:2] == (f"{tmp_path}/b.tar", 5)
    assert [shard.uri for shard in list_shards(f"{tmp_path}/b.tar")] == [f"{tmp_path}/b.tar"]


def test_fsspec_urls_work_throughout():
    memory = fsspec.filesystem("memory")
    with ShardWriter("memory://house/0.tar") as writer:
        writer.add("k", {"png": picture(1), "txt": b"t"})
        written = writer.close()
    publish("memory://house", written.temporary, "0.tar")
    entry = {"shard": "0.tar", "num_samples": 1, "size_bytes": written.size_bytes, "sha256": written.sha256}
    write_manifest("memory://house", [entry], {})
    (shard,) = list_shards("memory://house/*.tar")
    ((found,), summary) = scanned(shard.uri)
    assert (shard.uri, shard.size_bytes, summary.status) == ("memory:///house/0.tar", written.size_bytes, "ok")
    assert RangeReader().read(shard.uri, found["offset_bytes"], found["size_bytes"]) == picture(1)
    assert verify("memory://house") == []
    memory.rm("/house", recursive=True)


# --- ranges


class Watched(io.BytesIO):
    """A shard that remembers what was asked of it."""

    reads: list[tuple[int, int]]

    def read(self, size: int = -1) -> bytes:
        self.reads.append((self.tell(), size))
        return super().read(size)


@pytest.fixture
def opened(monkeypatch) -> list[Watched]:
    """20 MiB per shard, of which byte i is i // 1 MiB; the list of what was opened."""
    found = []

    def open_shard(uri: str) -> Watched:
        file = Watched(b"".join(bytes([i]) * (1 << 20) for i in range(20)))
        file.reads = []
        found.append(file)
        return file

    monkeypatch.setattr(etl.tar, "open_ranges", open_shard)
    return found


def test_neighbours_are_read_in_one_go(opened):
    mega = 1 << 20
    pointers = [("a", 10, 5), ("a", 15, 5), ("a", 10, 2), ("a", 20 + mega, 7), ("a", 28 + 2 * mega, 3)]
    pointers += [("a", 4 * mega, 6 * mega), ("a", 10 * mega, 3 * mega), ("b", 13 * mega, mega), ("a", 0, 1)]
    with RangeReader() as reader:
        found = list(reader.read_many(pointers))
        assert [file.closed for file in opened] == [True, True, False]
    assert [len(data) for data in found] == [size for _, _, size in pointers]
    assert [data[0] for data in found] == [0, 0, 0, 1, 2, 4, 10, 13, 0]
    assert [file.reads for file in opened] == [
        [(10, 17 + mega), (28 + 2 * mega, 3), (4 * mega, 6 * mega), (10 * mega, 3 * mega)],
        [(13 * mega, mega)],
        [(0, 1)],
    ]
    assert opened[-1].closed


def test_runs_keep_to_gap_and_range(opened):
    mega = 1 << 20
    reader = RangeReader()
    list(reader.read_many([("a", 0, 1), ("a", 1 + mega, 1), ("a", 3 + 2 * mega, 1)]))
    list(reader.read_many([("a", i * mega, mega) for i in range(10)]))
    list(reader.read_many([("a", 9, 8 * mega - 1), ("a", 8 + 8 * mega, 2), ("a", 0, 2)]))
    assert opened[0].reads == [
        *((0, 2 + mega), (3 + 2 * mega, 1)),
        *((0, 8 * mega), (8 * mega, 2 * mega)),
        *((9, 8 * mega - 1), (8 + 8 * mega, 2), (0, 2)),
    ]


@pytest.mark.parametrize("pointer", [("a", 20 << 20, 1), ("a", 0, 1 << 50), ("a", -1, 1), ("a", 1 << 60, 5)])
def test_a_short_read_raises_after_all_that_is_whole(opened, pointer):
    found = []
    with pytest.raises(ShardError) as caught:
        for data in RangeReader().read_many([("a", (20 << 20) - 2, 2), pointer]):
            found += [data]
    assert (found, caught.value.status) == ([b"\x13\x13"], "read_error")
    assert max(size for _, size in opened[0].reads) <= 20 << 20


def test_a_missing_shard_is_a_read_error_that_keeps_its_place_to_itself(tmp_path):
    with pytest.raises(ShardError) as caught:
        RangeReader().read(f"{tmp_path}/secret.tar", 0, 1)
    assert str(caught.value) == "read_error: FileNotFoundError: No such file or directory"


# --- writing


def written(folder: Path, name: str = "0.tar", num_samples: int = 2) -> dict:
    with ShardWriter(f"{folder}/{name}") as writer:
        for i in range(num_samples):
            writer.add(f"{i:05}", {"txt": b"caption %d" % i, "png": picture(i)})
        shard = writer.close()
    publish(str(folder), shard.temporary, name)
    return {"shard": name, "num_samples": shard.num_samples, "size_bytes": shard.size_bytes, "sha256": shard.sha256}


def test_the_same_samples_give_the_same_bytes(tmp_path):
    first, second = written(tmp_path, "a.tar"), written(tmp_path, "b.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert first == {
        "shard": "a.tar",
        "num_samples": 2,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert second == first | {"shard": "b.tar"}
    with tarfile.open(tmp_path / "a.tar") as tar:
        found = [(m.name, m.mode, m.uid, m.gid, m.mtime, tar.extractfile(m).read()) for m in tar]
    expected = [(f"0000{i}.{e}", d) for i in (0, 1) for e, d in (("png", picture(i)), ("txt", b"caption %d" % i))]
    assert found == [(name, 0o644, 0, 0, 0, content) for name, content in expected]


def test_webdataset_reads_what_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WDS_SECURE", "1")
    from webdataset import tariterators  # takes seconds, and must see WDS_SECURE

    key = "long/" * 40 + "é" * 60
    with ShardWriter(f"{tmp_path}/0.tar") as writer:
        writer.add("a", {"jpg": b"1", "txt": b"2"})
        writer.add(key, {"jpg": b"3", "orig.json": b"4"})
        publish(str(tmp_path), writer.close().temporary, "0.tar")
    with (tmp_path / "0.tar").open("rb") as stream:
        files = list(tariterators.tar_file_expander([{"url": "u", "stream": stream}]))
        found = [{k: v for k, v in s.items() if k != "__url__"} for s in tariterators.group_by_keys(files)]
    found = [{k: v for k, v in sample.items() if k != "__local_path__"} for sample in found]
    assert found == [{"__key__": "a", "jpg": b"1", "txt": b"2"}, {"__key__": key, "jpg": b"3", "orig.json": b"4"}]


@pytest.mark.parametrize("key", ["", "a.b", "/a", "../a", "d/", "d/.a", "twice"])
def test_a_key_that_readers_would_misread_is_refused(tmp_path, key):
    with ShardWriter(f"{tmp_path}/0.tar") as writer:
        writer.add("twice", {"txt": b""})
        with pytest.raises(ValueError, match="not a sample"):
            writer.add(key, {"txt": b""})
        for members in ({}, {"TXT": b""}, {"a/b": b""}):
            with pytest.raises(ValueError, match="not a sample"):
                writer.add("other", members)


def test_an_unfinished_shard_leaves_nothing_and_no_final_name(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(f"{tmp_path}/sub/0.tar") as writer:
        writer.add("a", {"txt": b""})
        (unfinished,) = (tmp_path / "sub").iterdir()
        assert unfinished.name.startswith(".0.tar.")
        raise RuntimeError
    assert list((tmp_path / "sub").iterdir()) == []


def test_two_attempts_do_not_meet(tmp_path):
    writers = [ShardWriter(f"{tmp_path}/0.tar") for _ in range(2)]
    for writer in writers:
        writer.add("a", {"txt": b"t"})
    one, two = (writer.close() for writer in writers)
    assert one.temporary != two.temporary and one[1:] == two[1:]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards, another file, the truth beside them, and their manifest."""
    shards = [written(tmp_path, "0.tar"), written(tmp_path, "1.tar", 3)]
    (tmp_path / "uids.npy").write_bytes(b"uids")
    (tmp_path / "truth.parquet").write_bytes(b"")
    files = [{"file": "uids.npy", "size_bytes": 4, "sha256": hashlib.sha256(b"uids").hexdigest()}]
    write_manifest(str(tmp_path), shards, {"files": files, "selection_id": "s"})
    return tmp_path


def test_a_folder_that_is_what_its_manifest_says_verifies(folder):
    assert verify(str(folder)) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["selection_id"], [entry["shard"] for entry in manifest["shards"]]) == ("s", ["0.tar", "1.tar"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "0.tar",
        "1.tar",
        "manifest.json",
        "truth.parquet",
        "uids.npy",
    ]


def edit_manifest(folder: Path, **change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


FAULTS = {
    "manifest missing": (lambda d: (d / "manifest.json").unlink(), ["manifest.json: FileNotFoundError"]),
    "manifest cut": (lambda d: cut(d / "manifest.json", 40), ["manifest.json: not a manifest (JSONDecodeError)"]),
    "manifest of another kind": (
        lambda d: (d / "manifest.json").write_text("[1]"),
        ["manifest.json: not a manifest (TypeError)"],
    ),
    "shard missing": (lambda d: (d / "0.tar").unlink(), ["0.tar: missing"]),
    "extra shard": (lambda d: written(d, "2.tar"), ["2.tar: not in the manifest"]),
    "left by a dead attempt": (lambda d: (d / ".0.tar.x.tmp").touch(), [".0.tar.x.tmp: not in the manifest"]),
    "a flipped bit": (lambda d: flip(d / "0.tar"), ["0.tar: its sha256 is another"]),
    "another file changed": (lambda d: flip_short(d / "uids.npy"), ["uids.npy: its sha256 is another"]),
    "a folder for a shard": (
        lambda d: ((d / "0.tar").unlink(), (d / "0.tar").mkdir()),
        ["0.tar: SIZE bytes, not 10240", "0.tar: unreadable: IsADirectoryError: Is a directory"],
    ),
    "count": (lambda d: edit_manifest(d, num_samples=4), ["1.tar: 3 samples, not 4"]),
    "outside": (lambda d: edit_manifest(d, shard="../1.tar"), ["1.tar: not in the manifest", "../1.tar: missing"]),
}


def flip_short(path: Path) -> None:
    path.write_bytes(b"uidz")


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_each_fault(folder, fault):
    make, expected = FAULTS[fault]
    make(folder)
    size = (folder / "0.tar").stat().st_size if (folder / "0.tar").exists() else 0
    assert verify(str(folder)) == [problem.replace("SIZE", str(size)) for problem in expected]


def test_verify_finds_a_cut_at_each_block(folder):
    whole = (folder / "0.tar").read_bytes()
    for size in range(0, len(whole), 512):
        cut(folder / "0.tar", size)
        size_problem, sha_problem, *_ = verify(str(folder))
        assert size_problem == f"0.tar: {size} bytes, not {len(whole)}" and "sha256" in sha_problem
        (folder / "0.tar").write_bytes(whole)


def test_neither_spark_nor_torch_is_imported():
    code = "import sys, etl.shards, etl.export.strip; print(sorted({'torch', 'pyspark'} & set(sys.modules)))"
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert run.stdout == "[]\n"
