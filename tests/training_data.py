"""Small training data: exported shards of seeded pictures, a CLIP of a few thousand weights beside its vocabulary."""

import hashlib
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from helpers import picture, write_shard

from models import clip
from models.job import TrainJob
from models.records import sha256_file

SIDE_PX = 16
ARCHITECTURE = {
    "embed_dim": 16,
    # Half of the patches are left out at random: a run that forgets the state of the generator gives other weights.
    "vision_cfg": {
        "image_size": SIDE_PX, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4, "patch_dropout": 0.5
    },
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip


def make_uid(number: int) -> str:
    return hashlib.md5(str(number).encode()).hexdigest()


def sample(number: int, **members: bytes) -> dict[str, bytes]:
    facts = {"uid": make_uid(number), "caption": f"picture {number}"}
    return {
        "png": picture(number, (20 + number % 5, 18)),
        "txt": f"picture {number}".encode(),
        "json": json.dumps(facts).encode(),
    } | members


def export(folder: Path, num_pairs: int = 40, per_shard: int = 16, **changes: dict[str, bytes]) -> Path:
    """Shards and a manifest. `changes`: members of sample n, as n7={"txt": ...}."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for start in range(0, num_pairs, per_shard):
        numbers = range(start, min(start + per_shard, num_pairs))
        path = folder / f"{start // per_shard:05d}.tar"
        write_shard(path, {f"{n:08d}": sample(n, **changes.get(f"n{n}", {})) for n in numbers})
        entries.append({"shard": path.name, "num_samples": len(numbers), **size_and_sha256(path)})
    (folder / "manifest.json").write_text(json.dumps({"shards": entries}))
    return folder


def size_and_sha256(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def tiny_encoder(out: Path, vision: dict[str, Any] | None = None, seed: int = 0) -> Path:
    config = out.parent / "tiny-trained.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(ARCHITECTURE | {"vision_cfg": ARCHITECTURE["vision_cfg"] | (vision or {})}))
    open_clip.add_model_config(config)
    clip.build_open_clip("tiny-trained", None, out, seed=seed, batch_size=8, text_batch_size=8)
    return out


def job(root: Path, out: str = "run", **changes: Any) -> TrainJob:
    """Twelve steps of eight on ROOT/data from ROOT/encoder, with a checkpoint every two."""
    if not (root / "data").exists():
        export(root / "data")
    if not (root / "encoder").exists():
        tiny_encoder(root / "encoder")
    fields = {
        "data": str(root / "data"), "out": root / out, "init": root / "encoder", "samples_seen": 96, "batch_size": 8,
        "lr": 1e-3, "warmup_steps": 3, "checkpoint_steps": 2, "decode_threads": 1,
    }  # fmt: skip
    return TrainJob(**fields | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / clip.WEIGHTS)


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights; infinite where their names differ."""
    return max((a[n] - b[n]).abs().max().item() for n in a) if a.keys() == b.keys() else float("inf")
