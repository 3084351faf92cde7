"""Forgetting in files: tars blanked in place, lists, vectors, reports, logs; and what hashes tell. No Spark."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from helpers import picture, places, uid, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.forget.blank import blank, renew_manifest
from etl.forget.files import files_of, mend
from etl.intake.blocklists import Blocklist, read_blocklists
from etl.intake.stay_out import REDACTED, StayOut, key_hash
from etl.log_scrub import has_dead_files, without_values
from etl.shard_writer import MANIFEST, verify, write_manifest
from etl.shards import ShardSummary, scan
from models.data import read_uids, uid_to_u8, write_part
from models.records import sha256_file


def stay_out(*keys: tuple[str, str], phashes=()) -> StayOut:
    return StayOut(frozenset(bytes.fromhex(key_hash(*key)) for key in keys), frozenset(phashes))


GONE = stay_out(("uid", uid(1)), ("sha256", "a" * 64), ("url", "http://x.org/a.png"), ("domain", "bad.org"))

# --- tars


def sample(number: int) -> dict[str, bytes]:
    document = json.dumps({"url": f"http://a/{number}"}).encode()
    return {"png": picture(number), "txt": f"caption {number}".encode(), "json": document}


def tar_of(path: Path, layout: int, names: list[str]) -> dict[str, bytes]:
    """A tar as others write one: any format, with folders, long names and records of its own."""
    contents = {}
    with tarfile.open(path, "w", format=layout) as tar:
        folder = tarfile.TarInfo("part")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            for extension, data in sample(number).items():
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size, info.uname = len(data), "somebody"
                if layout == tarfile.PAX_FORMAT:
                    info.pax_headers = {"comment": "who took it", "mtime": "1.5"}
                tar.addfile(info, io.BytesIO(data))
                contents[f"{name}.{extension}"] = data
    return contents


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_blanked_sample_is_gone_and_no_offset_moves(tmp_path, layout):
    long = "f/" * 40 + "n" * 60 if layout == tarfile.USTAR_FORMAT else "long" * 60
    path = tmp_path / "a.tar"
    contents = tar_of(path, layout, ["one", long, "three"])
    before, size = places(path), path.stat().st_size
    image = before[f"{long}.png"][0]
    assert blank(path, lambda member: member.offset_bytes == image) == 3
    assert path.stat().st_size == size
    with tarfile.open(path) as tar:
        now = [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
        left = {name: tar.extractfile(name).read() for name, _, _ in now if name in contents}
    assert left == {name: data for name, data in contents.items() if not name.startswith(long)}
    assert [place for _, *place in now] == [[at, length] for at, length in before.values() if length]
    data = path.read_bytes()
    for name, gone in contents.items():
        assert (gone in data) == (not name.startswith(long))
    assert long[-50:].encode() not in data
    assert blank(path, lambda member: member.offset_bytes == image) == 0
    *rows, end = scan(str(path))
    assert (end.status, [row["text"] for row in rows]) == ("ok", ["caption 0", "caption 2"])
    keys = [found["__key__"] for found in wds.WebDataset(str(path), shardshuffle=False)]
    assert keys == ["one", "three"]


@pytest.mark.parametrize("stopped_after", range(3))
def test_a_kill_between_members_is_taken_up_again(tmp_path, monkeypatch, stopped_after):
    write_shard(tmp_path / "a.tar", {uid(n): sample(n) for n in range(3)})
    write_shard(tmp_path / "b.tar", {uid(n): sample(n) for n in range(3)})
    image = places(tmp_path / "a.tar")[f"{uid(1)}.png"][0]
    from etl.forget import blank as module

    whole, calls = module._blank_member, []

    def dying(*args):
        if len(calls) == stopped_after:
            raise KeyboardInterrupt
        calls.append(args)
        whole(*args)

    monkeypatch.setattr(module, "_blank_member", dying)
    with pytest.raises(KeyboardInterrupt):
        blank(tmp_path / "a.tar", lambda member: member.offset_bytes == image)
    monkeypatch.setattr(module, "_blank_member", whole)
    for name in ("a.tar", "b.tar"):
        blank(tmp_path / name, lambda member: member.offset_bytes == image)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_manifest_says_what_the_shard_is_now(tmp_path):
    write_shard(tmp_path / "0.tar", {uid(n): sample(n) for n in range(3)})
    write_shard(tmp_path / "1.tar", {uid(n): sample(n) for n in range(3, 5)})
    entries = [{"shard": path.name, "num_samples": 3 if path.name == "0.tar" else 2, "size_bytes": path.stat().st_size,
                "sha256": sha256_file(path)} for path in sorted(tmp_path.glob("*.tar"))]  # fmt: skip
    write_manifest(str(tmp_path), entries, {"plan": "p"})
    assert verify(str(tmp_path)) == []
    blank(tmp_path / "0.tar", lambda member: member.name.startswith(uid(1)))
    assert [line.partition(":")[0] for line in verify(str(tmp_path))] == ["0.tar", "0.tar"]
    renewed = renew_manifest(tmp_path, {"0.tar"})
    assert verify(str(tmp_path)) == []
    assert renewed["0.tar"] == {"shard": "0.tar", "num_samples": 2, "size_bytes": entries[0]["size_bytes"],
                                "sha256": sha256_file(tmp_path / "0.tar")}  # fmt: skip
    assert json.loads((tmp_path / MANIFEST).read_text())["shards"][1] == entries[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0/.", exclude_categories=["Cs"]), min_size=1, max_size=120),
                min_size=1, max_size=4, unique=True), st.data())  # fmt: skip
def test_whatever_the_names_only_what_is_named_is_blanked(tmp_path_factory, names, data):
    path = tmp_path_factory.mktemp("t") / "a.tar"
    contents = tar_of(path, tarfile.PAX_FORMAT, names)
    doomed = data.draw(st.sampled_from(names))
    image = places(path)[f"{doomed}.png"][0]
    blank(path, lambda member: member.offset_bytes == image)
    with tarfile.open(path) as tar:
        left = {member.name: tar.extractfile(member).read() for member in tar if member.name in contents}
    assert left == {name: part for name, part in contents.items() if name.rpartition(".")[0] != doomed}
    assert isinstance(list(scan(str(path)))[-1], ShardSummary)


# --- hashes


def test_hashes_tell_what_was_forgotten_and_nothing_else():
    assert GONE.has("uid", uid(1)) and not GONE.has("uid", uid(2)) and not GONE.has("sha256", uid(1))
    assert GONE.has("url", "http://x.org/a.png") and not GONE.has("url", "http://x.org/b.png")
    assert [GONE.has("url", url) for url in ("https://bad.org/x", "ftp://a.B.bad.ORG:8/", "http://verybad.org/")] == [
        True, True, False
    ]  # fmt: skip
    assert not any(GONE.has(kind, None) for kind in ("uid", "url", "sha256", "phash"))
    assert not StayOut() and GONE


@pytest.mark.parametrize(
    ("bits", "found"), [(0, [True, False, False]), (1, [True, True, False]), (3, [True, True, True])]
)
def test_masked_perceptual_hashes_keep_their_distances(bits, found):
    listed = 0xF00DF00DF00DF00D
    masked = int(key_hash("phash", f"{listed:016x}"), 16)
    assert masked != listed
    known = stay_out(phashes=[(masked, bits)])
    near = [listed, listed ^ 1, listed ^ (0b111 << 61)]
    assert [known.has("phash", str(value)) for value in near] == found
    assert [known.has("phash", str(value - (1 << 64))) for value in near if value >> 63] == [
        one for one, value in zip(found, near, strict=True) if value >> 63
    ]


def test_a_blocklist_obeys_what_was_forgotten(tmp_path):
    data = picture(3)
    known = stay_out(("sha256", hashlib.sha256(data).hexdigest()), ("url", "http://x/a"))
    (tmp_path / "list.txt").write_text(f"http://y/b\n{uid(7)}\n")
    both = read_blocklists([tmp_path / "list.txt"], known)
    assert (both.of_url("http://x/a"), both.of_url("http://y/b")) == ("it was forgotten", "its URL")
    assert (both.of_bytes(data, 1000), both.of_bytes(picture(4), 1000)) == ("it was forgotten", None)
    assert (both.uids, both.domains) == ({uid(7)}, frozenset())
    assert Blocklist(forgotten=known).of_sha256(hashlib.sha256(data).hexdigest()) == "it was forgotten"


def test_a_text_is_redacted_by_its_keys_alone():
    text = f'{{"cut": ["0.5", "{uid(1)}"], "other": "{uid(2)}", "sum": "{"a" * 64}", "at": "http://x.org/a.png"}}'
    found, count = GONE.redacted(text)
    assert count == 3
    assert json.loads(found) == {"cut": ["0.5", REDACTED], "other": uid(2), "sum": REDACTED, "at": REDACTED}
    assert GONE.redacted(f"see http://x.org/a.png, {uid(1)}0 and https://a.bad.org/y") == (
        f"see {REDACTED} {uid(1)}0 and {REDACTED}", 2
    )  # fmt: skip
    assert all(uid(number) > REDACTED for number in (0, 1, 0xF << 124))


# --- files of a project


def test_lists_vectors_reports_and_texts_lose_the_keys_and_others_are_told(tmp_path):
    np.save(tmp_path / "a.npy", uid_to_u8([uid(0), uid(1), uid(2)]))
    np.save(tmp_path / "numbers.npy", np.arange(5))
    for name, number in (("pool", 1), ("clean", 5)):
        halves = np.ones((1, 2), np.float16)
        write_part(tmp_path / "vectors" / name / "part-0.arrow", [uid(number)], halves, halves)
        (tmp_path / "vectors" / name / MANIFEST).write_text("{}")
    shown = [f"<li><figure><img src='data:x{n}'><code>{uid(n)}</code></figure></li>" for n in range(3)]
    (tmp_path / "report.html").write_text("<ul>" + "\n".join(shown) + f"</ul><p>{uid(1)}</p>")
    (tmp_path / "run.json").write_text(json.dumps({"uid": uid(1)}))
    (tmp_path / "some.db").write_bytes(b"\0\xff" + uid(1).encode() + b"\0")
    pq.write_table(pa.table({"uid": [uid(1), uid(3)]}), tmp_path / "facts.parquet")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "numbers.parquet")
    (tmp_path / "0.tar").write_text(uid(1))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "log.json").write_text(uid(1))
    known = list(files_of(tmp_path, tmp_path / "tables"))
    before = {path: path.read_bytes() for path in known}
    dry = [one for path in known if (one := mend(path, GONE, is_dry=True))]
    assert {path: path.read_bytes() for path in known} == before
    done = [one for path in known if (one := mend(path, GONE, is_dry=False))]
    assert done == dry
    assert {(str(one.path.relative_to(tmp_path)), one.what) for one in done} == {
        ("a.npy", "list"), ("vectors/pool", "vectors"), ("report.html", "report"), ("run.json", "text"),
        ("some.db", "other"), ("facts.parquet", "other"),
    }  # fmt: skip
    assert read_uids(tmp_path / "a.npy").tolist() == [(0, 0), (0, 2)]
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["clean"]
    report = (tmp_path / "report.html").read_text()
    assert [f"data:x{n}" in report for n in range(3)] == [True, False, True]
    assert report.endswith(f"</ul><p>{REDACTED}</p>")
    again = [mend(path, GONE, is_dry=False) for path in known]
    assert [one.path.name for one in again if one] == ["facts.parquet", "some.db"]


# --- logs


COUNTS = {"numRecords": 2, "nullCount": {"uid": 0}}
STATS = json.dumps({**COUNTS, "minValues": {"uid": uid(1)}, "maxValues": {"uid": uid(9)}})


def log_with(folder: Path) -> Path:
    log = folder / "_delta_log"
    log.mkdir(parents=True)
    note = {"commitInfo": {"operation": "WRITE", "userMetadata": '{"chunk": "c"}'}}
    actions = [note, {"add": {"path": "p%20a=1/x.parquet", "stats": STATS}}]
    (log / f"{0:020}.json").write_text("".join(json.dumps(a) + "\n" for a in actions))
    actions = [note, {"remove": {"path": "p%20a=1/x.parquet", "stats": STATS}}, {"add": {"path": "y.parquet"}}]
    (log / f"{1:020}.json").write_text("".join(json.dumps(a) + "\n" for a in actions))
    (log / f".{1:020}.json.crc").write_text("sum")
    (log / f"{1:020}.crc").write_text(STATS)
    (folder / "y.parquet").write_text("y")
    rows = [{"add": {"path": "y.parquet", "stats": STATS, "tags": [("k", "v")]}, "txn": None},
            {"add": None, "txn": {"appId": "a"}}]  # fmt: skip
    kind = pa.struct([("path", pa.string()), ("stats", pa.string()), ("tags", pa.map_(pa.string(), pa.string()))])
    schema = pa.schema([("add", kind), ("txn", pa.struct([("appId", pa.string())]))])
    pq.write_table(pa.Table.from_pylist(rows, schema), log / f"{1:020}.checkpoint.parquet")
    return log


def test_a_log_keeps_its_notes_and_counts_and_no_values(tmp_path):
    log = log_with(tmp_path)
    os.utime(log / f"{0:020}.json", ns=(5, 7))
    assert without_values(log) == 4
    for path in log.iterdir():
        text = path.read_text() if path.suffix == ".json" else str(pq.read_table(path).to_pylist())
        assert uid(1) not in text and uid(9) not in text
    first = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    assert first[0]["commitInfo"]["userMetadata"] == '{"chunk": "c"}'
    assert json.loads(first[1]["add"]["stats"]) == COUNTS
    assert (log / f"{0:020}.json").stat().st_mtime_ns == 7
    rows = pq.read_table(log / f"{1:020}.checkpoint.parquet").to_pylist()
    assert [row["txn"] for row in rows] == [None, {"appId": "a"}]
    assert rows[1]["add"] is None and rows[0]["add"]["tags"] == [("k", "v")]
    assert not list(log.glob("*.crc")) and not list(log.glob(".*.crc"))
    assert without_values(log) == 0


def test_a_data_file_that_no_version_of_now_has_is_found(tmp_path):
    log = log_with(tmp_path)
    assert not has_dead_files(log)
    (tmp_path / "p a=1").mkdir()
    (tmp_path / "p a=1" / "x.parquet").write_text("old")
    assert has_dead_files(log)
    (tmp_path / "p a=1" / "x.parquet").unlink()
    (log / f"{0:020}.json").unlink()
    assert has_dead_files(log), "the log does not reach back"
