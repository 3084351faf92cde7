"""How a configured filter is made: one of the fields of `FilterSpec`. Touches nothing; `filters.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic

from etl.stage import StageConfig


class Target(StageConfig):
    """Whose images a pair's is compared with: one of the two."""

    dataset: str | None = None
    """The usable images of a dataset, such as one of kind filter."""
    npy: Path | None = None
    """Image vectors of the encoder: float, shape (targets, image_dim)."""

    @pydantic.model_validator(mode="after")
    def one_of(self) -> Target:
        if bool(self.dataset) == bool(self.npy):
            raise ValueError("wanted dataset or npy")
        return self


class SClipLossSpec(StageConfig):
    """`models.formulas.SClipLoss`."""

    base: str = ""
    """The filter in whose space cosines are taken; empty: the encoder's own."""
    dataset: str = ""
    """Where the reference pairs are drawn from, by a hash of seed and uid; empty: the pool that is scored first."""
    num_batches: int = pydantic.Field(default=5, gt=0)
    batch_size: int = pydantic.Field(default=4096, gt=0)
    temperature: float = pydantic.Field(default=0.01, gt=0)
    """0.01 is that of OpenAI's CLIPs."""
    seed: int = 0


class NormSimSpec(StageConfig):
    """`models.formulas.NormSim2` or, with p: inf, `NormSimInf`."""

    target: Target
    p: Literal[2, "inf"] = 2
    base: str = ""


class BinarySpec(StageConfig):
    """`models.formulas.Binary`: a linear probe of a good dataset against as many pairs of the pool."""

    good: str
    """The dataset of good pairs."""
    reads: Literal["image", "image_text"] = "image"
    seed: int = 0
    """Which pairs of the pool it is trained against."""


class ClustersSpec(StageConfig):
    """`models.formulas.Clusters`."""

    target: Target
    num_clusters: int = pydantic.Field(default=100, gt=1)
    """k-means on the pool; DataComp's have 100,000."""
    num_images: int = pydantic.Field(default=50_000, gt=0)
    """Of the pool, drawn by a hash of seed and uid."""
    centres: Path | None = None
    """`.npy` of centres that were made elsewhere: float, shape (clusters, image_dim)."""
    seed: int = 0


class FusionSpec(StageConfig):
    """A weighted mean of other filters' scores, made comparable by rank or by range."""

    of: dict[str, float] = pydantic.Field(min_length=2)
    """Filter -> weight."""
    by: Literal["rank", "min_max"] = "rank"

    @pydantic.field_validator("of")
    @classmethod
    def are_positive(cls, of: Mapping[str, float]) -> Mapping[str, float]:
        if bad := [name for name, weight in of.items() if not 0 < weight < float("inf")]:
            raise ValueError(f"wanted weights above 0; found {bad[0]}: {of[bad[0]]:g}")
        return of


class FilterSpec(StageConfig):
    """One of these."""

    folder: str | None = pydantic.Field(default=None, min_length=1)
    """A folder that training or `dfn` wrote, or models:/NAME@ALIAS."""
    cosine: Literal[True] | None = None
    """The cosine of the encoder's own vectors, known as the CLIP score."""
    column: str | None = pydantic.Field(default=None, min_length=1)
    """Scores that a release published, by their column in its metadata, such as clip_l14_similarity_score."""
    s_clip_loss: SClipLossSpec | None = None
    norm_sim: NormSimSpec | None = None
    binary: BinarySpec | None = None
    clusters: ClustersSpec | None = None
    fusion: FusionSpec | None = None

    @pydantic.model_validator(mode="after")
    def one_of(self) -> FilterSpec:
        found = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(found) != 1:
            wanted = ", ".join(type(self).model_fields)
            raise ValueError(f"wanted one of {wanted}; found {' and '.join(found) or 'none'}")
        return self

    def needs(self) -> list[str]:
        """Filters that must be there before."""
        if self.fusion:
            return list(self.fusion.of)
        base = next((s.base for s in (self.s_clip_loss, self.norm_sim) if s), "")
        return [base] if base else []

    def datasets(self) -> list[str]:
        """Datasets that it reads beside the pool."""
        targets = [s.target.dataset for s in (self.norm_sim, self.clusters) if s]
        named = [self.binary.good if self.binary else None, self.s_clip_loss.dataset if self.s_clip_loss else None]
        return [name for name in (*targets, *named) if name]


def problem(filters: Mapping[str, FilterSpec], datasets: Mapping[str, object]) -> str | None:
    """What is wrong with the filters as a whole: an unknown name, or a circle."""
    for name, spec in filters.items():
        for needed in spec.needs():
            if needed not in filters:
                return f"filters.{name}: wanted one of {', '.join(filters)}; found {needed}"
            if not spec.fusion and (filters[needed].fusion or filters[needed].column):
                return f"filters.{name}.base: wanted a filter that reads vectors; found {needed}"
        for dataset in spec.datasets():
            if dataset not in datasets:
                return f"filters.{name}: wanted one of the datasets {', '.join(datasets)}; found {dataset}"
    settled: set[str] = set()
    while ready := {name for name in filters.keys() - settled if set(filters[name].needs()) <= settled}:
        settled |= ready
    circle = sorted(filters.keys() - settled)
    return f"filters: wanted no circle; found one among {', '.join(circle)}" if circle else None
