"""Every data contract: what a row is, its columns with meaning and unit, key, slices, checks. Touches nothing.

Those of the web are in `web_tables.py`, of duplicates and leaks in `dedup/contracts.py`, of takedowns in
`forget/contracts.py`, the statuses in `statuses.py`.

Units are suffixes: `_px`, `_bytes`, `_bits`, `_seconds`, `_fraction`, `_at` (UTC). `is_` starts a boolean, `num_` a
count.
"""

from __future__ import annotations

from etl.dedup.contracts import CONTAMINATED as CONTAMINATED
from etl.dedup.contracts import DUPLICATES as DUPLICATES
from etl.dedup.contracts import EVALSETS as EVALSETS
from etl.dedup.contracts import LEAK_METHODS as LEAK_METHODS
from etl.dedup.contracts import VARIANTS as VARIANTS
from etl.forget.contracts import FORGOTTEN as FORGOTTEN
from etl.forget.contracts import TAKEDOWNS as TAKEDOWNS
from etl.stage import Table
from etl.statuses import STATUS_CHECK as _STATUS
from etl.statuses import STATUSES as STATUSES
from etl.statuses import UID_CHECK as _UID
from etl.web_tables import CANDIDATES as CANDIDATES
from etl.web_tables import CRAWL_FILES as CRAWL_FILES
from etl.web_tables import FETCHES as FETCHES

INPUTS = Table(
    "inputs",
    key=("uri",),
    ddl="""
    uri STRING NOT NULL COMMENT 'handed to ingest: a file, a folder of images with its content, a data file of a table',
    size_bytes BIGINT COMMENT 'its size when listed, bytes',
    etag STRING COMMENT 'what told its content when listed: ETag, or modification time and size',
    status STRING NOT NULL COMMENT 'of the file: ok, cut, not_a_tar, bad_parquet, bad_list, unreadable',
    status_reason STRING COMMENT 'why, in one line',
    num_members BIGINT NOT NULL COMMENT 'samples found in it',
    num_by_status MAP<STRING, BIGINT> NOT NULL COMMENT 'status -> samples; sums to num_members',
    ingested_at TIMESTAMP NOT NULL COMMENT 'UTC'
    """,
    checks={**_STATUS, "num_members_not_negative": "num_members >= 0"},
)

PAIRS = Table(
    "pairs",
    key=("uid",),
    ddl="""
    uid STRING NOT NULL COMMENT '32 lower-case hex digits; names the pair for good',
    url STRING COMMENT 'where the image came from',
    text STRING COMMENT 'the caption, byte for byte; NULL where missing or not UTF-8',
    source STRING COMMENT 'the collection it came with',
    shard STRING COMMENT 'tar that holds the image, relative to the root of the dataset; NULL while metadata_only',
    offset_bytes BIGINT COMMENT 'start of the image within the shard, bytes',
    size_bytes BIGINT COMMENT 'length of the image, bytes',
    sha256 STRING COMMENT 'of the image bytes, 64 hex digits',
    phash BIGINT COMMENT 'imagehash 8x8 DCT, 64 bits; distance is bit_count(a ^ b)',
    image_format STRING COMMENT 'sniffed: jpeg, png, webp, gif, bmp, tiff; of bad images also html, avif, unknown',
    width_px INT COMMENT 'after EXIF orientation',
    height_px INT COMMENT 'after EXIF orientation',
    status STRING NOT NULL COMMENT 'see STATUSES',
    status_reason STRING COMMENT 'why, in one line',
    is_late BOOLEAN COMMENT 'true: it was here as metadata_only before its sample came; else NULL'
    """,
    checks={
        **_UID,
        **_STATUS,
        "ok_has_pixels": "status != 'ok' OR (shard IS NOT NULL AND offset_bytes >= 0 AND size_bytes > 0)",
    },
)

SIGNALS = Table(
    "signals",
    key=("uid",),
    ddl="""
    uid STRING NOT NULL,
    language STRING COMMENT 'ISO 639 code of the caption by lid.176; NULL where there is no text',
    language_confidence FLOAT COMMENT '0 to 1',
    language_model STRING COMMENT 'what told the language, and its version',
    nsfw_text_score FLOAT COMMENT '0 to 1, higher is less safe, by the words of the caption; NULL where there is none',
    nsfw_text_model STRING COMMENT 'the list of words: its file and the first 16 hex digits of its sha256',
    num_words INT COMMENT 'runs of non-space characters',
    num_chars INT COMMENT 'Unicode code points',
    aspect_ratio FLOAT COMMENT 'longer side / shorter side, at least 1; NULL without pixels',
    status STRING NOT NULL COMMENT 'that of the pair'
    """,
    checks={
        **_UID,
        **_STATUS,
        "confidence_in_0_1": "language_confidence IS NULL OR language_confidence BETWEEN 0 AND 1",
        "nsfw_text_score_in_0_1": "nsfw_text_score IS NULL OR nsfw_text_score BETWEEN 0 AND 1",
    },
)

