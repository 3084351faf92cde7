"""A selection read where it lies: pointers into the pool's own shards, and a training run on them."""

import json

import pytest
from helpers import frame, places, uid, write_shard
from training_data import job, sample

from etl.export.pointers import selection_pointers
from etl.stage import UserError
from etl.tables import PAIRS, RECEIPTS, SELECTIONS
from models.images import sha256_hex
from models.pairs import Pairs, Pointer
from models.pretrain import run

RULE = json.dumps({"name": "x", "keep": {"all": True, "top_fraction": None, "of": "dfn"}})


@pytest.fixture
def selected(store, tmp_path):
    """(store, folder of shards): two shards of three pairs; 0, 1, 4 and 5 are kept, 4 twice, 5 has no pixels yet."""
    shards = tmp_path / "pool"
    shards.mkdir()
    rows = []
    for shard, numbers in {"a.tar": (0, 1, 2), "b.tar": (3, 4)}.items():
        write_shard(shards / shard, {f"{n}": sample(n) for n in numbers})
        for n in numbers:
            offset, size = places(shards / shard)[f"{n}.png"]
            row = {"uid": uid(n), "text": f"caption {n}", "shard": shard, "offset_bytes": offset, "size_bytes": size}
            rows.append(row | {"status": "ok", "sha256": sha256_hex(sample(n)["png"])})
    rows.append({"uid": uid(5), "text": "caption 5", "status": "metadata_only"})
    kept = [{"selection_id": "s", "uid": uid(n), "num_repeats": 1 + (n == 4)} for n in (0, 1, 4, 5)]
    receipt = {"selection_id": "s", "inputs": {}, "rule": RULE, "seed": 0, "facts": "{}", "num_rows": 4, "hash": "h"}
    for table, content in ((PAIRS, rows), (SELECTIONS, kept), (RECEIPTS, [receipt])):
        store.create("pool", table)
        store.append_once(frame(store.spark, table, content), "pool", table, content=table.name, note={"slice": {}})
    return store, shards


def test_a_selection_becomes_pointers_and_a_run_trains_on_them(selected, tmp_path):
    store, shards = selected
    folder = selection_pointers(store, "pool", "s", tmp_path / "out", shards_root=str(shards))
    pairs = Pairs.open(folder)
    wanted = []
    for n in (0, 1, 4, 4):
        shard = shards / ("b.tar" if n == 4 else "a.tar")
        sha256 = bytes.fromhex(sha256_hex(sample(n)["png"]))
        wanted.append(Pointer(uid(n), str(shard), *places(shard)[f"{n}.png"], sha256, f"caption {n}"))
    assert [pairs[n] for n in range(len(pairs))] == wanted
    assert [pairs[n].read() for n in (0, 3)] == [sample(0)["png"], sample(4)["png"]]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["num_rows"], manifest["num_selected"], manifest["hash"]) == (4, 4, "h")
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert selection_pointers(store, "pool", "s", tmp_path / "out", shards_root=str(shards)) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    result = run(job(tmp_path, data=str(folder), samples_seen=16))
    assert (result["num_pairs"], result["bad"], len(result["losses"])) == (4, {}, 2)


def test_a_selection_that_is_not_there_is_named(selected, tmp_path):
    with pytest.raises(UserError, match="found no 'nope'"):
        selection_pointers(selected[0], "pool", "nope", tmp_path / "out", shards_root="")
