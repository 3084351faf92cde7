"""The part of the configuration that the loop has: how filters and induced models are trained, search, arms, gate and
guard. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from etl.filters.guard import GuardConfig
from etl.layers import merge
from etl.loop.gate_config import GateConfig
from etl.loop.search_config import Candidate, SearchConfig
from etl.loop.training_config import FinetuneConfig as FinetuneConfig
from etl.loop.training_config import Fraction, Seeds
from etl.loop.training_config import TrainingConfig as TrainingConfig
from etl.stage import StageConfig
from etl.stages.selection import DFN


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

    seeds: Seeds = (0, 1, 2, 3, 4)
    """Of filter, selection and induced model alike; pairs the arms in the gate's test."""
    filter: TrainingConfig = TrainingConfig(steps=400, dropout=0.5)
    filter_dataset: str = ""
    """That filters are trained on; empty: the only one of kind filter that `finetune` does not name."""
    init: str = ""
    """Where filters begin: a filter's folder or models:/NAME/VERSION, of the same encoder; empty: random weights. By an
    alias a round that is run again after a promotion begins with another filter, and so trains another."""
    finetune: FinetuneConfig | None = None
    induced: TrainingConfig = TrainingConfig(steps=200, dropout=0.1)
    search: SearchConfig | None = None
    """Which filter recipe and fraction the round judges; without it, `filter` and the arms as they are."""
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

    @pydantic.model_validator(mode="after")
    def can_be_searched(self) -> LoopConfig:
        if self.search is None:
            return self
        if shared := sorted(set(self.seeds) & set(self.search.seeds)):
            raise ValueError(f"search.seeds: wanted others than loop.seeds, which judge the winner; found {shared}")
        if self.challenger is None:
            raise ValueError("search: wanted an arm that selects by dfn, the winner's; found none")
        try:
            self.search.rungs(self.candidates, self.of_seeds.samples)
        except ValueError as error:
            raise ValueError(f"search.{error}") from None
        return self

    @property
    def of_seeds(self) -> TrainingConfig:
        """How the models that every seed induces are trained: at the gate's proxy scale, where it has one."""
        return self.gate.proxy or self.induced

    @property
    def challenger(self) -> str | None:
        """The arm that selects by the filter that the round trains."""
        return next((name for name, arm in self.arms.items() if arm.keep == "filter" and arm.of == DFN), None)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Of the search, in the order of its grid; none without one."""
        if self.search is None:
            return ()
        own = {"filter_dataset": self.filter_dataset, "init": self.init, "finetune": self.finetune}
        return self.search.candidates(self.filter, self.arms[str(self.challenger)].fraction, own)

    def chosen(self, candidate: Candidate) -> LoopConfig:
        """The loop with a candidate's filter recipe and fraction. Arms of the challenger's fraction move with it, so
        that they keep as many pairs."""
        before = self.arms[str(self.challenger)].fraction
        moved = {name: arm.model_copy(update={"fraction": candidate.fraction}) for name, arm in self.arms.items()
                 if arm.fraction == before}  # fmt: skip
        return self.model_copy(update={**candidate.recipe, "arms": {**self.arms, **moved}, "search": None})
