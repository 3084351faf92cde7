"""The part of the configuration that names an encoder: whose vectors are stored. Touches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from etl.stage import StageConfig


class EncoderConfig(StageConfig):
    """Whose vectors are stored. One of the five ways to name an encoder; the others go before `packages`."""

    packages: Literal["lite0_minilm"] | None = "lite0_minilm"
    """Frozen EfficientNet-lite0 and MiniLM towers, whose weights come from packages by name."""
    folder: Path | None = None
    """A folder with record.json and model.safetensors, as `models.clip` writes them."""
    open_clip: str | None = None
    """Name of an open_clip architecture, such as ViT-B-32; `checkpoint` or `pretrained` says whose weights."""
    checkpoint: Path | None = None
    """Of open_clip: a file, safetensors or torch's."""
    pretrained: str | None = None
    """Of open_clip: a tag of its table, such as dfn2b, which pins activation and preprocessing; the weights are
    `checkpoint`, else those in `cache`."""
    cache: Path | None = None
    """A local cache of the hub; none: the usual one. Nothing is downloaded."""
    hub_folder: Path | None = None
    """A local copy of a repository of open_clip's on the hub: open_clip_config.json beside the weights."""
    sha256: str | None = pydantic.Field(default=None, pattern="^[0-9a-f]{64}$")
    """Of the file of weights; another one is refused."""
    published: Literal["datacomp_b32", "datacomp_l14"] | None = None
    """Vectors that the release of a dataset came with, in HEX.npz beside each HEX.parquet of its metadata."""
    quick_gelu: bool | None = None
    """The activation that the weights want, where it is another than the name says. With `pretrained` or `hub_folder`,
    which know it, one that contradicts them is refused."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What towers compute in: part of the record. auto: bf16 where the machine that builds it multiplies that in
    hardware, else fp32; name it where executors differ from the driver."""
    batch_size: int = pydantic.Field(default=16, gt=0)
    """Images per forward pass: part of the record, so another value is another encoder version."""

    @pydantic.model_validator(mode="after")
    def has_weights(self) -> EncoderConfig:
        if self.open_clip and not (self.checkpoint or self.pretrained):
            raise ValueError("wanted a checkpoint file beside open_clip; found none; random weights score nothing")
        if self.pretrained and not self.open_clip:
            raise ValueError(f"wanted open_clip, the architecture, beside pretrained; found {self.pretrained} alone")
        if self.sha256 and not (self.pretrained or self.hub_folder):
            raise ValueError("wanted pretrained or hub_folder beside sha256; found neither")
        named = [key for key in ("folder", "open_clip", "hub_folder", "published") if getattr(self, key)]
        if len(named) > 1:
            raise ValueError(f"wanted one encoder; found {' and '.join(named)}")
        return self
