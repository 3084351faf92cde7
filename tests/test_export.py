"""A selection with repeats in shards: the same bytes however it is run, and after a kill at any moment (F7)."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import frame, picture, places, running_in, uid, write_shard

from etl.export import export, finished
from etl.export.blur import without_faces
from etl.export.export import export_selection, shard_writer
from etl.run import Runner
from etl.shard_writer import ShardWriter, publish_json
from etl.shards import verify
from etl.stage import UserError
from etl.stages import listed
from etl.store import Store
from etl.tables import IMAGE_SIGNALS, PAIRS, SHARDS
from models.data import uid_to_u8

REPEATS = {n: 1 + (n % 5 == 0) * 3 + (n == 7) * 11 for n in range(40)}
"""Pair -> how often it is in the selection; of 40 pairs: 75 samples."""
PER_SHARD = 10
PLAN = "0123456789abcdef"


def pairs_of(root: Path, count: int, shards: int = 3) -> list[dict]:
    """Rows of `pairs`, whose pixels are in new shards under `root`."""
    root.mkdir(parents=True)
    rows = []
    for number in range(shards):
        own = range(number, count, shards)
        write_shard(root / f"{number}.tar", {uid(n): {"png": picture(n)} for n in own})
        for n in own:
            offset, size = places(root / f"{number}.tar")[f"{uid(n)}.png"]
            pointer = {"shard": f"{number}.tar", "offset_bytes": offset, "size_bytes": size, "image_format": "png"}
            rows.append({"uid": uid(n), "text": f"caption {n}", "sha256": f"{n:064x}", "status": "ok", **pointer})
    return rows


def made(spark, folder: Path, repeats: dict[int, int], count: int) -> tuple[Store, str]:
    """Tables of `count` pairs, and the selection of those that `repeats` names."""
    store = Store(spark, str(folder / "tables"))
    store.create("pool", PAIRS)
    rows = frame(spark, PAIRS, pairs_of(folder / "pool", count))
    store.append_once(rows, "pool", PAIRS, content="pairs", note={"slice": {}})
    np.save(folder / "list.npy", uid_to_u8([uid(n) for n, times in repeats.items() for _ in range(times)]))
    run = Runner(store, {"pool": "pool"}).run(listed.STAGE, "pool", listed.of_list(folder / "list.npy", "mine"))
    return store, str(run.slice["selection_id"])


@pytest.fixture(scope="module")
def chosen(spark, tmp_path_factory):
    """(store, selection, folder of the pool's shards)"""
    folder = tmp_path_factory.mktemp("chosen")
    return *made(spark, folder, REPEATS, 44), folder / "pool"


@pytest.fixture(scope="module")
def unbroken(chosen, tmp_path_factory):
    store, selection_id, root = chosen
    folder = tmp_path_factory.mktemp("unbroken") / "out"
    done = export_selection(store, "pool", selection_id, folder, shards_root=str(root), pairs_per_shard=PER_SHARD)
    assert (len(done.shards), done.num_kept, done.is_up_to_date) == (8, 0, False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(shard: Path) -> list[str]:
    """uid of every sample, in order."""
    with tarfile.open(shard) as tar:
        return [member.name[:32] for member in tar if member.name.endswith(".json")]


@pytest.mark.slow
def test_repeats_are_spread_and_shards_hold_as_many_samples(unbroken, chosen):
    shards = [keys(path) for path in sorted(unbroken.glob("*.tar"))]
    assert Counter(u for shard in shards for u in shard) == {uid(n): times for n, times in REPEATS.items()}
    assert {len(shard) for shard in shards} == {9, 10}
    for n, times in REPEATS.items():
        in_shards = [shard.count(uid(n)) for shard in shards]
        assert max(in_shards) == -(-times // 8) and min(in_shards) == times // 8
    assert all(left != right for shard in shards for left, right in pairwise(shard))
    # Where no pair is twice in a shard, it reads the pool's shards from start to end.
    once = [[int(u, 16) for u in shard] for shard in shards if len(set(shard)) == len(shard)]
    assert once and all(shard == sorted(shard, key=lambda n: (n % 3, n)) for shard in once)
    assert verify(str(unbroken)) == []
    with tarfile.open(unbroken / "00000.tar") as tar:
        names = tar.getnames()
    assert len(set(names)) == len(names)
    manifest = json.loads((unbroken / "manifest.json").read_text())
    assert [entry["num_samples"] for entry in manifest["shards"]] == [len(shard) for shard in shards]
    rows = chosen[0].read("pool", SHARDS).collect()
    assert sorted((row["shard"], row["sha256"]) for row in rows) == [
        (entry["shard"], entry["sha256"]) for entry in manifest["shards"]
    ]
    entries = np.load(unbroken / "uids.npy")
    assert entries.tolist() == sorted((0, n) for n, times in REPEATS.items() for _ in range(times))


def test_the_bytes_are_the_same_over_other_partitions(unbroken, chosen, tmp_path):
    store, selection_id, root = chosen
    store.spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        given = {"shards_root": str(root), "pairs_per_shard": PER_SHARD}
        export_selection(store, "pool", selection_id, tmp_path, **given)
    finally:
        store.spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert contents(tmp_path) == contents(unbroken)


def broken(unbroken: Path, folder: Path) -> Path:
    """What a kill at half leaves: three shards with notes, a note without its shard, half a shard, half a list."""
    folder.mkdir()
    manifest = json.loads((unbroken / "manifest.json").read_text())
    for entry in manifest["shards"][:4]:
        publish_json(folder / f".{entry['shard']}.json", {**entry, "plan": manifest["plan"]})
    for entry in manifest["shards"][:3]:
        (folder / entry["shard"]).write_bytes((unbroken / entry["shard"]).read_bytes())
    (folder / ".00005.tar.dead.tmp").write_bytes((unbroken / "00005.tar").read_bytes()[:5000])
    (folder / ".uids.npy.dead.tmp").write_bytes(b"half")
    return folder


@pytest.mark.slow
def test_a_broken_export_goes_on_with_what_is_left_and_is_then_up_to_date(unbroken, chosen, tmp_path):
    store, selection_id, root = chosen
    folder, again = broken(unbroken, tmp_path / "out"), {"shards_root": str(root), "pairs_per_shard": PER_SHARD}
    cut = (folder / "00002.tar").read_bytes()[:-512]
    (folder / "00002.tar").write_bytes(cut)
    times = [(folder / f"0000{n}.tar").stat().st_mtime_ns for n in range(3)]
    done = export_selection(store, "pool", selection_id, folder, **again)
    assert (done.num_kept, done.is_up_to_date) == (2, False)
    assert [(folder / f"0000{n}.tar").stat().st_mtime_ns == times[n] for n in range(3)] == [True, True, False]
    assert contents(folder) == contents(unbroken)
    # Whole: nothing is written again, and a leftover of a kill after the manifest goes.
    publish_json(folder / ".00000.tar.json", {**done.shards[0], "plan": plan_of(folder)})
    third = export_selection(store, "pool", selection_id, folder, **again)
    assert (third.num_kept, third.is_up_to_date, third.shards) == (8, True, done.shards)
    assert contents(folder) == contents(unbroken)
    # Damaged after it was whole: `verify` finds it, and the next run mends it.
    (folder / "00004.tar").write_bytes((folder / "00004.tar").read_bytes()[:-1024])
    assert {problem.split(":")[0] for problem in verify(str(folder))} == {"00004.tar"}
    mended = export_selection(store, "pool", selection_id, folder, **again)
    assert (mended.num_kept, mended.is_up_to_date) == (7, False)
    assert contents(folder) == contents(unbroken)


def plan_of(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["plan"]


def test_a_folder_with_another_export_is_refused(unbroken, chosen, tmp_path):
    store, selection_id, root = chosen
    before = contents(unbroken)
    with pytest.raises(UserError, match=f"wanted a folder without another export.*{selection_id}"):
        export_selection(store, "pool", selection_id, unbroken, shards_root=str(root), pairs_per_shard=11)
    assert contents(unbroken) == before
    half = broken(unbroken, tmp_path / "half")
    for folder, found in ((unbroken, f"that {selection_id}"), (half, "that of plan")):
        with pytest.raises(UserError, match=f"found {found}.* in {folder}; fix:"):
            finished.begin(folder, "another plan", "another selection")
    assert finished.begin(half, plan_of(unbroken), selection_id) is None
    (half / "77777.tar").touch()
    with pytest.raises(UserError, match=r"without other shards; found 77777\.tar"):
        finished.begin(half, plan_of(unbroken), selection_id)


@pytest.mark.slow
def test_faces_are_blurred_by_the_boxes_that_models_found_and_nothing_else_changes(unbroken, chosen, tmp_path):
    store, selection_id, root = chosen
    how = {"shards_root": str(root), "pairs_per_shard": PER_SHARD, "blur_faces": True}
    with pytest.raises(UserError, match="--blur-faces: wanted face boxes in image_signals; found none"):
        export_selection(store, "pool", selection_id, tmp_path / "none", **how)
    boxes = {
        0: [[0.0, 0.0, 0.5, 1.0]],
        1: [],
        2: [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]],
        43: [[0.0, 0.0, 1.0, 1.0]],
    }
    rows = [{"model": "m", "model_version": "v", "uid": uid(n), "face_boxes": found, "status": "ok"}
            for n, found in boxes.items()]  # fmt: skip
    store.create("pool", IMAGE_SIGNALS)
    store.append_once(frame(store.spark, IMAGE_SIGNALS, rows), "pool", IMAGE_SIGNALS, content="f", note={"slice": {}})
    export_selection(store, "pool", selection_id, tmp_path / "out", **how)
    before, after = samples_of(unbroken), samples_of(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name[:32] for name in before if before[name] != after[name]}
    assert changed == {uid(0), uid(2)}
    assert after[f"{uid(2)}.png"] == without_faces(picture(2), sorted(boxes[2]))
    assert json.loads(after[f"{uid(2)}.json"])["num_faces_blurred"] == 2
    facts = json.loads((tmp_path / "out/manifest.json").read_text())["blur_faces"]
    assert (facts["num_pairs_with_faces"], facts["num_pairs_not_looked_at"], facts["models"]) == (2, 37, ["m/v"])
    assert verify(str(tmp_path / "out")) == []
    with pytest.raises(UserError, match="without another export"):
        export_selection(store, "pool", selection_id, tmp_path / "out", **(how | {"blur_faces": False}))


def samples_of(folder: Path) -> dict[str, bytes]:
    """Member -> bytes, of all tars."""
    found = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


# --- a kill at every moment in the life of a shard


class KillError(BaseException):
    """Stands for kill -9: nothing may tidy up after it."""


@pytest.fixture
def rows(tmp_path) -> pd.DataFrame:
    """The samples of one shard: 6 pairs of a pool in `tmp_path`."""
    found = pd.DataFrame(pairs_of(tmp_path / "pool", 6, 2))
    return found.assign(url=None, number=3, repeat=0, num_repeats=1)


MOMENTS = {  # where it is killed -> what has a name then: tar, note
    "in the third sample": ("sample_of", 3, set()),
    "before the note": ("publish_json", 1, set()),
    "after the note": ("publish_json", -1, {"note"}),
    "before the final name": ("publish", 1, {"note"}),
    "after the final name": ("publish", -1, {"note", "tar"}),
}


def killed(monkeypatch, moment: str) -> None:
    """Kills at the n-th call of a function: before it, or, where n is negative, after it."""
    name, call, _ = MOMENTS[moment]
    module = export if name == "sample_of" else finished
    function, seen = getattr(module, name), []

    def until(*arguments):
        seen.append(name)
        if len(seen) == call:
            raise KillError
        found = function(*arguments)
        if len(seen) == -call:
            raise KillError
        return found

    monkeypatch.setattr(module, name, until)
    monkeypatch.setattr(ShardWriter, "abort", lambda self: None)


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_final_name_is_ever_without_a_row_and_the_next_run_makes_the_same_bytes(rows, tmp_path, monkeypatch, moment):
    root, whole, folder = str(tmp_path / "pool"), tmp_path / "whole", tmp_path / "out"
    for path in (whole, folder):
        path.mkdir()
    entry = shard_writer(str(whole), root, PLAN)(rows).to_dict("records")
    with monkeypatch.context() as patched:
        killed(patched, moment)
        with pytest.raises(KillError):
            shard_writer(str(folder), root, PLAN)(rows)
    names = {"00003.tar": "tar", ".00003.tar.json": "note"}
    assert {names[path.name] for path in folder.iterdir() if path.name in names} == MOMENTS[moment][2]
    again = shard_writer(str(folder), root, PLAN)(rows.sample(frac=1, random_state=1)).to_dict("records")
    assert again == [{**entry[0], "was_there": moment == "after the final name"}]
    finished.end(folder)
    assert {path.name for path in folder.iterdir()} == {"00003.tar"}
    assert (folder / "00003.tar").read_bytes() == (whole / "00003.tar").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "one byte", "another plan", "half a note"])
def test_what_is_kept_was_verified_to_the_byte(rows, tmp_path, damage):
    write = shard_writer(str(tmp_path), str(tmp_path / "pool"), PLAN)
    write(rows)
    shard, note = tmp_path / "00003.tar", tmp_path / ".00003.tar.json"
    data = bytearray(shard.read_bytes())
    if damage == "cut":
        shard.write_bytes(data[:-512])
    elif damage == "one byte":
        shard.write_bytes(data[:700] + b"x" + data[701:])
    elif damage == "half a note":
        note.write_text(note.read_text()[:40])
    else:
        write = shard_writer(str(tmp_path), str(tmp_path / "pool"), "f" * 16)
    assert write(rows)["was_there"].tolist() == [False]
    assert shard.read_bytes() == data and write(rows)["was_there"].tolist() == [True]


# --- kill -9 of a real `dfn export`

MANY = 400


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_command_is_run_again_to_the_bytes_of_an_unbroken_one(spark, tmp_path):
    store, selection_id = made(spark, tmp_path, dict.fromkeys(range(MANY), 2), MANY)
    whole, folder = tmp_path / "whole", tmp_path / "out"
    export_selection(store, "pool", selection_id, whole, shards_root=str(tmp_path / "pool"), pairs_per_shard=2)
    settings = {"tables": store.root, "output": tmp_path / "output", "datasets.pool.kind": "pool"}
    settings |= {"datasets.pool.shards": f"{tmp_path}/pool/*.tar"}
    command = [sys.executable, "-m", "etl", "export", selection_id, str(folder), "--pairs-per-shard", "2", "--json"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list(folder.glob("*.tar"))) < MANY // 8:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.002)
    for pid in running_in(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    finals, notes = list(folder.glob("*.tar")), {path.name for path in folder.glob(".*.tar.json")}
    assert MANY // 8 <= len(finals) < MANY and not (folder / "manifest.json").exists()
    assert [path.name for path in finals if f".{path.name}.json" not in notes] == []
    assert verify(str(folder)) == ["manifest.json: FileNotFoundError"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    done = json.loads(again.stdout.splitlines()[-1])
    assert (done["shards"], done["samples"], done["shards_kept"]) == (MANY, 2 * MANY, len(finals))
    assert contents(folder) == contents(whole)
