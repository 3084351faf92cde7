"""The grid that a round searches: filter recipes x fractions, and what that may cost. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import pydantic

from etl.loop.training_config import FinetuneConfig, Fraction, Seeds, TrainingConfig
from etl.stage import StageConfig
from models.halving import Rung, least_runs, plan

OF_FILTER = tuple(TrainingConfig.model_fields)


@dataclass(frozen=True)
class Candidate:
    """One way to make the filter, and the share that it keeps."""

    name: str
    """What the grid varies, such as `steps=400 fraction=0.15`."""
    recipe: Mapping[str, Any]
    """Fields of the loop: filter, filter_dataset, init, finetune."""
    fraction: float


class SearchConfig(StageConfig):
    """Successive halving over the product of the lists, by induced models on development sets; see `search.py`. An
    empty list stands for the loop's own value."""

    steps: tuple[Annotated[int, pydantic.Field(gt=0)], ...] = ()
    """Of `loop.filter`, as the next three."""
    batch_size: tuple[Annotated[int, pydantic.Field(gt=1)], ...] = ()
    lr: tuple[Annotated[float, pydantic.Field(gt=0)], ...] = ()
    dropout: tuple[Annotated[float, pydantic.Field(ge=0, lt=1)], ...] = ()
    filter_dataset: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    finetune: tuple[FinetuneConfig | None, ...] = ()
    """null: no second step."""
    fractions: tuple[Fraction, ...] = ()
    """Of the pool, that the filter keeps."""
    budget: int = pydantic.Field(gt=0)
    """Samples seen by induced models, of all rungs together. Filters are told beside it: each serves all fractions."""
    eta: int = pydantic.Field(default=2, ge=2)
    """Of each rung's candidates one in eta goes on, with more seeds."""
    seeds: Seeds = tuple(range(1000, 1008))
    """Of filter, selection and induced model alike; none of `loop.seeds`: those judge the winner."""
    headline_parts: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """DATASET.METRIC of development sets: candidates are judged by their mean."""

    def candidates(self, filter: TrainingConfig, fraction: float, own: Mapping[str, Any]) -> tuple[Candidate, ...]:
        """In the grid's order. `own`: the loop's filter_dataset, init and finetune."""
        axes = {name: getattr(self, name) for name in (*OF_FILTER, *own)} | {"fraction": self.fractions}
        axes = {name: values for name, values in axes.items() if values}
        varied = [name for name, values in axes.items() if len(values) > 1]
        found = list[Candidate]()
        for values in product(*axes.values()):
            given = dict(zip(axes, values, strict=True))
            changes = {name: given[name] for name in OF_FILTER if name in given}
            recipe = {"filter": filter.model_copy(update=changes)} | {n: given.get(n, own[n]) for n in own}
            name = " ".join(f"{name}={_told(given[name])}" for name in varied)
            found.append(Candidate(name, recipe, given.get("fraction", fraction)))
        return tuple(found)

    def rungs(self, candidates: Sequence[Candidate], samples: int) -> tuple[Rung, ...]:
        """`samples`: seen by one induced run. Raises ValueError where the grid, the budget or the seeds do not do."""
        num = len(candidates)
        if num < 2 or len({c.name for c in candidates}) < num:
            raise ValueError("fractions, steps, ...: wanted two candidates or more, each once; found "
                             f"{', '.join(c.name for c in candidates if c.name) or 'one'}")  # fmt: skip
        if (least := least_runs(num, self.eta) * samples) > self.budget:
            raise ValueError(f"budget: wanted at least {least:,} samples seen, for {num} candidates that induce models "
                             f"of {samples:,} each; found {self.budget:,}")  # fmt: skip
        try:
            return plan(num, self.budget // samples, len(self.seeds), self.eta)
        except ValueError as error:
            raise ValueError(f"seeds: {error}") from None


def _told(value: Any) -> str:
    """Short, and another for another value."""
    if isinstance(value, FinetuneConfig):
        default = FinetuneConfig(dataset=value.dataset).model_dump()
        changed = {name: v for name, v in value.model_dump().items() if v != default[name]}
        return ",".join([value.dataset, *(f"{name}:{v}" for name, v in changed.items())])
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
