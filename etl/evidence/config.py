"""The part of the configuration that the evidence suite has, all of it fixed before the first run. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from etl.loop.training_config import Seeds
from etl.stage import StageConfig, UserError

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Fraction = Annotated[float, pydantic.Field(gt=0, le=1)]
Experiment = Literal["table1", "sweep", "scarce", "table1_4x", "table2", "figure4", "beyond", "figure3"]
EXPERIMENTS: tuple[Experiment, ...] = (
    "table1", "sweep", "scarce", "table1_4x", "table2", "figure4", "beyond", "figure3",
)  # fmt: skip
QUICK: tuple[Experiment, ...] = ("table1", "sweep", "scarce")
MIN_SEEDS, MIN_ITEMS = 8, 3000


class PoolConfig(StageConfig):
    """Shares of the base pool's pairs that get noise of one kind; no pair gets two. All 0: the noise that it has."""

    permuted: Share = 0.0
    """Captions that change places among themselves."""
    boilerplate: Share = 0.0
    """File names, dates and phrases as captions."""
    pictures: Share = 0.0
    """Blank, tiny, banner and screenshot pictures, in equal parts, in place of the pair's own."""
    foreign: Share = 0.0
    """Captions in other languages, of other pictures."""
    must_catch: bool = False
    """Void, unless a rival of the DFN is more precise than a random subset: rivals must have something to catch."""

    @property
    def shares(self) -> dict[str, float]:
        return {name: value for name, value in self.model_dump(exclude={"must_catch"}).items() if value}

    @pydantic.model_validator(mode="after")
    def leaves_some(self) -> PoolConfig:
        if sum(self.shares.values()) >= 1:
            raise ValueError(f"wanted shares that add up to less than 1; found {sum(self.shares.values()):g}")
        return self


class RecipeConfig(StageConfig):
    """Of heads on stored vectors; see `models.train.TrainConfig`."""

    steps: int = pydantic.Field(default=0, ge=0)
    """0: those in which it sees as many samples as the pool has, DataComp's rule."""
    dropout: float = pydantic.Field(ge=0, lt=1)
    batch_size: int = pydantic.Field(default=128, gt=1)
    lr: float = pydantic.Field(default=1e-3, gt=0)


class Figure3Config(StageConfig):
    """The filters of figure 3: every combination, listed before any is trained."""

    steps: tuple[int, ...] = (50, 150, 400)
    dropout: tuple[float, ...] = (0.0, 0.3, 0.6)
    limits: tuple[int, ...] = (200, 600, 1500, 3000, 0)
    """Pairs of the filter dataset, drawn by the seed; 0: all of them."""


class EvidenceConfig(StageConfig):
    """What is compared, on which pools, how often. Names are those of `datasets`."""

    base: str = "pool"
    """The dataset that every pool is made of."""
    noise: str = ""
    """Blank pictures and captions that say nothing: what is planted."""
    clean: tuple[str, ...] = ()
    """Filter datasets, together what a filter learns from; Table 2 goes from the first to the second."""
    dev: str = ""
    """DATASET.METRIC that all choices are made by."""
    parts: tuple[str, ...] = ()
    """DATASET.METRIC of evaluation sets (r5, mean_per_class); the headline `avg` is their mean."""
    pools: dict[str, PoolConfig] = pydantic.Field(default={})
    """In the order in which they are run."""
    experiments: tuple[Experiment, ...] = EXPERIMENTS
    seeds: Seeds = tuple(range(8))
    """Of noise, filter, selection and induced model alike: they pair the arms."""
    tuning_seeds: Seeds = (100, 101)
    """Of the runs by which fractions are chosen, evaluated on `dev` alone."""
    filter: RecipeConfig = RecipeConfig(steps=400, dropout=0.5)
    induced: RecipeConfig = RecipeConfig(dropout=0.1)
    fraction: Fraction = 0.15
    """Kept where nothing else is said."""
    choices: tuple[Fraction, ...] = (0.15, 0.3, 0.5)
    """Of Table 1: each filter's is chosen on `dev`, per pool."""
    sweep: tuple[Fraction, ...] = (0.01, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
    scarce: tuple[int, ...] = (600, 300)
    """Pairs of the filter dataset, drawn by the seed."""
    dirt: tuple[Share, ...] = (0.1, 0.25, 0.5, 0.75)
    """Of figure 4: shares of the filter dataset that are pairs of the raw pool."""
    reserve: Share = 0.2
    """Share of the pool that figure 4 does not select from: where its dirt comes from."""
    figure3: Figure3Config = Figure3Config()
    figure3_pools: tuple[str, ...] = ()
    """Pools of figure 3, whose filters cost most; none: all."""
    processes: int = pydantic.Field(default=2, gt=0)
    """Each trains by itself on one core; 1: within the command's own process."""
    min_seeds: int = MIN_SEEDS
    min_items: int = MIN_ITEMS

    @pydantic.model_validator(mode="after")
    def is_listed_beforehand(self) -> EvidenceConfig:
        if len(self.seeds) < self.min_seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"wanted at least {self.min_seeds} seeds, each once; found {list(self.seeds)}")
        if shared := set(self.seeds) & set(self.tuning_seeds):
            raise ValueError(f"wanted tuning seeds of their own; found {sorted(shared)} among seeds")
        if unknown := [name for name in self.figure3_pools if name not in self.pools]:
            raise ValueError(f"figure3_pools: wanted some of {', '.join(self.pools)}; found {unknown[0]}")
        return self


def check(config: EvidenceConfig, kinds: Mapping[str, Any]) -> None:
    """Before anything starts. `kinds`: dataset -> its kind.

    Raises:
        UserError: no pools, or a name of another kind of dataset than is wanted.
    """
    if not config.pools or not config.parts or not config.clean:
        raise UserError("evidence: wanted pools, parts and clean in the config; found none; fix: --conf evidence")
    wanted: list[tuple[str, str, str]] = [("base", config.base, "pool"), ("dev", config.dev.partition(".")[0], "dev")]
    wanted += [("clean", name, "filter") for name in config.clean]
    wanted += [("parts", part.partition(".")[0], "eval") for part in config.parts]
    wanted += [("noise", config.noise, "filter")] if any(pool.shares for pool in config.pools.values()) else []
    for key, name, kind in wanted:
        if kinds.get(name) != kind:
            there = ", ".join(n for n, k in kinds.items() if k == kind) or "none"
            raise UserError(f"evidence.{key}: wanted a dataset of kind {kind} ({there}); found {name or 'none'}")
    known = ("r5", "mean_per_class")
    for part in (config.dev, *config.parts):
        if part.partition(".")[2] not in known:
            raise UserError(f"evidence: wanted DATASET.METRIC, a metric of {', '.join(known)}; found {part}")
    if "table2" in config.experiments and len(config.clean) < 2:
        raise UserError("evidence.clean: wanted two filter datasets, for table2; found one; fix: leave table2 out")
