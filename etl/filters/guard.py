"""Before a filter is trained: how much of its dataset is noise. A small dirty share ruins what a filter selects long
before it ruins the filter's own accuracy (Fang et al. 2023, arXiv 2309.17425, figure 4).

Counted are pairs that repeat another, captions of other languages or odd lengths, and, among the rest, captions that do
not fit their image under the current champion. Reads `pairs` and stored vectors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.shard_writer import publish_json
from etl.stage import StageConfig, UserError, digest
from etl.stages import signals
from etl.tables import PAIRS
from models.records import RECORD

if TYPE_CHECKING:
    from etl.project import Project

SAMPLED_ROWS = 20_000
"""Pairs whose fit is looked at: the share is then known to half a percent."""
LAMBDA = 0.5
"""Storey's: p values above it are taken for those of mismatched pairs alone."""


class GuardConfig(StageConfig):
    """What a filter dataset may hold before training warns or stops."""

    action: Literal["warn", "refuse", "off"] = "warn"
    max_noisy_fraction: float = pydantic.Field(default=0.1, ge=0, le=1)
    """Of its pairs. The paper's filters suffer from a tenth on."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes of captions that are wanted, by lid.176; none: any. It errs on captions of one or two words."""
    min_words: int = pydantic.Field(default=1, ge=0)
    max_words: int = pydantic.Field(default=128, ge=1)


@dataclass(frozen=True)
class Noise:
    """What was found of N pairs. A pair counts under the first of the reasons that it has."""

    num_pairs: int
    num_repeated: int
    """Beyond the first pair of the same image bytes and the same caption."""
    num_odd_length: int
    num_other_language: int
    mismatched_fraction: float | None
    """Of the other pairs, estimated; None where there is no champion to ask."""

    @property
    def fraction(self) -> float:
        """Of all pairs, 0 to 1."""
        flagged = (self.num_repeated + self.num_odd_length + self.num_other_language) / max(self.num_pairs, 1)
        return flagged + (1 - flagged) * (self.mismatched_fraction or 0.0)

    def __str__(self) -> str:
        fit = "no champion to ask for fit"
        if self.mismatched_fraction is not None:
            fit = f"{self.mismatched_fraction:.1%} of the rest do not fit under the champion"
        return (
            f"{self.fraction:.1%} of {self.num_pairs:,} pairs are noise ({self.num_repeated:,} repeated, "
            f"{self.num_odd_length:,} of odd length, {self.num_other_language:,} of other languages; {fit})"
        )


def count(pairs: DataFrame, config: GuardConfig, mismatched_fraction: float | None = None) -> Noise:
    """One pass over the pairs of a filter dataset with status ok."""
    usable = pairs.where("status = 'ok'")
    told = signals.transform(usable, config=signals.Config()).select("uid", "language", "num_words")
    groups = usable.groupBy("sha256", "text").agg(F.min("uid").alias("first"))
    repeated = usable.join(groups, on=["sha256", "text"], how="inner").where("uid != first").select("uid")
    is_repeated = F.col("is_repeated").isNotNull()
    is_odd = ~is_repeated & ~F.coalesce(F.col("num_words").between(config.min_words, config.max_words), F.lit(False))
    is_other = F.lit(False)
    if config.languages:
        is_other = ~is_repeated & ~is_odd & ~F.coalesce(F.col("language").isin(*config.languages), F.lit(False))
    flags = told.join(repeated.withColumn("is_repeated", F.lit(True)), on="uid", how="left")
    row = flags.select(F.count("*"), F.count_if(is_repeated), F.count_if(is_odd), F.count_if(is_other)).collect()[0]
    num_pairs, num_repeated, num_odd, num_other = (int(value) for value in row)
    return Noise(num_pairs, num_repeated, num_odd, num_other, mismatched_fraction)


def mismatched_fraction(scores_N: NDArray[np.float32], null_M: NDArray[np.float32]) -> float:
    """The share of pairs that score like pairs whose captions were exchanged.

    Storey's estimate of the share of true nulls (2002, JRSS B 64, equation 6): with p the share of exchanged pairs that
    score as high as a pair, #(p > lambda) / (N (1 - lambda)). A pair that does fit and scores low makes it too high.

    Args:
        scores_N: of the pairs. null_M: of images with captions of other pairs. NaN is left out.
    """
    null_M = np.sort(null_M[np.isfinite(null_M)])
    scores_N = scores_N[np.isfinite(scores_N)]
    if not len(null_M) or not len(scores_N):
        return 0.0
    p_N = 1 - np.searchsorted(null_M, scores_N, side="left") / len(null_M)
    return min(1.0, float((p_N > LAMBDA).mean()) / (1 - LAMBDA))


def fit_of(vectors_folder: Path, champion: Path, seed: int = 0) -> float:
    """`mismatched_fraction` of stored vectors under a filter's folder, over at most SAMPLED_ROWS of them."""
    from models.data import Vectors
    from models.filters import Filter

    vectors, filter = Vectors.open(vectors_folder), Filter.load(champion)
    rows = np.random.default_rng(seed).permutation(len(vectors))[:SAMPLED_ROWS]
    images, texts = vectors.images(rows), vectors.texts(rows)
    return mismatched_fraction(filter.score(images, texts), filter.score(images, np.roll(texts, 1, axis=0)))


def verdict(dataset: str, noise: Noise, config: GuardConfig) -> str:
    """A line for the loop's output.

    Raises:
        UserError: more noise than the config allows, and its action is refuse.
    """
    if noise.fraction <= config.max_noisy_fraction:
        return f"guard: {dataset}: {noise}"
    if config.action == "refuse":
        raise UserError(f"loop.guard: wanted at most {config.max_noisy_fraction:.1%} noise in {dataset}; "
                        f"found that {noise}; fix: clean it, or raise max_noisy_fraction")  # fmt: skip
    return f"warning: guard: {dataset}: {noise}; at most {config.max_noisy_fraction:.1%} is wanted"


def check(project: Project, dataset: str, vectors: Path, model: str) -> None:
    """Says how much of a filter dataset is noise, once for its content, as filters are trained on it once; see
    `verdict`. What does not fit is told by the champion of `model`.

    Touches OUTPUT/guard-*.json and, where there is a champion, OUTPUT/filters.
    """
    config, output = project.config.loop.guard, project.config.output_folder
    found = output / f"guard-{digest(vectors.name, config.model_dump())[:12]}.json"
    if config.action != "off" and not found.exists():
        champion = _champion(project, model)
        fit = fit_of(vectors, champion) if champion else None
        noise = count(project.store.read(dataset, PAIRS), config, fit)
        project.say(verdict(dataset, noise, config))
        publish_json(found, {**asdict(noise), "fraction": noise.fraction})


def _champion(project: Project, model: str) -> Path | None:
    """The champion's heads; None where there is none, it is of other towers, or MLflow does not answer."""
    from models import registry
    from models.tracking import TrackingDownError, answering

    try:
        with answering(project.tracking_uri):
            if (tags := registry.champion_tags(model)) is None or tags["encoder_version"] != project.encoder[0].version:
                return None
            folder = project.config.output_folder / "filters" / f"champion-{tags['filter_version']}"
            return folder if (folder / RECORD).exists() else registry.resolve(f"models:/{model}@champion", folder)
    except TrackingDownError as error:
        project.say(f"guard: no champion to ask: {error}")
        return None
