"""`make bench PART=encode DEVICE=cuda`: one GPU, shards to scores. Rates are per wall second, which is a GPU second.

Rows: the pass against the model alone on batches that lie on the device; how much of the time the model stands still;
decoding on the CPU against decoding on the device; the pass against clip-retrieval on the same GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torchvision
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from models.encoder import Encoder
from tests.bench import data, ours, peers
from tests.bench.measure import OUT, REPETITIONS, Rates, Ratio, Side, against, compare, interleaved

PAIRS, IMAGES = "pairs / GPU s", "images / wall s"
BATCH = 512


def rows(*, quick: bool) -> list[Ratio]:
    if not torch.cuda.is_available():
        sys.exit("encode --device cuda: wanted an NVIDIA GPU and a torch with CUDA; found none; fix: --device cpu")
    spark = ours.spark_session(f"local[{os.cpu_count()}]")
    given, folder = data.build(600 if quick else 6000), ours.encoder_folder(OUT / "data")
    images, texts, num_pairs = given.images(), given.texts, len(given.pairs)
    clip_retrieval = peers.ClipRetrieval(sorted(given.folder.glob("*.tar")), folder, num_pairs, batch_size=256)
    idle: Rates = []
    measured = interleaved(
        {
            "pass": watched(ours.embed_pass(spark, given, folder, num_pairs), idle),
            "model": model_alone(folder, images[:BATCH], texts[:BATCH], num_batches=2 if quick else 20),
            "clip-retrieval": clip_retrieval,
            "decode on the CPU": peers.torchvision_loop(images[:BATCH]),
            "decode on the device": decode_on_device(images[:BATCH]),
        },
        repetitions=2 if quick else REPETITIONS,
        clock=perf_counter,
    )
    clip_retrieval.close()
    row = functools.partial(against, *measured)
    gpu = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} CPU cores"
    decoders = f"torchvision {torchvision.__version__}; theirs: one CPU core; ours: nvJPEG, resized on the device"
    return [
        row("pass", "model", ("gpu_pass_vs_limit", PAIRS, ">= 0.85"), gpu),
        idle_row(idle[1:]),
        row("decode on the device", "decode on the CPU", ("gpu_decode_vs_cpu", IMAGES, "-"), decoders),
        row(
            "pass",
            "clip-retrieval",
            ("gpu_pass_vs_clip_retrieval", PAIRS, "-"),
            "2.45.0, bf16 autocast, batches of 256",
        ),
    ]


def idle_row(idle: Rates) -> Ratio:
    note = "share of the pass in which no kernel ran, by nvidia-smi: " + "; ".join(f"{share:.0%}" for share in idle)
    if not idle:
        return compare("gpu_model_idle", None, None, "share of time", "<= 0.15", "nvidia-smi is not installed")
    return compare("gpu_model_idle", idle, [1.0] * len(idle), "share of time", "<= 0.15", note)


def watched(side: Side, idle: Rates) -> Side:
    """`side`, with the share of its time in which the GPU stood still appended to `idle`."""

    def run() -> float:
        with utilisation() as percents:
            amount = side()
        if percents:
            idle.append(1 - float(np.mean(percents)) / 100)
        return amount

    return run


@contextlib.contextmanager
def utilisation() -> Iterator[list[float]]:
    """Samples of the GPU's utilisation in percent, five a second, filled in when the block ends."""
    percents: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200", "-i", "0"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        yield percents
        return
    try:
        yield percents
    finally:
        process.terminate()
        percents += [float(line) for line in process.communicate()[0].split() if line.replace(".", "").isdigit()]


def model_alone(folder: Path, images: Sequence[bytes], texts: Sequence[str], *, num_batches: int) -> Side:
    """The limit: pixels and tokens lie on the device, and only the towers run."""

    @functools.cache
    def resident() -> tuple[Encoder, torch.Tensor, torch.Tensor]:
        pixels_BCHW = torch.from_numpy(np.stack([ours.pixels(folder, image) for image in images])).cuda()
        return ours.loaded(folder, "cuda:0"), pixels_BCHW, peers.stock_tokenizer()(list(texts)).cuda()

    def run() -> float:
        encoder, pixels_BCHW, tokens_BL = resident()
        for _ in range(num_batches):
            ours.towers(encoder, pixels_BCHW, tokens_BL)
        torch.cuda.synchronize()
        return num_batches * len(images)

    return run


def decode_on_device(images: Sequence[bytes]) -> Side:
    """nvJPEG through torchvision, then resize and crop, all on the device."""
    encoded = [peers.tensor_of(image) for image in images]

    def run() -> float:
        for image in decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda"):
            small = vision.resize(image, [peers.SIZE_PX], InterpolationMode.BICUBIC, antialias=True)
            vision.center_crop(small, [peers.SIZE_PX, peers.SIZE_PX])
        torch.cuda.synchronize()
        return len(encoded)

    return run
