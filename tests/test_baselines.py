"""DataComp's baselines: the verdicts of conf/baselines on edge cases, against a reading of its code in numpy.

That code is `baselines/apply_filter.py` of mlfoundations/datacomp; where it would fail (no caption), a row is out.
"""

import itertools

import numpy as np
import pytest
from helpers import frame, rows_of, uid
from pyspark.sql import functions as F

from etl.config import load
from etl.samples.packages import default_cache, fetch_package
from etl.selection.wordnet import FOLDER, PACKAGE, read_synsets, read_wordnet
from etl.stage import UserError
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


def kept_of(spark, name, table, *overrides):
    """Numbers of the rows that the baseline's rule keeps."""
    known = ["datasets.pool.metadata=/nowhere/*.parquet", "filters.image_based={cosine: true}", *overrides]
    config = load(["datacomp", f"baselines/{name}"], known).stages.selection
    config = config.model_copy(update={"scored_by": {f: (f, "v") for f in config.filters()}})
    sizes = [{"width_px": row["width"], "height_px": row["height"], "text": row["text"]} for row in table]
    made = [{"uid": uid(n), "status": "metadata_only", **row} for n, row in enumerate(sizes)]
    pairs = frame(spark, PAIRS, made)
    facts = signals.transform(pairs, config=signals.Config())  # the words are counted for real, the language is planted
    german = F.col("uid").isin([uid(n) for n, row in enumerate(table) if row["language"] == "de"])
    scores = []
    for f, (n, row) in itertools.product(config.scored_by, enumerate(table)):
        score = None if np.isnan(row[f]) else float(row[f])
        scores.append({"filter": f, "filter_version": "v", "uid": uid(n), "status": "ok", "score": score})
    inputs = {"pairs": pairs, "signals": facts.withColumn("language", F.when(german, "de").otherwise("en")),
              "scores": frame(spark, SCORES, scores)}  # fmt: skip
    inputs = {key: value for key, value in inputs.items() if selection.STAGE.reads[key].is_read(config)}
    facts = selection.prepare(**inputs, config=config) | {"key": "0" * 64, "inputs": {"pool.pairs": 0}}
    kept = rows_of(selection.transform(**inputs, config=config, facts=facts)[0], "uid")
    return [int(u, 16) for (u,) in kept]


@pytest.mark.parametrize(
    "name",
    ["basic_filter", "image_based_clip_score"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("no_filter", "clip_score", "laion2b", "image_based")],
)
def test_a_baseline_keeps_what_datacomps_code_keeps(spark, table, name):
    wanted = by_datacomp(name, table)
    assert kept_of(spark, name, table) == wanted
    assert 0 < len(wanted) < len(table) or name == "no_filter"


