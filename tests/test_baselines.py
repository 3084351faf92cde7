"""DataComp's baselines: the verdicts of conf/baselines on edge cases, against a reading of its code in numpy.

That code is `baselines/apply_filter.py` of mlfoundations/datacomp; where it would fail (no caption), a row is out.
"""

import itertools

import numpy as np
import pytest
from helpers import frame, rows_of, uid
from pyspark.sql import functions as F

from etl.config import load
from etl.stages import selection, signals
from etl.tables import PAIRS, SCORES

CAPTIONS = [
    "a red fox",
    "two words",
    "a b c",
    "a\u00a0b\u2003cd",
    "ab\x1fcd\x1eef",
    "",
    None,
    "one\ntwo",
    "ein roter Fuchs",
    "x" * 6,
    "a\nb\x00c de",
    "abcdef\n",  # a word, and the end of line that fastText counts
]
SIZES = [(200, 600), (199, 400), (600, 200), (200, 601), (1000, 999)]
# 60 rows: of the 18 that are 30 % the last is a 0.7, and the threshold is the value after it.
L14 = [0.9, 0.3, 0.7, 0.2, 0.8, 0.3, 0.2, float("nan"), -0.5, 0.1]
B32 = [0.28, 0.27999, 0.28001, 0.5]


@pytest.fixture(scope="module")
def table():
    """Every caption with every size, and scores that go round at other lengths: each edge meets each other one."""
    rows = []
    ends = [np.float32(values) for values in (L14, B32)]
    for n, (text, (width, height)) in enumerate(itertools.product(CAPTIONS, SIZES)):
        language = "de" if text and text.startswith("ein") else "en"
        known = {"text": text, "width": width, "height": height, "language": language}
        scores = {"l14": ends[0][n % len(L14)], "b32": ends[1][n % len(B32)], "image_based": float(n % 3 > 0)}
        rows.append({**known, **scores})
    return rows


def tokenize(text):
    """`fasttext.tokenize`, by its C++ loop: words end at ASCII blanks and NUL, and each end of line is a token too."""
    tokens, word = [], ""
    for character in [*text, " "]:
        if character in " \n\r\t\x0b\f\0":
            tokens += [word] if word else []
            tokens += ["</s>"] if character == "\n" else []
            word = ""
        else:
            word += character
    return tokens


def caption_filter(row):
    text = row["text"]
    return text is not None and row["language"] == "en" and len(tokenize(text)) > 1 and len(text) > 5


def by_datacomp(name, rows):
    l14 = np.array([row["l14"] for row in rows], np.float32)
    threshold = -np.sort(-l14)[int(len(rows) * 0.3)]

    def basic(row):
        text, low, high = row["text"], min(row["width"], row["height"]), max(row["width"], row["height"])
        is_text = text is not None and row["language"] == "en" and len(text.split()) > 2 and len(text) > 5
        return is_text and low >= 200 and high / low <= 3.0

    rules = {
        "no_filter": lambda row: True,
        "basic_filter": basic,
        "clip_score": lambda row: row["l14"] >= threshold,
        "laion2b": lambda row: row["language"] == "en" and row["b32"] >= np.float32(0.28),
        "image_based": lambda row: caption_filter(row) and row["image_based"] == 1,
        "image_based_clip_score": lambda row: (
            caption_filter(row) and row["image_based"] == 1 and row["l14"] >= threshold
        ),
    }
    return [n for n, row in enumerate(rows) if rules[name](row)]


@pytest.mark.parametrize(
    "name", ["no_filter", "basic_filter", "clip_score", "laion2b", "image_based", "image_based_clip_score"]
)
def test_a_baseline_keeps_what_datacomps_code_keeps(spark, table, name):
    overrides = ["datasets.pool.metadata=/nowhere/*.parquet", "filters.image_based={cosine: true}"]
    config = load(["datacomp", f"baselines/{name}"], overrides).stages.selection
    config = config.model_copy(update={"scored_by": {f: (f, "v") for f in config.filters()}})
    sizes = [{"width_px": row["width"], "height_px": row["height"], "text": row["text"]} for row in table]
    made = [{"uid": uid(n), "status": "metadata_only", **row} for n, row in enumerate(sizes)]
    pairs = frame(spark, PAIRS, made)
    facts = signals.transform(pairs, config=signals.Config())  # the words are counted for real, the language is planted
    german = F.col("uid").isin([uid(n) for n, row in enumerate(table) if row["language"] == "de"])
    scores = []
    for f, (n, row) in itertools.product(("l14", "b32", "image_based"), enumerate(table)):
        score = None if np.isnan(row[f]) else float(row[f])
        scores.append({"filter": f, "filter_version": "v", "uid": uid(n), "status": "ok", "score": score})
    inputs = {"pairs": pairs, "signals": facts.withColumn("language", F.when(german, "de").otherwise("en")),
              "scores": frame(spark, SCORES, scores)}  # fmt: skip
    inputs = {key: value for key, value in inputs.items() if selection.STAGE.reads[key].is_read(config)}
    facts = selection.prepare(**inputs, config=config) | {"key": "0" * 64, "inputs": {"pool.pairs": 0}}
    kept = rows_of(selection.transform(**inputs, config=config, facts=facts)[0], "uid")
    wanted = by_datacomp(name, table)
    assert [int(u, 16) for (u,) in kept] == wanted
    assert 0 < len(wanted) < len(table) or name == "no_filter"
