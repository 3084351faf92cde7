"""How large a training run is, as one dial: architecture, samples seen, batch, learning rate. Imports no torch.

debug to xlarge are DataComp's (`scale_configs.py` of mlfoundations/datacomp; Gadre et al. 2023, arXiv 2304.14108, table
1 and appendix M): a fixed number of samples seen whatever the size of the dataset, which is what makes datasets
comparable. What DataComp leaves to open_clip is open_clip's (`open_clip_train/params.py`): betas and epsilon of the
CLIP paper for ViTs, weight decay 0.2. `laptop` is ours.
"""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

LAPTOP = "ViT-laptop-64"
"""An architecture of ours, which open_clip builds like its own."""
LAPTOP_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
"""64 patches of 8 x 8 pixels. A core trains on about a hundred pairs a second."""


class Scale(BaseModel):
    """What the dial sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    """A name that open_clip knows, or LAPTOP."""
    samples_seen: int = Field(gt=0)
    batch_size: int = Field(gt=1)
    """Of all ranks and accumulated parts together: what the contrastive loss looks at."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.2

    @property
    def steps(self) -> int:
        """Optimiser steps: at least `samples_seen` samples, in whole batches."""
        return math.ceil(self.samples_seen / self.batch_size)


SCALES = {
    # Minutes on two cores. The batch is small, so the rate is that of a small batch and the warmup a tenth.
    "laptop": Scale(architecture=LAPTOP, samples_seen=51_200, batch_size=256, lr=1e-3, warmup_steps=20),
    # Ends (125 steps) before its warmup does: DataComp runs it to see that all works.
    "debug": Scale(architecture="ViT-B-32", samples_seen=128_000, batch_size=1024, lr=1e-4, warmup_steps=500),
    "small": Scale(architecture="ViT-B-32", samples_seen=12_800_000, batch_size=4096, lr=5e-4, warmup_steps=500),
    "medium": Scale(architecture="ViT-B-32", samples_seen=128_000_000, batch_size=4096, lr=5e-4, warmup_steps=500),
    "large": Scale(architecture="ViT-B-16", samples_seen=1_280_000_000, batch_size=8192, lr=5e-4, warmup_steps=500),
    "xlarge": Scale(architecture="ViT-L-14", samples_seen=12_800_000_000, batch_size=90_112, lr=1e-3,
                    warmup_steps=10_000, betas=(0.9, 0.95)),
}  # fmt: skip


def register_laptop() -> None:
    """Tells open_clip of LAPTOP, so that it is a name like any other. It takes architectures as files only."""
    import open_clip

    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{LAPTOP}.json"
        path.write_text(json.dumps(LAPTOP_CONFIG))
        open_clip.add_model_config(path)
