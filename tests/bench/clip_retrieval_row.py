"""clip-retrieval's mapper over the same shards and weights: WEIGHTS NUM_PAIRS BATCH_SIZE SHARD...

Builds an environment of its own (build/bench/clip-retrieval: its pins clash with ours), which sees ours through a .pth
file, so that torch is not installed twice. Then, for every line on stdin, encodes N pairs and answers one line of JSON:
{"pairs": N}, or {"error": why not}. Its pins on numpy < 2 and pyarrow < 16 are not kept: neither is needed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import types
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.bench.measure import OUT

PINS = (
    "clip-retrieval==2.45.0", "all-clip==1.3.0", "clip-anytorch==2.6.0", "sentence-transformers==2.7.0",
    "open-clip-torch==2.32.0", "webdataset==0.2.111", "braceexpand==0.1.7", "setuptools==80.9.0",
)  # fmt: skip
"""What reader and mapper import, at versions that its own metadata allows."""


def environment() -> Path:
    """The Python of an environment with PINS, made if it is not there. Raises CalledProcessError, with pip's words."""
    home = (OUT / "clip-retrieval").absolute()
    python = home / "bin/python"
    if not (home / "ready").exists():
        base = [sys.executable, "-m", "venv", "--clear", str(home)]
        subprocess.run(base, check=True, capture_output=True, text=True)
        site = next(home.glob("lib/python3*/site-packages"))
        seen = {sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))}
        (site / "main.pth").write_text("\n".join(sorted(seen)) + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", *PINS]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        (home / "ready").touch()
    return python


def without_init(*names: str) -> None:
    """Packages whose `__init__` is not run: clip-retrieval's imports its server, its index and wandb."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = list(find_spec(name).submodule_search_locations) if "." not in name else [_inside(name)]
        sys.modules[name] = module


def _inside(name: str) -> str:
    parent, _, child = name.rpartition(".")
    return str(Path(sys.modules[parent].__path__[0]) / child)


def batches(weights: str, batch_size: int, shards: list[str]) -> Iterator[tuple[Any, Any]]:
    """Its mapper, and its reader's batches, for ever. Preprocessing in this process: workers cost CPU."""
    from clip_retrieval.clip_inference.mapper import ClipMapper
    from clip_retrieval.clip_inference.reader import WebdatasetReader

    name = f"open_clip:ViT-B-32/{weights}"
    mapper = ClipMapper(True, True, False, False, name, False, "", warmup_batch_size=batch_size)
    from all_clip import load_clip

    _, preprocess, tokenizer = load_clip(clip_model=name, use_jit=False, warmup_batch_size=batch_size)
    for _ in cycle([None]):
        reader = WebdatasetReader(lambda urls: urls, preprocess, tokenizer, shards, batch_size, 0)
        for batch in reader:
            yield mapper, batch


def inside(weights: str, num_pairs: int, batch_size: int, shards: list[str]) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        without_init("clip_retrieval", "clip_retrieval.clip_inference")
        import torch

        torch.set_num_threads(1)
        found = batches(weights, batch_size, shards)
    for _ in sys.stdin:
        done = 0
        with contextlib.redirect_stdout(sys.stderr):
            while done < num_pairs:
                mapper, batch = next(found)
                done += len(mapper(batch)["image_embs"])
        answer(pairs=done)


def answer(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main(weights: str, num_pairs: str, batch_size: str, *shards: str) -> None:
    if os.environ.get("CLIP_RETRIEVAL_INSIDE"):
        try:
            inside(weights, int(num_pairs), int(batch_size), list(shards))
        except Exception as error:  # whatever is wrong with it becomes the row's note
            answer(error=f"clip-retrieval 2.45.0 does not run: {type(error).__name__}: {str(error)[:300]}")
        return
    try:
        python = environment()
    except subprocess.CalledProcessError as error:
        answer(error=f"clip-retrieval 2.45.0 does not install: {error.stderr.strip()[-300:]}")
        return
    os.environ["CLIP_RETRIEVAL_INSIDE"] = "1"
    command = [str(python), "-m", "tests.bench.clip_retrieval_row", *sys.argv[1:]]
    os.execv(python, command)  # the same process, so that it counts as our child


if __name__ == "__main__":
    main(*sys.argv[1:])
