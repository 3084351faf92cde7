"""The part of the configuration that the loop has: how filters and induced models are trained, arms, gate and guard.
Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from etl.gate_config import GateConfig
from etl.guard import GuardConfig
from etl.layers import merge
from etl.stage import StageConfig
from etl.stages.selection import DFN

Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]


class TrainingConfig(StageConfig):
    """One training run on stored vectors; see `models.train.TrainConfig` for what each field does."""

    steps: int = pydantic.Field(gt=0)
    batch_size: int = pydantic.Field(default=128, gt=1)
    lr: float = pydantic.Field(default=1e-3, gt=0)
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)


class FinetuneConfig(TrainingConfig):
    """The DFN recipe's second step: the filter goes on, on cleaner pairs, and the weights before and after are averaged
    (arXiv 2309.17425 does so on MS COCO, Flickr30k and ImageNet with class names in templates)."""

    dataset: str
    """Of kind filter; `loop.filter_dataset` is what the filter was trained on before."""
    steps: int = pydantic.Field(default=100, gt=0)
    lr: float = pydantic.Field(default=1e-4, gt=0)
    dropout: float = pydantic.Field(default=0.5, ge=0, lt=1)
    alpha: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Of the average: 0 is the filter before, 1 the fine-tuned one."""
    templates: tuple[str, ...] = ()
    """With a `{}` for the class: captions of a dataset with labels, a template a pair, in place of its own."""

    @property
    def training(self) -> TrainingConfig:
        return TrainingConfig(**{name: getattr(self, name) for name in TrainingConfig.model_fields})


class ArmConfig(StageConfig):
    """A way to choose from the pool; each arm's induced models see the same number of samples."""

    keep: Literal["whole_pool", "random", "filter"]
    of: str = DFN
    """Of keep: filter. dfn: the one that each seed of the round trains; dfn_before: the same before it was fine-tuned;
    or a name in `filters`."""
    fraction: Fraction = 0.15


ARMS: dict[str, Any] = {
    "whole_pool": {"keep": "whole_pool", "fraction": 1.0},
    "random": {"keep": "random"},
    "dfn": {"keep": "filter"},
}
"""Under every configured one, so that a layer can change a field of an arm, or leave an arm out by `null`."""


class LoopConfig(StageConfig):
    """One round: train filters, score, select, train induced models, evaluate, gate, promote."""

    seeds: Annotated[tuple[int, ...], pydantic.Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Of filter, selection and induced model alike; pairs the arms in the gate's test."""
    filter: TrainingConfig = TrainingConfig(steps=400, dropout=0.5)
    filter_dataset: str = ""
    """That filters are trained on; empty: the only one of kind filter that `finetune` does not name."""
    init: str = ""
    """Where filters begin: a filter's folder or models:/NAME/VERSION, of the same encoder; empty: random weights. By an
    alias a round that is run again after a promotion begins with another filter, and so trains another."""
    finetune: FinetuneConfig | None = None
    induced: TrainingConfig = TrainingConfig(steps=200, dropout=0.1)
    arms: dict[str, ArmConfig] = pydantic.Field(default={}, validate_default=True)
    """Name -> arm; see ARMS for those that are always there."""
    headline: str = "avg"
    """The metric that the gate looks at: the mean of `headline_parts`."""
    headline_parts: tuple[str, ...] = ()
    """DATASET.METRIC of evaluation sets."""
    gate: GateConfig = GateConfig()
    guard: GuardConfig = GuardConfig()
    """How much noise the filter dataset may hold."""

    @pydantic.field_validator("arms", mode="before")
    @classmethod
    def over_the_usual_ones(cls, arms: Any) -> Any:
        if not isinstance(arms, Mapping):
            return arms
        return {name: arm for name, arm in merge(ARMS, arms).items() if arm is not None}

    @pydantic.field_validator("seeds")
    @classmethod
    def are_distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("wanted each seed once")
        return seeds