# Of words as they stand in captions: the offset of `wordnet.synsets(word)[0]` in NLTK 3.8.1 (DataComp's pin), run once
# over the same files of Debian's wordnet-base.
NLTK = {
    "a": 13658027, "red": 4962784, "fox": 2118333, "two": 13743269, "words": 7109730, "b": 1349948, "c": 13714491,
    "cd": 14632444, "ab": 6698640, "ef": None, "one": 13742573, "ein": None, "roter": None, "Fuchs": 10984589,
    "xxxxxx": None, "b\x00c": None, "de": 9069862, "abcdef": None, "Three": 13744044, "FOXES": 2118333, "run": 189565,
    "foxeses": 2118333, "fox.": None, "fox,": None, "running": 558883, "GEESE": 1855672, "women": 10787470, "men":
    8212347, "at": 14629561, "work": 575741, "left": 8625462, "leaves": 13152742, "fall": 15236859, "great": 10145081,
    "white": 9638875, "shark": 1482330, "great_white_shark": 1484850, "snow-white": 392093, "linen": 3672521, "und":
    None, "dog's": None, "hot-dog": 1938855, "hot": 1247240, "dog": 2084071, "was": 9152944, "seseses": 14654175,
    "ran": 1926329, "boxed": 1485176, "glasses": 4272054, "better": 5143558, "axes": 2764044, "I'm": None, "the":
    None, "swifter": 978199, "\u0130": None, "mice": 2330245, "tench": 1440764,
}  # fmt: skip
# Real ids of WordNet 3.0, written by hand: fox, goose, woman, man, leaf, mouse, tench, great white shark, dog, two. The
# last is a drawing, and snow-white, an adjective, has its offset: DataComp's code looks at the offset alone.
WNIDS = """
n02118333
n01855672
n10787470
n10287213
n13152742

# small ones
 n02330245
n01440764
n01484850
n02084071
n13743269
n00392093
"""
TEXTS = [
    *CAPTIONS,
    "Three FOXES run",
    "foxeses",  # no rule knows it, but the rules of what they made of it do
    "a fox. a fox, running",
    "GEESE",
    "women",
    "men at work",  # listed is a man; men are a work force first
    "left",  # leave and leaf are not looked at: left is a word
    "leaves fall",
    "great white shark",
    "a great_white_shark",
    "snow-white linen",
    "ein Fuchs und a fox",
    "dog's hot-dog",
    "hot\u00a0dog",
    "\x1ffox\u2028was ",
    "seseses was",
    "ran boxed glasses better axes I'm the swifter \u0130",
    "mice\ttench",
]


@pytest.fixture(scope="module")
def wordnet_folder():
    return fetch_package(PACKAGE, cache=default_cache()) / FOLDER


def test_a_word_means_first_what_nltk_says(wordnet_folder):
    wordnet = read_wordnet(str(wordnet_folder), {})
    assert {word: wordnet.first_offset(word) for word in NLTK} == NLTK
    # Two endings fit each time, and 2^40 ways lead down to se, the metal: a way that meets another is not gone again.
    assert wordnet.first_offset("se" * 40 + "s") == NLTK["seseses"]


def test_text_based_keeps_what_datacomps_code_keeps(spark, wordnet_folder, tmp_path):
    (tmp_path / "wnids.txt").write_text(WNIDS)
    listed = {int(line.strip()[1:]) for line in WNIDS.splitlines() if "#" not in line and line}
    table = [{"text": text, "width": 1, "height": 1, "language": "en"} for text in TEXTS]
    table = [{**row, "language": "de" if row["text"] and "ein" in row["text"] else "en"} for row in table]

    def contains(text):
        return any(NLTK[word] in listed for word in text.split())

    wanted = [n for n, row in enumerate(table) if row["text"] and row["language"] == "en" and contains(row["text"])]
    overrides = [
        f"stages.selection.synsets.imagenet21k={tmp_path}/wnids.txt",
        f"stages.selection.wordnet={wordnet_folder}",
    ]
    assert kept_of(spark, "text_based", table, *overrides) == wanted
    assert [TEXTS[n] for n in wanted] == [
        "a red fox", "two words", "one\ntwo", "Three FOXES run", "foxeses", "GEESE", "women", "leaves fall",
        "a great_white_shark", "snow-white linen", "hot\xa0dog", "\x1ffox\u2028was ", "mice\ttench",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["n0211833", "# none", "x02118333", "n02118333 fox", "n02118333\n2118333"])
def test_a_list_of_synsets_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "wnids.txt").write_text(text)
    with pytest.raises(UserError, match="synsets: wanted wnids"):
        read_synsets(str(tmp_path / "wnids.txt"), {})
    with pytest.raises(UserError, match="wanted the file"):
        read_synsets(str(tmp_path / "nowhere.txt"), {})


def test_a_list_that_no_file_is_given_for_is_refused_before_spark_starts():
    with pytest.raises(UserError, match="names: wanted a list in `synsets`; found imagenet21k, there are none"):
        load(["datacomp", "baselines/text_based"], ["datasets.pool.metadata=/nowhere/*.parquet"])