EMBEDDINGS = Table(
    "embeddings",
    key=("encoder", "encoder_version", "uid"),
    sliced_by=("encoder", "encoder_version"),
    ddl="""
    encoder STRING NOT NULL,
    encoder_version STRING NOT NULL COMMENT 'first 16 hex digits of the sha256 over weights and record',
    uid STRING NOT NULL,
    image_embedding BINARY COMMENT 'little-endian float16; NULL unless status is ok',
    text_embedding BINARY COMMENT 'little-endian float16; NULL unless status is ok',
    cosine FLOAT COMMENT '-1 to 1, computed in float32; NULL where the towers share no space',
    status STRING NOT NULL,
    status_reason STRING
    """,
    checks={
        **_UID,
        **_STATUS,
        "ok_has_vectors": "status != 'ok' OR (image_embedding IS NOT NULL AND text_embedding IS NOT NULL)",
        "cosine_is_a_number": "cosine IS NULL OR cosine BETWEEN -1.001D AND 1.001D",
    },
)

FEATURE_FILES = Table(
    "feature_files",
    key=("encoder", "encoder_version", "uri"),
    sliced_by=("encoder", "encoder_version"),
    ddl="""
    encoder STRING NOT NULL,
    encoder_version STRING NOT NULL,
    uri STRING NOT NULL COMMENT 'a metadata file, whose published vectors are in the npz beside it',
    size_bytes BIGINT COMMENT 'of the npz when listed, bytes',
    etag STRING COMMENT 'of the npz when listed: ETag, or modification time and size',
    status STRING NOT NULL COMMENT 'of the file: ok, bad_parquet, bad_npz, unreadable; no_vectors: there is no npz',
    status_reason STRING COMMENT 'why, in one line',
    num_rows BIGINT NOT NULL COMMENT 'rows of the metadata file',
    num_by_status MAP<STRING, BIGINT> NOT NULL COMMENT 'status of the vectors -> rows; sums to num_rows'
    """,
    checks={**_STATUS, "num_rows_not_negative": "num_rows >= 0"},
)

IMAGE_SIGNALS = Table(
    "image_signals",
    key=("model", "model_version", "uid"),
    sliced_by=("model", "model_version"),
    ddl="""
    model STRING NOT NULL COMMENT 'what looked at the pixels',
    model_version STRING NOT NULL COMMENT 'first 16 hex digits of the sha256 over weights and record',
    uid STRING NOT NULL,
    nsfw_score FLOAT COMMENT '0 to 1, higher is less safe; NULL of a model for other things',
    face_boxes ARRAY<ARRAY<FLOAT>> COMMENT '[left, top, right, bottom], fractions of the sides; NULL likewise',
    status STRING NOT NULL,
    status_reason STRING COMMENT 'why, in one line'
    """,
    checks={
        **_UID, **_STATUS, "nsfw_score_in_0_1": "nsfw_score IS NULL OR nsfw_score BETWEEN 0 AND 1",
        "ok_has_a_signal": "status != 'ok' OR nsfw_score IS NOT NULL OR face_boxes IS NOT NULL",
    },
)  # fmt: skip

SCORES = Table(
    "scores",
    key=("filter", "filter_version", "uid"),
    sliced_by=("filter", "filter_version"),
    ddl="""
    filter STRING NOT NULL,
    filter_version STRING NOT NULL COMMENT 'first 16 hex digits of the sha256 over weights and record',
    uid STRING NOT NULL,
    score FLOAT COMMENT 'higher is kept; NULL unless status is ok; never NaN',
    status STRING NOT NULL
    """,
    checks={**_UID, **_STATUS, "score_is_a_number": "score IS NULL OR NOT isnan(score)"},
)

