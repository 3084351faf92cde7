"""Scores that a release published, by column of its metadata. Reads metadata files and pairs. Writes scores: one row
per pair. No pixels, no vectors.

Of two rows with one uid that of the smaller (file, place in it) counts. A file that does not parse is in the ledger of
ingest already; its pairs, and those of a file without the column, get `no_vectors`.
"""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Read, Stage
from etl.stages import columns
from etl.tables import PAIRS, SCORES


class Config(columns.Config):
    filter: str = ""
    """Known to a run only: the name in `scores`."""
    filter_version: str = ""
    """Known to a run only: names the column."""


def transform(files: DataFrame, pairs: DataFrame, *, config: Config) -> DataFrame:
    is_usable = F.abs("value") < float("inf")
    first = columns.first_values(files, config, "float", pa.float32())
    return (
        pairs.select("uid")
        .join(first, on="uid", how="left")
        .select(
            F.lit(config.filter).alias("filter"),
            F.lit(config.filter_version).alias("filter_version"),
            "uid",
            F.when(is_usable, F.col("value")).alias("score"),
            F.when(is_usable, "ok").otherwise("no_vectors").alias("status"),
        )
    )


STAGE = Stage(
    "published_scores", reads={"pairs": Read(PAIRS)}, writes=(SCORES,), config=Config, transform=transform,
    resume="table", version=1, listing=columns.listing,
)  # fmt: skip
