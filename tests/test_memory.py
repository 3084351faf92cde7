"""Memory of a worker of the pass does not grow with its shards: the same on a shard of 100 MB and on one of 2 GB."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

IMAGE_BYTES = 50_000

WORKER = """
import json, resource, sys
from etl.encode.feed import Row
from etl.encode.gpu import Pass

class Null:
    batch_size, columns, num_oom_halvings = 64, ("mean",), 0
    def encode(self, images):
        return [float(image.mean()) for image in images]
    def finish(self, results, texts):
        return {"mean": results, "status": ["ok"] * len(texts), "status_reason": [None] * len(texts)}

class Spec:
    columns = {"mean": "float"}
    def prepare(self):
        from functools import partial
        from models.pixels import resize
        from models.records import Preprocessing
        config = Preprocessing(size_px=224, resize="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
        return partial(resize, config=config)
    def load(self, device):
        return Null()

shard, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
work = Pass((Spec(),), decode_threads=2)
next(work.run(iter([Row((shard, 0, size), "")])))
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = (Row((shard, n * size, size), "a caption") for n in range(count))
ok = sum((frames[0]["status"] == "ok").sum() for frames, _ in work.run(rows))
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"ok": int(ok), "base_kib": base, "most_kib": most}))
"""


def payload() -> bytes:
    """A JPEG of 512 x 384, padded to IMAGE_BYTES after its end, which no decoder reads."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((512, 384), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
    assert len(file.getvalue()) <= IMAGE_BYTES
    return file.getvalue().ljust(IMAGE_BYTES, b"\0")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_of_a_worker_does_not_grow_with_the_shard(tmp_path):
    image, shard, script = payload(), tmp_path / "0.tar", tmp_path / "worker.py"
    script.write_text(WORKER)
    grown = {}
    for size_bytes in (100_000_000, 2_000_000_000):
        count = size_bytes // IMAGE_BYTES
        with shard.open("wb") as file:
            for _ in range(count // 100):
                file.write(image * 100)
        command = [sys.executable, str(script), str(shard), str(count), str(IMAGE_BYTES)]
        environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found = json.loads(done.stdout)
        assert found["ok"] == count
        grown[size_bytes] = (found["most_kib"] - found["base_kib"]) / 1024
    assert max(grown.values()) < 1024, f"MiB over the loaded worker, by shard size: {grown}"
    assert grown[2_000_000_000] < grown[100_000_000] + 100
