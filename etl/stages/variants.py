"""Evaluation pictures as they look once copied around: recompressed, mirrored, turned, cropped, with a border. Reads
pairs and their shards. Writes variants: a hash and a vector of each copy, for `decontaminate_semantic`.

A copy in the pool that was edited is far from the picture, and near to the same edit of it. It looks in the pass in
which `embed` decodes the pixels for its encoders, with the settings of that stage.
"""

from __future__ import annotations

from pathlib import Path

import pydantic
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.encode.lanes import TIMINGS
from etl.encode.readers import ReaderSpec
from etl.encode.variants import LOOKED, VariantsSpec
from etl.stage import Read, Shared, Stage
from etl.stages.embed import PassConfig, read_pixels, settings, taken
from etl.tables import PAIRS, VARIANTS
from models import edits


class Config(PassConfig):
    edits: tuple[str, ...] = tuple(edits.VARIANTS)
    """How evaluation pictures are edited, of these; []: not at all. Each takes a forward pass of each picture."""
    encoder: str = ""
    """Known to a run only."""
    encoder_version: str = ""
    """Known to a run only."""
    encoder_folder: Path = pydantic.Field(default=Path(), exclude=True)
    """Known to a run only: where executors find record and weights."""

    @pydantic.field_validator("edits")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(names) - edits.VARIANTS.keys()):
            raise ValueError(f"wanted some of {', '.join(edits.VARIANTS)}; found {', '.join(unknown)}")
        return tuple(dict.fromkeys(names))

    @property
    def reader(self) -> ReaderSpec:
        return VariantsSpec(str(self.encoder_folder), self.edits)


def finish(passed: DataFrame, number: int, *, config: Config) -> DataFrame:
    """The rows of one encoder from a pass in which it is reader `number`."""
    names = F.array(*[F.lit(name) for name in config.edits]).alias("edits")
    looks = F.arrays_zip(names, "phashes", "image_embeddings").cast(
        "array<struct<edit: string, phash: bigint, image_embedding: binary>>"
    )
    return taken(passed, number, *LOOKED).select(
        F.lit(config.encoder).alias("encoder"), F.lit(config.encoder_version).alias("encoder_version"), "uid",
        F.when(F.col("phashes").isNotNull(), looks).alias("looks"), "status", "status_reason",
    )  # fmt: skip


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    return finish(read_pixels(pairs, [config]), 0, config=config)


STAGE = Stage(
    "variants", reads={"pairs": Read(PAIRS)}, writes=(VARIANTS,), config=Config, transform=transform, resume="rows",
    version=1, kinds=("eval", "dev"), shared=Shared(read_pixels, finish, settings, TIMINGS),
)  # fmt: skip
