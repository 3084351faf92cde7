"""One loop for filters and induced models: a model, a source of batches, a recipe.

The model gives unit embeddings of images and texts and an inverse temperature: open_clip's CLIPs on pixels, or linear
heads on stored vectors. The loss is open_clip's `ClipLoss` (Radford et al. 2021, arXiv 2103.00020, figure 3) over the
whole batch, of all ranks and accumulated parts. What a run gives follows from (model, data, recipe) alone: the order
of samples has no state, and a run that was killed goes on from its last checkpoint to the same bits on a CPU.

`python -m models.train JOB.yaml`, alone or under torchrun, runs a `models.job.TrainJob`.

Dimensions: B rows of a batch (of one rank), E embedding.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.checkpoint import Checkpoints
from models.data import Vectors
from models.filters import Heads, save_filter
from models.heads import HeadsModule, ImageStats, VectorSource
from models.order import Draw, draws
from models.recipe import Recipe, TrainingError, learning_rate
from models.records import VectorsRecord
from models.step import Trainee

__all__ = ["FILTER", "INDUCED", "ImageStats", "Recipe", "TrainConfig", "TrainResult", "TrainingError", "fit", "train"]

OnStep = Callable[[int, float], None]
"""Called with (step, loss) after each step, on every rank; steps count from 0, the loss is of the whole batch."""


class Source(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Samples."""
        ...

    def batches(self, draws: Iterable[Draw], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, texts) on the device for each draw, B rows each. What a draw gives follows from the draw alone."""
        ...


def fit(
    model: nn.Module,
    source: Source,
    recipe: Recipe,
    *,
    checkpoints: Checkpoints | None = None,
    on_step: OnStep | None = None,
    device: str = "cpu",
) -> list[float]:
    """Trains `model` in place; returns the loss of every step. Within a process group, as one of its ranks.

    Dropout draws from torch's own generator, which the caller has seeded; its state is part of a checkpoint.

    Raises:
        TrainingError: the loss or a weight is not a number; the last checkpoint stays. Or a batch that ranks and parts
            cannot share equally.
        CheckpointError: the checkpoints are of another run.
    """
    trainee = Trainee(model, recipe, device)
    start = trainee.resume(checkpoints)
    rows = draws(len(source), recipe, start, rank=trainee.rank, num_ranks=trainee.num_ranks)
    for step, (images, texts) in enumerate(source.batches(rows, device), start):
        loss = trainee.step(images, texts, learning_rate(step, recipe))
        if on_step is not None:
            on_step(step, loss)
        if checkpoints is not None and (step + 1) % checkpoints.every_steps == 0:
            trainee.save(checkpoints)
    return trainee.losses


class TrainConfig(BaseModel):
    """The recipe of heads on stored vectors. The defaults are the trial's (EVIDENCE.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    """Optimiser steps. Samples seen = steps x batch_size, whatever the size of the dataset."""
    dropout: float = Field(ge=0, lt=1)
    """On both sides' vectors, before the heads. A fraction."""
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    """Of the steps."""
    embed_dim: int = Field(default=256, ge=1)
    init_log_scale: float = 2.66
    """Log of the inverse temperature at the start: 1 / 0.07, as CLIP's."""
    max_scale: float = Field(default=100.0, gt=1)
    standardise: bool = True
    """Image vectors to mean 0 and standard deviation 1 a dimension, while training."""
    seed: int = Field(default=0, ge=0)

    @property
    def recipe(self) -> Recipe:
        """The loop's part of it."""
        shared: dict[str, Any] = {
            name: getattr(self, name) for name in Recipe.model_fields.keys() & type(self).model_fields
        }
        return Recipe(warmup_steps=int(self.warmup_fraction * self.steps), **shared)


FILTER = TrainConfig(steps=400, dropout=0.5)
INDUCED = TrainConfig(steps=200, dropout=0.1)


@dataclass(frozen=True)
class TrainResult:
    folder: Path
    """`record.json` and `heads.safetensors`: what `Filter.load` and `clip.assemble` read."""
    losses: list[float]
    """One a step."""
    seconds: float
    samples_seen: int


def train(
    vectors: Vectors,
    config: TrainConfig,
    out: Path,
    *,
    encoder_record: VectorsRecord,
    stats: ImageStats | None = None,
    init: Heads | None = None,
    on_step: OnStep | None = None,
    name: str = "dfn",
    device: str = "cpu",
    num_threads: int = 1,
) -> TrainResult:
    """Trains heads on stored vectors and writes them to `out`. The same seed gives the same losses to the bit on a CPU.

    Args:
        stats: of the pool, so that every arm is standardised alike; None: of the given rows.
        init: trained heads of this encoder that go on, in place of random ones; their width and temperature are kept.

    Raises:
        TrainingError: the loss is not a number.
        ValueError: vectors, or first heads, of other dimensions than the encoder's.
    """
    started = time.monotonic()
    if (found := (vectors.image_dim, vectors.text_dim)) != (
        wanted := (encoder_record.image_dim, encoder_record.text_dim)
    ):
        raise ValueError(f"wanted vectors of {wanted} dimensions, of {encoder_record.name}; found {found}")
    if init and (found := (init.visual_weight.shape[1], init.text_weight.shape[1])) != wanted:
        raise ValueError(f"wanted first heads of {wanted} dimensions, of {encoder_record.name}; found {found}")
    if config.standardise and stats is None:
        stats = ImageStats.of(vectors)
    torch.set_num_threads(num_threads)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        heads = first_heads(wanted, config, stats if config.standardise else None, init)
        losses = fit(heads, VectorSource(vectors), config.recipe, on_step=on_step, device=device)
    save_filter(out, heads.folded(), encoder_record=encoder_record, name=name)
    return TrainResult(out, losses, time.monotonic() - started, config.steps * config.batch_size)


def first_heads(
    dims: tuple[int, int], config: TrainConfig, stats: ImageStats | None, init: Heads | None
) -> HeadsModule:
    """What a run begins with: heads for `dims` (image, text) drawn from torch's generator, or `init`."""
    if init is not None:
        return HeadsModule.going_on(init, dropout=config.dropout, stats=stats)
    return HeadsModule(*dims, embed_dim=config.embed_dim, init_log_scale=config.init_log_scale,
                       dropout=config.dropout, stats=stats)  # fmt: skip


if __name__ == "__main__":
    from models.pretrain import main

    main()
