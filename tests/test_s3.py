"""A pool on an object store: ingested, encoded and exported from a loopback S3, as from a disk, in few requests."""

from collections import Counter

import numpy as np
import pytest
import s3
from helpers import picture, rows_of, uid, write_shard
from test_models_encoder import tiny_clip

from etl.config import load
from etl.export.export import export_selection
from etl.project import Project
from etl.shards import verify
from etl.stages import listed
from etl.storage import use
from etl.tables import EMBEDDINGS, PAIRS
from models.data import uid_to_u8

SHARDS, PER_SHARD = 3, 80
BLOCKS = 3
"""Of 32 rows, in which a task of embed reads 80 neighbours."""


@pytest.fixture(scope="module")
def server():
    with s3.serving() as serving:
        yield serving
    use({})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, server):
    """Shards on the disk and on the server, an encoder, and the list of every other pair."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "release" / "shards").mkdir(parents=True)
    for number in range(SHARDS):
        own = range(number * PER_SHARD, (number + 1) * PER_SHARD)
        samples = {f"{n:05}": {"png": picture(n, (60, 50)), "json": b'{"uid": "%b"}' % uid(n).encode(),
                               "txt": b"picture %d" % n} for n in own}  # fmt: skip
        write_shard(folder / "release" / "shards" / f"{number}.tar", samples)
    server.put(folder / "release")
    tiny_clip(folder / "encoder")
    np.save(folder / "list.npy", uid_to_u8([uid(n) for n in range(0, SHARDS * PER_SHARD, 2)]))
    return folder


def ran(spark, folder, name, shards, storage):
    """(pairs, vectors, folder of the export) of the pool of these shards; and what each stage asked the server for."""
    settings = [f"output={folder / name}", f"datasets.pool={{kind: pool, shards: '{shards}'}}",
                f"encoder.folder={folder / 'encoder'}", f"storage={storage}", "stages.embed.num_tasks=1"]  # fmt: skip
    project = Project(load(["local"], settings))
    asked = {}
    for stage in ("ingest", "embed"):
        project.run_all([stage])
        asked[stage] = taken()
    run = project.run(listed.STAGE, "pool", listed.of_list(folder / "list.npy", "half"))
    taken()
    export_selection(project.store, "pool", str(run.slice["selection_id"]), folder / f"{name}-export",
                     shards_root=shards.rpartition("/")[0], pairs_per_shard=SHARDS * PER_SHARD,
                     storage=project.config.storage)  # fmt: skip
    asked["export"] = taken()
    pairs = rows_of(project.store.read("pool", PAIRS).drop("shard"))
    return pairs, rows_of(project.store.read("pool", EMBEDDINGS)), folder / f"{name}-export", asked


def taken():
    return []


@pytest.mark.slow
def test_a_pool_on_s3_is_that_of_the_disk_and_neighbours_share_a_request(spark, server, folder, monkeypatch):
    local = ran(spark, folder, "local", f"{folder}/release/shards/*.tar", "{}")

    def take():
        found = [request for request in server.requests if request.key.startswith("shards/") and request.num_bytes]
        server.requests.clear()
        return found

    monkeypatch.setitem(globals(), "taken", take)
    take()
    remote = ran(spark, folder, "remote", f"s3://{s3.BUCKET}/shards/*.tar", server.storage)
    assert remote[:2] == local[:2] and len(remote[1]) == SHARDS * PER_SHARD
    assert verify(str(remote[2])) == []
    exported = [{path.name: path.read_bytes() for path in sorted(of[2].glob("*.tar"))} for of in (local, remote)]
    assert exported[0] == exported[1] and len(exported[0]) == 1
    total = sum(path.stat().st_size for path in (folder / "release" / "shards").iterdir())
    for stage, requests in remote[3].items():
        per_shard = Counter(request.key for request in requests)
        num_bytes = sum(request.num_bytes for request in requests)
        print(f"{stage}: requests per shard {sorted(per_shard.values())}, {num_bytes / total:.2f} of the shards' bytes")
        assert len(per_shard) == SHARDS
        assert {request.method for request in requests} == {"GET"} and {r.signed_by for r in requests} == {""}
        assert max(per_shard.values()) <= {"ingest": 1, "embed": BLOCKS + 1, "export": 1}[stage]
        assert num_bytes <= {"ingest": 1.02, "embed": 1.02, "export": 1.02}[stage] * total
