"""What `dfn plan` multiplies by: machines, prices, a stage's cost per row. Reads conf/plan.yaml; touches nothing.

Every number is an input. conf/plan.yaml says of each where it comes from; those of GPUs are assumptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic

from etl.layers import layered
from etl.stage import StageConfig, UserError

Positive = Annotated[float, pydantic.Field(gt=0)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(gt=0, le=1)]


class Machines(StageConfig):
    """A cluster of equal machines."""

    machines: Annotated[int, pydantic.Field(gt=0)]
    cores: Annotated[int, pydantic.Field(gt=0)]
    """Of a machine, as the cloud counts them: hardware threads."""
    gpus: Annotated[int, pydantic.Field(ge=0)] = 0
    """Of a machine."""
    read_gb_per_second: Positive
    """From the object store, of a machine."""
    dollars_per_hour: NotNegative
    """Of a machine."""


class Gpu(StageConfig):
    """One of the GPUs."""

    tflops: Positive
    """Peak of dense bf16, 10^12 floating-point operations a second."""
    encode_utilisation: Share
    """Share of the peak that a forward pass reaches."""
    train_utilisation: Share
    """Share of the peak that training reaches, input and communication with it."""


class Pool(StageConfig):
    bytes_per_pair: Positive
    """Of a shard, image and caption."""
    kept_fraction: Share
    """Of the pool, by the selection: what is exported."""


class Storage(StageConfig):
    dollars_per_tb_month: NotNegative
    months: NotNegative
    """How long tables and exports are kept."""


class StageRate(StageConfig):
    """What a stage takes: `fixed_seconds` once, the rest for every row."""

    cluster: Literal["cpu", "gpu"]
    """Which cluster runs it."""
    rows: Literal["pool", "kept", "samples"] = "pool"
    """What it has a row for: a pair of the pool, one that is kept, a sample that training sees."""
    fixed_seconds: NotNegative = 0.0
    """Of one core: planning, commits, imports, models loaded."""
    core_seconds: NotNegative = 0.0
    """Of a core, without what a GPU does."""
    reads_pixels: bool = False
    """Whether a row's image is read from its shard."""
    forward_passes: NotNegative = 0.0
    """Through the towers: 1 to encode, 3 to train (Kaplan et al. 2020, section 2.1: backward is twice forward)."""
    stored_bytes: NotNegative = 0.0
    """That its tables grow by."""
    stores_pixels: bool = False
    """Whether a row's image is written again."""


class Rates(StageConfig):
    cpu: Machines
    gpu_cluster: Machines
    gpu: Gpu
    efficiency: Share
    """Share of a cluster's cores that work on average: stragglers, shuffles, uneven chunks."""
    pool: Pool
    storage: Storage
    gflop_per_pair: dict[str, Positive]
    """Architecture -> a forward pass of image and text, 10^9 floating-point operations."""
    encoder: str
    """Architecture whose vectors are stored."""
    sample_cores: Annotated[int, pydantic.Field(gt=0)]
    """Of the machine that a sample was measured on: for runs that did not note their CPU seconds."""
    stages: dict[str, StageRate]

    @pydantic.model_validator(mode="after")
    def names_are_known(self) -> Rates:
        if self.encoder not in self.gflop_per_pair:
            known = ", ".join(self.gflop_per_pair)
            raise ValueError(f"encoder: wanted one of gflop_per_pair ({known}); found {self.encoder}")
        if not self.gpu_cluster.gpus and any(s.forward_passes for s in self.stages.values() if s.cluster == "gpu"):
            raise ValueError("gpu_cluster.gpus: wanted some; found 0")
        return self


def load_rates(files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Rates:
    """conf/plan.yaml, the files over it, and `a.b=value` over them. Raises UserError for what is not known or wrong."""
    try:
        return Rates.model_validate(layered(["plan", *files], overrides))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "rates"
        said = f"{first['msg'].removeprefix('Value error, ')}; found {str(first['input'])[:60]!r}"
        raise UserError(f"plan: {place}: {said}; fix: as in conf/plan.yaml") from None
