"""A base of the evidence suite with planted vectors, to train on in milliseconds; no Spark, no pictures."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from test_models_filters import encoder_record

from etl.config import load
from etl.evidence.base import CLASSES, Base, key_of
from etl.project import Project
from models.data import write_part

DIMS = {"image_dim": 12, "text_dim": 10}
NUM = {"pool": 160, "noise_boilerplate": 12, "noise_foreign": 9, "emoji": 40, "tuxpaint": 20,
       "stamps": 16, "things": 30, "drawings": 24}  # fmt: skip
BOTH = "evidence.pools.permuted={permuted: 0.5}"
"""An override: another pool beside `mixed`."""
SETTINGS = """
base: pool
noise: noise
clean: [emoji, tuxpaint]
dev: stamps.r5
parts: [things.r5, things.mean_per_class, drawings.r5]
pools:
  mixed: {permuted: 0.1, boilerplate: 0.1, pictures: 0.1, foreign: 0.1, must_catch: true}
seeds: [0, 1]
tuning_seeds: [9]
filter: {steps: 12, dropout: 0.1, batch_size: 16, lr: 0.02}
induced: {steps: 6, dropout: 0.1, batch_size: 16, lr: 0.02}
choices: [0.15, 0.5]
sweep: [0.05, 0.3, 1.0]
scarce: [16]
dirt: [0.5]
reserve: 0.4
figure3: {steps: [4, 12], dropout: [0.0], limits: [10, 0]}
processes: 1
min_seeds: 2
min_items: 50
experiments: [table1, sweep, scarce, table2, figure4, beyond, figure3]
"""


def uids_of(name, number):
    return [hashlib.md5(f"{name} {i}".encode()).hexdigest() for i in range(number)]


def facts_of(name, number):
    """Of the pool every fourth pair is of documentation: tiny, banner, screenshot, in turns."""
    source = {"pool": "iconify_pool", "emoji": "emoji_google"}.get(name, name)
    rows = [{"text": f"{name} thing {i}", "source": source, "width_px": 160, "height_px": 160} for i in range(number)]
    for i in range(0, number if name == "pool" else 0, 4):
        width, height = [(16, 16), (600, 90), (800, 600)][i // 4 % 3]
        rows[i] |= {"source": "documentation", "width_px": width, "height_px": height}
    for row in rows if name == "noise_boilerplate" else []:
        row["text"] = row["text"].replace("noise_boilerplate thing ", "IMG_00") + ".JPG"
    language = ("de", 0.9) if name == "noise_foreign" else ("en", 0.8)
    return pd.DataFrame(rows).assign(uid=uids_of(name, number), language=language[0], language_confidence=language[1])


def write_vectors(path, name, number):
    """Images and texts of a pair share a latent vector; noise has its own."""
    seed = int(hashlib.md5(name.encode()).hexdigest()[:8], 16)
    rng, world = np.random.default_rng(seed), np.random.default_rng(7)
    latent = rng.normal(size=(number, 5))
    images = latent @ world.normal(size=(5, 12)) + 1.5 * rng.normal(size=(number, 12))
    texts = latent @ world.normal(size=(5, 10)) + 1.5 * rng.normal(size=(number, 10))
    if name.startswith("noise"):
        images, texts = np.full((number, 12), 4.0), texts + 6.0
    write_part(path, uids_of(name, number), images, texts, facts_of(name, number)["text"].tolist())


def project_of(output: Path, *overrides: str, say=lambda line: None) -> Project:
    """The suite's project, whose base is there already."""
    encoder, stock = output / "encoder", output / "stock"
    settings = output / "settings.yaml"
    kinds = {"pool": "pool", "noise": "filter", "emoji": "filter", "tuxpaint": "filter", "stamps": "dev",
             "things": "eval", "drawings": "eval"}  # fmt: skip
    if not settings.exists():
        encoder.mkdir(parents=True)
        encoder_record(**DIMS).write(encoder)
        datasets = {name: {"kind": kind, "shards": f"/nowhere/{name}/*.tar"} for name, kind in kinds.items()}
        body = "".join(f"  {line}\n" for line in SETTINGS.strip().splitlines())
        settings.write_text(json.dumps({"datasets": datasets})[1:-1].join(("{", "}")) + "\n")
        settings.with_name("suite.yaml").write_text(f"evidence:\n{body}")
    names = [str(settings), str(settings.with_name("suite.yaml"))]
    given = [f"output={output}", "name=planted", f"encoder.folder={encoder}", *overrides]
    project = Project(load(names, given), say)
    if not (output / "base.json").exists():
        for number, name in enumerate(("pool", "noise_boilerplate", "noise_foreign", "emoji", "tuxpaint")):
            write_vectors(stock / f"part-{number:05d}.arrow", name, NUM[name])
        sets = ["pool", "noise_boilerplate", "noise_foreign", "emoji", "tuxpaint"]
        frames = [facts_of(n, NUM[n]).assign(dataset=n.partition("_")[0]) for n in sets]
        pd.concat(frames, ignore_index=True).to_parquet(stock / "facts.parquet")
        for name in ("stamps", "things", "drawings"):
            write_vectors(output / "vectors" / name / "part-00000.arrow", name, NUM[name])
        labels = {uid: f"class {i % 3}" for i, uid in enumerate(uids_of("things", NUM["things"]))}
        save_file({"vectors": np.random.default_rng(5).normal(size=(3, 10)).astype(np.float32)}, stock / CLASSES)
        (stock / "classes.json").write_text(json.dumps([f"class {i}" for i in range(3)]))
        folders = {name: str(output / "vectors" / name) for name in ("stamps", "things", "drawings")}
        base = Base(key_of(project), str(stock), folders, {"things": labels}, str(encoder), {"pool": 0})
        (output / "base.json").write_text(json.dumps(asdict(base)))
    return project