SELECTIONS = Table(
    "selections",
    key=("selection_id", "uid"),
    sliced_by=("selection_id",),
    ddl="""
    selection_id STRING NOT NULL COMMENT 'first 16 hex digits of the sha256 over inputs, rule and stage version',
    uid STRING NOT NULL,
    score DOUBLE COMMENT 'what the pair was ranked by; NULL where the rule ranks nothing',
    num_repeats INT NOT NULL COMMENT 'how often the pair is in the dataset, at least 1'
    """,
    checks={**_UID, "num_repeats_at_least_1": "num_repeats >= 1"},
)

RECEIPTS = Table(
    "receipts",
    key=("selection_id",),
    sliced_by=("selection_id",),
    ddl="""
    selection_id STRING NOT NULL,
    inputs MAP<STRING, BIGINT> NOT NULL COMMENT 'table -> Delta version that was read',
    rule STRING NOT NULL COMMENT 'the selection config, JSON, filter version and seed included',
    seed BIGINT NOT NULL,
    facts STRING NOT NULL COMMENT 'threshold and counts by reason, JSON',
    num_rows BIGINT NOT NULL,
    hash STRING NOT NULL COMMENT 'sum mod 2^128 of md5(uid, num_repeats), 32 hex digits: the same in any order'
    """,
)

SHARDS = Table(
    "shards",
    key=("selection_id", "shard"),
    sliced_by=("selection_id",),
    ddl="""
    selection_id STRING NOT NULL,
    shard STRING NOT NULL COMMENT 'name of the published file',
    folder STRING NOT NULL COMMENT 'where it was exported to',
    num_samples BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    sha256 STRING NOT NULL
    """,
)

EVALUATIONS = Table(
    "evaluations",
    key=("run_id", "task", "metric"),
    is_project_wide=True,
    ddl="""
    run_id STRING NOT NULL COMMENT 'the run in `runs` whose model was evaluated',
    task STRING NOT NULL COMMENT 'the evaluation dataset',
    metric STRING NOT NULL, value DOUBLE NOT NULL, seed BIGINT NOT NULL
    """,
)

PROMOTIONS = Table(
    "promotions",
    key=("decision_id",),
    is_project_wide=True,
    ddl="""
    decision_id STRING NOT NULL,
    model STRING NOT NULL COMMENT 'registered model',
    challenger STRING NOT NULL COMMENT 'filter_version; of a rollback the one that is champion again',
    champion_compared STRING NOT NULL COMMENT 'filter_version of the champion, or the arm that stood in for one',
    verdict STRING NOT NULL COMMENT 'promoted, rolled_back; refused; waiting, dry_run, overtaken: passed, not promoted',
    reason STRING NOT NULL COMMENT 'the comparison in one line',
    approver STRING COMMENT 'NULL where the gate decided alone',
    decided_at TIMESTAMP NOT NULL COMMENT 'UTC',
    follows STRING COMMENT 'decision that made the champion compared with: one promotion can follow; empty: first',
    facts STRING COMMENT 'values by seed, level, guards, the filters own accuracy, JSON'
    """,
)

RUNS = Table(
    "runs",
    key=("run_id",),
    is_project_wide=True,
    ddl="""
    run_id STRING NOT NULL,
    name STRING NOT NULL COMMENT 'stage or kind of training run',
    dataset STRING COMMENT 'the dataset it wrote to, where it is a stage',
    key STRING NOT NULL COMMENT 'what makes it up to date: input data versions, config, code version',
    inputs MAP<STRING, BIGINT> NOT NULL COMMENT 'table -> Delta version that was read',
    output_version BIGINT COMMENT 'Delta version of the table written',
    config_json STRING NOT NULL,
    facts_json STRING NOT NULL COMMENT 'what prepare found, or what a training run produced',
    git_commit STRING,
    seconds DOUBLE NOT NULL,
    num_rows_in BIGINT,
    num_rows_by_status MAP<STRING, BIGINT> NOT NULL COMMENT 'terminal status -> rows; sums to num_rows_in for a stage',
    ended_at TIMESTAMP NOT NULL COMMENT 'UTC'
    """,
)

DATASET_TABLES = (
    CANDIDATES, CRAWL_FILES, FETCHES, INPUTS, PAIRS, SIGNALS, DUPLICATES, CONTAMINATED, EMBEDDINGS, FEATURE_FILES,
    IMAGE_SIGNALS, VARIANTS, SCORES, SELECTIONS, RECEIPTS, SHARDS,
)  # fmt: skip
PROJECT_TABLES = (RUNS, EVALUATIONS, PROMOTIONS, EVALSETS, FORGOTTEN, TAKEDOWNS)
