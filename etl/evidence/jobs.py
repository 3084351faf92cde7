"""What is trained, as data: filters, and models induced by what they select. Touches nothing.

A job is frozen and whole: its digest, with the base's, is its name on disk, so that what is done is not done again and
two experiments that want the same thing share it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from etl.stage import digest

VERSION = 1
"""Raise it when the same job would find something else."""


@dataclass(frozen=True)
class Recipe:
    steps: int
    dropout: float
    batch_size: int
    lr: float


@dataclass(frozen=True)
class Learned:
    """The pairs that a filter learns from."""

    sets: tuple[str, ...]
    limit: int = 0
    """Pairs, drawn by the seed; 0: all."""
    dirt: float = 0.0
    """Share of them that pairs of a pool replace."""
    dirt_pool: str = ""
    is_dirt_scored: bool = False
    """From the part of the pool that is scored, or from the reserve that is not."""
    top: Top | None = None
    """Pairs of a pool beside them."""


@dataclass(frozen=True)
class FilterJob:
    """Heads trained as a CLIP on clean pairs; `tuned` on further sets, the weights of before and after averaged."""

    learned: Learned
    recipe: Recipe
    seed: int
    tuned: tuple[str, ...] = ()
    tuned_steps: int = 100
    tuned_lr: float = 1e-4
    alpha: float = 0.5


@dataclass(frozen=True)
class Top:
    """The share of a pool under the filter's seed that it ranks first."""

    pool: str
    filter: FilterJob
    fraction: float


Kind = Literal[
    "dfn", "heuristics", "binary_image", "binary_image_text", "s_clip_loss", "norm_sim", "fused", "ensemble"
]  # fmt: skip


@dataclass(frozen=True)
class Scorer:
    """What ranks the pairs of a pool."""

    kind: Kind
    filters: tuple[FilterJob, ...] = ()
    """Whose heads it looks through; several for an ensemble."""
    good: tuple[str, ...] = ()
    """Filter datasets that a binary filter or a similarity takes for good."""


@dataclass(frozen=True)
class ArmJob:
    """A model induced by what is kept of a pool under a seed."""

    pool: str
    seed: int
    keep: Literal["all", "random", "true", "top"]
    fraction: float
    recipe: Recipe
    scorer: Scorer | None = None
    """Of keep: top."""
    leaves_reserve: bool = False
    """Nothing is kept of the reserve (figure 4)."""
    leaves_dirt: FilterJob | None = None
    """Nothing is kept of the pairs that are this filter's dirt (its control)."""
    on_dev: bool = False
    """Evaluated on the development set alone: a choice hangs on it."""


Job = FilterJob | ArmJob


def key_of(job: Job | Scorer, base_key: str, *more: Any) -> str:
    """The name of what a job leaves, 20 hex digits: by its kind, everything in it, and the base."""
    return digest(VERSION, base_key, type(job).__name__, asdict(job), *more)[:20]
