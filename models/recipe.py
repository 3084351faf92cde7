"""What a training run is told beside its model and data: steps, rates, precision, order, crops. Imports no torch."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingError(Exception):
    """A run that cannot be used, and why."""


class Recipe(BaseModel):
    """What the loop needs to know. Two runs with equal recipes, data and first weights are one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    """Optimiser steps. Samples seen = steps x batch_size, whatever the size of the dataset."""
    batch_size: int = Field(ge=2)
    """Rows of a step, of all ranks together."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(ge=0)
    """With a rate that grows linearly; half a cosine to zero follows."""
    weight_decay: float = Field(ge=0)
    """AdamW's, on matrices; none on gains, biases and the temperature, as in open_clip."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    max_scale: float = Field(default=100.0, gt=1)
    """The inverse temperature never passes this, as in CLIP."""
    grad_clip_norm: float | None = Field(default=None, gt=0)
    """The gradient is scaled down to this norm where it is longer. None: never."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a batch goes through the model in, for the memory of a device. The loss is that of the whole batch."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the model multiplies in (autocast); weights, loss and sums stay float32."""
    with_replacement: bool = False
    """False: every sample once an epoch, in a fresh order each. True: each draw from all, as DataComp's runs do."""
    seed: int = Field(default=0, ge=0)
    """Of order, augmentation and dropout; and of first weights, where they are drawn."""


class Augmentation(BaseModel):
    """What may happen to a training image. The defaults are open_clip's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop_area: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the image's area that a crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Of a crop: its width over its height."""
    mirror_probability: float = Field(default=0.0, ge=0, le=1)
    """Left and right swapped. 0: a caption may speak of sides, and letters would be mirrored."""
    grey_probability: float = Field(default=0.0, ge=0, le=1)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warmup, then half a cosine to zero (open_clip's `cosine_lr`). `step` counts from 0."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    falling = max(1, recipe.steps - recipe.warmup_steps)
    return recipe.lr * (1 + math.cos(math.pi * (step - recipe.warmup_steps) / falling)) / 2
