"""One loop for filters and induced models: linear heads on the stored vectors of frozen towers, trained as a CLIP.

The loss is open_clip's `ClipLoss` (Radford et al. 2021, arXiv 2103.00020, figure 3) with a learned temperature; towers
are frozen as in LiT (arXiv 2111.07991), so that a run takes seconds on a core. Image vectors are standardised while
training, and the standardisation is folded into the head afterwards: what comes out is one linear map a side.

Dimensions: B rows of a batch, I image vector, T text vector, E embedding.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.loss import ClipLoss
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from models.data import Vectors, batches
from models.filters import Heads, save_filter
from models.records import VectorsRecord

MIN_STD = 1e-3
"""A dimension that is constant in the statistics must not blow up on other rows."""


class TrainingError(Exception):
    """A run that cannot be used, and why."""


class TrainConfig(BaseModel):
    """A run's recipe. The defaults are the trial's (EVIDENCE.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    """Optimiser steps. Samples seen = steps x batch_size, whatever the size of the dataset."""
    dropout: float = Field(ge=0, lt=1)
    """On both sides' vectors, before the heads. A fraction."""
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's, on the heads; none on the temperature."""
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    """Of the steps, with a rate that grows linearly; a cosine to zero follows."""
    embed_dim: int = Field(default=256, ge=1)
    init_log_scale: float = 2.66
    """Log of the inverse temperature at the start: 1 / 0.07, as CLIP's."""
    max_scale: float = Field(default=100.0, gt=1)
    """The inverse temperature never passes this, as in CLIP."""
    standardise: bool = True
    """Image vectors to mean 0 and standard deviation 1 a dimension, while training."""
    seed: int = Field(default=0, ge=0)


FILTER = TrainConfig(steps=400, dropout=0.5)
INDUCED = TrainConfig(steps=200, dropout=0.1)


@dataclass(frozen=True)
class ImageStats:
    """Mean and standard deviation of every image dimension. float64, shape I."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, vectors: Vectors, *, rows_at_once: int = 8192) -> Self:
        """Over all rows, in one pass."""
        total, squares = np.zeros(vectors.image_dim), np.zeros(vectors.image_dim)
        for start in range(0, len(vectors), rows_at_once):
            rows = np.arange(start, min(start + rows_at_once, len(vectors)))
            images_BI = vectors.images(rows).astype(np.float64)
            total += images_BI.sum(axis=0)
            squares += np.square(images_BI).sum(axis=0)
        mean = total / len(vectors)
        return cls(mean, np.sqrt(np.maximum(squares / len(vectors) - mean**2, 0)))


@dataclass(frozen=True)
class TrainResult:
    folder: Path
    """`record.json` and `heads.safetensors`: what `Filter.load` and `clip.assemble` read."""
    losses: list[float]
    """One a step."""
    seconds: float
    samples_seen: int


class _Heads(nn.Module):
    """Standardisation and a linear map for images, a linear map for texts, and the temperature."""

    def __init__(self, config: TrainConfig, image_dim: int, text_dim: int, stats: ImageStats | None) -> None:
        super().__init__()
        mean = np.zeros(image_dim) if stats is None else stats.mean
        std = np.ones(image_dim) if stats is None else np.maximum(stats.std, MIN_STD)
        self.dropout = config.dropout
        self.visual = nn.Linear(image_dim, config.embed_dim, bias=False)
        self.text = nn.Linear(text_dim, config.embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(config.init_log_scale))
        self.mean_I: Tensor
        self.std_I: Tensor
        self.register_buffer("mean_I", torch.from_numpy(mean))
        self.register_buffer("std_I", torch.from_numpy(std))

    def forward(self, images_BI: Tensor, texts_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings of shape BE for both sides, and the inverse temperature."""
        standard_BI = (images_BI - self.mean_I.float()) / self.std_I.float()
        image_BE = self.visual(functional.dropout(standard_BI, self.dropout))
        text_BE = self.text(functional.dropout(texts_BT, self.dropout))
        return functional.normalize(image_BE, dim=-1), functional.normalize(text_BE, dim=-1), self.log_scale.exp()

    def folded(self) -> Heads:
        """W (x - mean) / std as W' x + b: W' = W / std, b = -W' mean. In float64, then rounded once."""
        weight_EI = self.visual.weight.detach().double() / self.std_I
        return Heads(
            visual_weight=weight_EI.float().cpu().numpy(),
            visual_bias=(-weight_EI @ self.mean_I).float().cpu().numpy(),
            text_weight=self.text.weight.detach().cpu().numpy(),
            log_scale=self.log_scale.item(),
        )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warmup, then half a cosine to zero (open_clip's schedule). `step` counts from 0."""
    warmup = int(config.warmup_fraction * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup))) / 2


def train(
    vectors: Vectors,
    config: TrainConfig,
    out: Path,
    *,
    encoder_record: VectorsRecord,
    stats: ImageStats | None = None,
    on_step: Callable[[int, float], None] | None = None,
    name: str = "dfn",
    device: str = "cpu",
    num_threads: int = 1,
) -> TrainResult:
    """Trains heads on stored vectors and writes them to `out`. The same seed gives the same losses to the bit on a CPU.

    Args:
        stats: of the pool, so that every arm is standardised alike; None: of the given rows.
        on_step: called with (step, loss) after each step.

    Raises:
        TrainingError: the loss is not a number.
        ValueError: vectors of other dimensions than the encoder's.
    """
    started = time.monotonic()
    if (found := (vectors.image_dim, vectors.text_dim)) != (
        wanted := (encoder_record.image_dim, encoder_record.text_dim)
    ):
        raise ValueError(f"wanted vectors of {wanted} dimensions, of {encoder_record.name}; found {found}")
    if config.standardise and stats is None:
        stats = ImageStats.of(vectors)
    torch.set_num_threads(num_threads)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        heads = _Heads(config, *wanted, stats if config.standardise else None).to(device)
        losses = _run(heads, vectors, config, device, on_step)
    save_filter(out, heads.folded(), encoder_record=encoder_record, name=name)
    return TrainResult(out, losses, time.monotonic() - started, config.steps * config.batch_size)


def _run(
    heads: _Heads, vectors: Vectors, config: TrainConfig, device: str, on_step: Callable[[int, float], None] | None
) -> list[float]:
    weights = [{"params": [heads.visual.weight, heads.text.weight], "weight_decay": config.weight_decay}]
    scale = [{"params": [heads.log_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(weights + scale, lr=config.lr, betas=config.betas)
    clip_loss = ClipLoss()
    losses = []
    for step, rows_B in enumerate(batches(len(vectors), config.batch_size, config.steps, config.seed)):
        images_BI = torch.from_numpy(vectors.images(rows_B)).to(device).float()
        texts_BT = torch.from_numpy(vectors.texts(rows_B)).to(device).float()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss = clip_loss(*heads(images_BI, texts_BT))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"wanted a finite loss; found {losses[-1]} at step {step} with lr {config.lr:g}; "
                "fix: train on embeddings with status ok only, or lower the learning rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            heads.log_scale.clamp_(0, math.log(config.max_scale))
        if on_step is not None:
            on_step(step, losses[-1])
    return losses
