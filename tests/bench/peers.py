"""The other sides without an engine: plain loops, open_clip as it stands, and the limits that the hardware sets.

Each is what a careful user of that library would write, on one thread of one process.

Dimensions: B rows of a batch, N rows, C channels, H height, W width, L tokens.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from models.clip import WEIGHTS
from tests.bench.measure import MissingError, Side

MODEL = "ViT-B-32"
SIZE_PX = 224
STOCK_BATCH = 16  # on a core faster than 32 or 64: activations stay in its cache


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))


def torchvision_pixels(data: bytes) -> torch.Tensor:
    """The limit of decoding and resizing: uint8 CHW, the shorter side to 224 px, then the centre."""
    image = decode_jpeg(tensor_of(data), mode=ImageReadMode.RGB)
    image = vision.resize(image, [SIZE_PX], InterpolationMode.BICUBIC, antialias=True)
    return vision.center_crop(image, [SIZE_PX, SIZE_PX])


def torchvision_loop(images: Sequence[bytes]) -> Side:
    def run() -> float:
        for data in images:
            torchvision_pixels(data)
        return len(images)

    return run


@cache
def open_clip_transform() -> Callable[[Image.Image], torch.Tensor]:
    return open_clip.image_transform(SIZE_PX, is_train=False)


def open_clip_tensor(data: bytes) -> torch.Tensor:
    return open_clip_transform()(Image.open(io.BytesIO(data)))


def open_clip_loop(images: Sequence[bytes]) -> Side:
    def run() -> float:
        for data in images:
            open_clip_tensor(data)
        return len(images)

    return run


def open_clip_pixels(data: bytes) -> np.ndarray:
    """What open_clip's transform gives, before it is scaled and normalised: uint8 CHW."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in _MEAN_STD)
    return (((open_clip_tensor(data) * std) + mean) * 255).round().to(torch.uint8).numpy()


_MEAN_STD = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


@cache
def stock_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """open_clip's own model with the weights of our folder: the same work on both sides."""
    # Not create_model_and_transforms(pretrained=...): that wants a file of open_clip's own list or a torch file.
    model = open_clip.create_model(MODEL, pretrained=str(folder / WEIGHTS))
    return model.eval().to(dtype)


@cache
def stock_tokenizer() -> Any:
    return open_clip.get_tokenizer(MODEL)


def stock_loop(
    folder: Path, files: Sequence[Path], *, dtype: torch.dtype = torch.float32, autocast: bool = False
) -> Side:
    """open_clip's documented loop: file -> PIL -> transform -> towers -> cosine. In `dtype`, or under bf16 autocast."""

    def run() -> float:
        model, transform, tokenizer = stock_model(folder, dtype), open_clip_transform(), stock_tokenizer()
        for start in range(0, len(files), STOCK_BATCH):
            batch = files[start : start + STOCK_BATCH]
            images_BCHW = torch.stack([transform(Image.open(path)) for path in batch]).to(dtype)
            tokens_BL = tokenizer([path.with_suffix(".txt").read_text() for path in batch])
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                image_BD = model.encode_image(images_BCHW, normalize=True)
                text_BD = model.encode_text(tokens_BL, normalize=True)
                (image_BD * text_BD).sum(-1)
        return len(files)

    return run


def stock_texts(folder: Path, texts: Sequence[str], dtype: torch.dtype) -> Side:
    """open_clip's text tower over captions, tokenised as it does: padded to 77."""

    def run() -> float:
        model, tokenizer = stock_model(folder, dtype), stock_tokenizer()
        for start in range(0, len(texts), STOCK_BATCH):
            with torch.inference_mode():
                model.encode_text(tokenizer(list(texts[start : start + STOCK_BATCH])), normalize=True)
        return len(texts)

    return run


def matmul(dtype: torch.dtype, seconds: float = 1.0) -> Side:
    """What the core reaches on the towers' own largest products: GFLOP. M = 32 images of 50 tokens."""
    rows, width = 32 * 50, 768
    random = torch.Generator().manual_seed(0)
    x_MK = torch.randn(rows, width, generator=random).to(dtype)
    up_NK = torch.randn(4 * width, width, generator=random).to(dtype)
    down_KN = torch.randn(width, 4 * width, generator=random).to(dtype)
    gflop = 2 * 2 * rows * width * 4 * width / 1e9
    num_products = max(1, round(seconds * 100 / gflop))

    def run() -> float:
        with torch.inference_mode():
            for _ in range(num_products):
                torch.nn.functional.linear(torch.nn.functional.linear(x_MK, up_NK), down_KN)
        return num_products * gflop

    return run


def image_gflop(name: str = MODEL) -> float:
    """GFLOP of one image through a ViT of open_clip's: two for each multiplication and addition; norms are left out."""
    config = open_clip.get_model_config(name)
    vision_cfg = config["vision_cfg"]
    width, patch = vision_cfg["width"], vision_cfg["patch_size"]
    num_patches = (vision_cfg["image_size"] // patch) ** 2
    patches = 2 * num_patches * 3 * patch**2 * width
    return (patches + _blocks(vision_cfg["layers"], width, num_patches + 1) + 2 * width * config["embed_dim"]) / 1e9


def text_gflop(num_tokens: float, name: str = MODEL) -> float:
    """GFLOP of one caption of so many tokens, start and end among them. What the mask hides is counted too."""
    config = open_clip.get_model_config(name)
    width = config["text_cfg"]["width"]
    return (_blocks(config["text_cfg"]["layers"], width, num_tokens) + 2 * width * config["embed_dim"]) / 1e9


def _blocks(num_layers: int, width: int, num_tokens: float) -> float:
    """Attention's four projections and the two of the MLP (12 width^2 weights), and two products of tokens."""
    return num_layers * (2 * 12 * width**2 * num_tokens + 2 * 2 * num_tokens**2 * width)


def token_counts(texts: Sequence[str]) -> np.ndarray:
    """Tokens of each caption as the model sees it, start and end among them, at most 77."""
    return (stock_tokenizer()(list(texts)) != 0).sum(dim=1).numpy()


class ClipRetrieval:
    """clip-retrieval's own reader and mapper, in a process of its own that works when it is told to."""

    def __init__(self, shards: Sequence[Path], folder: Path, num_pairs: int, batch_size: int = STOCK_BATCH) -> None:
        self._command = [sys.executable, "-m", "tests.bench.clip_retrieval_row", str(folder / WEIGHTS)]
        self._command += [str(num_pairs), str(batch_size)]
        self._command += [str(shard) for shard in shards]
        self._process: subprocess.Popen[str] | None = None

    def __call__(self) -> float:
        """Pairs that it encoded. Raises MissingError: it could not be installed or did not run, and why."""
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print("go", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline() or '{"error": "it ended without a word"}'
        if error := (answer := json.loads(line)).get("error"):
            raise MissingError(error)
        return float(answer["pairs"])

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
