"""How a challenger becomes champion, and what a backfill may cost. Touches nothing."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from etl.loop.training_config import TrainingConfig
from etl.stage import StageConfig


class GateConfig(StageConfig):
    """The gate looks at induced models only; see `models.gate`."""

    mode: Literal["dry_run", "needs_approval", "enforced"] = "enforced"
    """Of a challenger that passes. dry_run: that is said, nothing moves. needs_approval: it waits for `dfn promote`."""
    level: float = pydantic.Field(default=0.05, gt=0, le=1)
    """Of the one-sided test, paired by seed, all looks together."""
    looks: tuple[Annotated[int, pydantic.Field(gt=0)], ...] = ()
    """Numbers of seeds after which it looks before the last one, such as [3]: on a clear win or loss the other seeds
    are not trained. Each look has its part of the level."""
    proxy: TrainingConfig | None = None
    """Induced models of a smaller scale than `loop.induced`, at which all seeds (and a search) are run; what wins there
    is confirmed by one run of each side at `loop.induced`. None: all seeds at `loop.induced`."""
    guards: dict[str, Annotated[float, pydantic.Field(ge=0)]] = pydantic.Field(default={})
    """DATASET.METRIC -> the most that its mean may fall by."""

    @pydantic.field_validator("looks")
    @classmethod
    def rise(cls, looks: tuple[int, ...]) -> tuple[int, ...]:
        if sorted(set(looks)) != list(looks):
            raise ValueError("wanted rising numbers of seeds")
        return looks

    def looks_of(self, num_seeds: int) -> tuple[int, ...]:
        """All looks of a round: the last one is after its last seed."""
        return (*(look for look in self.looks if look < num_seeds), num_seeds)


class BackfillConfig(StageConfig):
    """What `dfn backfill` does without asking."""

    max_gpu_hours: float | None = pydantic.Field(default=None, ge=0)
    """Hours of encoding and scoring; None: twice what the last runs of both took."""
