"""What a training run on pixels is told: data, scale, first weights, and what goes over the scale. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.recipe import Augmentation, Recipe, TrainingError
from models.scales import SCALES, Scale


class TrainJob(BaseModel):
    """What to train, on what, how long. Fields that are None are the scale's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    """A folder: exported shards with manifest.json, or pointers (`part-*.arrow`) to pairs in a pool's own shards."""
    out: Path
    scale: str = "laptop"
    """One of laptop, debug, small, medium, large, xlarge; see `models.scales`."""
    init: Path | None = None
    """An encoder folder whose weights are fine-tuned. None: random ones, of the scale's architecture."""
    name: str = "clip"
    """Of the model, in its record."""
    seed: int = Field(default=0, ge=0)
    samples_seen: int | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, gt=1)
    lr: float | None = Field(default=None, gt=0)
    warmup_steps: int | None = Field(default=None, ge=0)
    weight_decay: float | None = Field(default=None, ge=0)
    grad_clip_norm: float | None = Field(default=None, gt=0)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    with_replacement: bool = False
    augmentation: Augmentation | None = Augmentation()
    """None: pictures as the encoder sees them."""
    grad_checkpointing: bool = False
    """Activations are computed again in the backward pass: less memory, a third more work."""
    checkpoint_steps: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    device: Literal["auto", "cpu"] = "auto"
    """auto: a rank's GPU where there is one."""
    num_threads: int = Field(default=1, ge=1)
    """Of each rank, that torch computes with on a CPU."""
    decode_threads: int = Field(default=2, ge=1)
    """Of each rank, that read and decode ahead of the model."""

    @property
    def dial(self) -> Scale:
        """The scale with what the job says otherwise."""
        if self.scale not in SCALES:
            raise TrainingError(f"wanted a scale of {', '.join(SCALES)}; found {self.scale!r}")
        given = {name: value for name, value in self if name in Scale.model_fields and value is not None}
        return SCALES[self.scale].model_copy(update=given)

    @property
    def recipe(self) -> Recipe:
        """The loop's part of it."""
        dial = self.dial
        own = {name: value for name, value in self if name in Recipe.model_fields and value is not None}
        scales = {name: getattr(dial, name) for name in Recipe.model_fields if hasattr(dial, name)}
        return Recipe(**(own | scales))

    @classmethod
    def of(cls, fields: Any) -> TrainJob:
        """A job from plain values. Raises TrainingError for an unknown field, scale, or a value out of range."""
        try:
            job = cls.model_validate(fields)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or 'job'}: {e['msg']}" for e in error.errors()]
            raise TrainingError("; ".join(lines)) from None
        _ = job.recipe
        return job

    @classmethod
    def read(cls, path: Path) -> TrainJob:
        """From YAML or JSON. Raises TrainingError: no such file, or what `of` refuses."""
        try:
            return cls.of(yaml.safe_load(path.read_text()))
        except (OSError, yaml.YAMLError) as error:
            raise TrainingError(f"wanted a job in YAML or JSON; found {path}: {type(error).__name__}") from None
