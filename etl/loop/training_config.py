"""How one model is trained on stored vectors: a filter, its fine-tuning, an induced model. Touches nothing."""

from __future__ import annotations

from typing import Annotated

import pydantic

from etl.stage import StageConfig

Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("wanted each seed once")
    return seeds


Seeds = Annotated[tuple[int, ...], pydantic.Field(min_length=1), pydantic.AfterValidator(_distinct)]
"""Each once: one that came twice would count as two."""


class TrainingConfig(StageConfig):
    """One training run on stored vectors; see `models.train.TrainConfig` for what each field does."""

    steps: int = pydantic.Field(gt=0)
    batch_size: int = pydantic.Field(default=128, gt=1)
    lr: float = pydantic.Field(default=1e-3, gt=0)
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)

    @property
    def samples(self) -> int:
        """Seen by a run."""
        return self.steps * self.batch_size


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
