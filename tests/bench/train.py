"""Part `train`: what the training loop costs beside the model. `make bench PART=train`.

Rows (images per second of wall time, ours / theirs, in turns):

    train_vs_bare_loop      `models.train.fit` on pairs read from shards, decoded, cropped and tokenised as it goes;
                            against forward, loss, backward and AdamW in a plain loop over tensors held in memory.
                            ViT-B/32 at 224 px (DataComp's debug, small and medium): decoding is the lesser part
    train_thread            the same in CPU seconds of the thread that computes: what the loop costs where others decode
    train_waits             seconds in which our loop waited for a batch, of all
    laptop_*                the same for the laptop scale's model at 64 px, whose step costs about what decoding costs

Float32, one torch thread on a CPU; JPEGs of 512 x 384. Decoding runs in threads beside the model, so a core must be
free for it: wall time, not CPU time, is what a trainer waits for.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from typing import Any

import torch
from open_clip.loss import ClipLoss
from torch import Tensor

from models import clip
from models.order import draws
from models.pairs import Pairs, write_pointers
from models.pixel_source import PixelSource
from models.recipe import Augmentation, Recipe
from models.records import RECORD
from models.scales import LAPTOP, SCALES, register_laptop
from models.step import parameter_groups
from models.train import fit
from tests.bench.data import Data, build
from tests.bench.measure import OUT, Ratio, Side, compare, interleaved, report


def pointers(data: Data) -> Pairs:
    path = data.folder / "pairs.arrow"
    if not path.exists():
        rows = data.pairs
        columns = {name: rows[name].tolist() for name in ("offset_bytes", "size_bytes", "text")}
        columns |= {"uid": [bytes.fromhex(uid) for uid in rows["uid"]], "sha256": [None] * len(rows)}
        write_pointers(path, columns | {"shard": [str(data.folder / shard) for shard in rows["shard"]]})
    return Pairs.open(path)


def model_and_source(architecture: str, pairs: Pairs, threads: int) -> tuple[Any, PixelSource]:
    folder = OUT / "data" / architecture
    if not (folder / RECORD).exists():
        register_laptop()
        clip.build_open_clip(architecture, None, folder, seed=0)
    model, record = clip.load(folder)
    tokenize = clip.load_tokenizer(folder, record)
    return model, PixelSource(pairs, record, tokenize, seed=0, augmentation=Augmentation(), num_threads=threads)


def bare(model: Any, batches: list[tuple[Tensor, Tensor]], recipe: Recipe, device: str) -> Side:
    """The same steps with nothing around them."""

    def run() -> float:
        mine = copy.deepcopy(model).to(device).train()
        optimizer = torch.optim.AdamW(parameter_groups(mine, recipe.weight_decay), lr=recipe.lr)
        loss_of = ClipLoss()
        for images, texts in batches:
            loss = loss_of(*mine(images, texts))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                mine.logit_scale.clamp_(0, math.log(100))
            loss.item()
        return float(len(batches) * recipe.batch_size)

    return run


def ours(model: Any, source: PixelSource, recipe: Recipe, device: str) -> Side:
    def run() -> float:
        fit(copy.deepcopy(model), source, recipe, device=device)
        return float(recipe.steps * recipe.batch_size)

    return run


def in_thread(side: Side, rates: list[float]) -> Side:
    """`side`, which also notes its rate per CPU second of this thread; the first is that of the warm-up."""

    def run() -> float:
        started = time.thread_time()
        amount = side()
        rates.append(amount / (time.thread_time() - started))
        return amount

    return run


def rows(prefix: str, architecture: str, batch: int, steps: int, given: argparse.Namespace) -> list[Ratio]:
    scale = SCALES["laptop"]
    recipe = Recipe(steps=steps, batch_size=batch, lr=scale.lr, warmup_steps=2, weight_decay=scale.weight_decay)
    model, source = model_and_source(architecture, pointers(build(600)), given.threads)
    held = list(source.batches(draws(len(source), recipe), given.device))
    source.wait_seconds = 0.0
    threads: dict[str, list[float]] = {"loop": [], "bare": []}
    sides = {
        "loop": in_thread(ours(model, source, recipe, given.device), threads["loop"]),
        "bare": in_thread(bare(model, held, recipe, given.device), threads["bare"]),
    }
    started = time.perf_counter()
    rates, _ = interleaved(sides, repetitions=1 if given.quick else 5, clock=time.perf_counter)
    spent = time.perf_counter() - started
    goal = "-" if prefix == "laptop" else ">= 0.95"
    note = f"{architecture}, {held[0][0].shape[-1]} px, batch {batch}, {given.threads} decode threads, wall time"
    waits = f"s of waiting for batches in all turns, warm-up too; those took {spent:.0f} s"
    unit = "images / thread's CPU s"
    return [
        compare(f"{prefix}_vs_bare_loop", rates["loop"], rates["bare"], "images / s", goal, note),
        compare(f"{prefix}_thread", threads["loop"][1:], threads["bare"][1:], unit, goal),
        compare(f"{prefix}_waits", [source.wait_seconds], [spent], "seconds", "-", waits),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.train", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two steps a turn: to see that all runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = rows("train", "ViT-B-32", 16, 2 if given.quick else 6, given)
    made += rows("laptop", LAPTOP, 64, 2 if given.quick else 24, given)
    report("train-quick" if given.quick else "train", made)


if __name__ == "__main__":
    main()
