"""The contracts of duplicates and leaks. Touches nothing."""

from __future__ import annotations

from etl.stage import Table
from etl.statuses import STATUS_CHECK, UID_CHECK

DUPLICATES = Table(
    "duplicates",
    key=("method", "uid"),
    sliced_by=("method",),
    ddl="""
    method STRING NOT NULL COMMENT 'url_text: same URL and caption; sha256: same bytes; phash, minhash: near ones',
    uid STRING NOT NULL COMMENT 'a member of a group of two or more, which any chain of duplicates joins',
    group_uid STRING NOT NULL COMMENT 'smallest uid of the group',
    distance FLOAT NOT NULL COMMENT 'to the pair group_uid: bits for phash, 1 - Jaccard for minhash, 0 of the others'
    """,
    checks=UID_CHECK,
)

CONTAMINATED = Table(
    "contaminated",
    key=("eval_set", "method", "uid"),
    sliced_by=("method",),
    ddl="""
    eval_set STRING NOT NULL COMMENT 'evaluation or development dataset, or registered set, that has such an image',
    method STRING NOT NULL COMMENT 'sha256: same bytes; near by phash, semantic: vector, or semantic_phash: both',
    uid STRING NOT NULL,
    distance FLOAT NOT NULL COMMENT 'to the closest of the set: 0, bits, 1 - cosine, (2 (1 - cosine) + bits / 32) / 3',
    edit STRING COMMENT 'what the evaluation picture that near was made into, see variants; NULL: it is as it was'
    """,
    checks=UID_CHECK,
)
LEAK_METHODS = ("sha256", "phash", "semantic", "semantic_phash")
"""Of `contaminated`, the surest first."""

# Looks: of the picture edited in each way, what pairs and embeddings would have of it.
VARIANTS = Table(
    "variants",
    key=("encoder", "encoder_version", "uid"),
    sliced_by=("encoder", "encoder_version"),
    ddl="""
    encoder STRING NOT NULL,
    encoder_version STRING NOT NULL COMMENT 'first 16 hex digits of the sha256 over weights and record',
    uid STRING NOT NULL COMMENT 'of an evaluation or development picture',
    looks ARRAY<STRUCT<edit: STRING, phash: BIGINT, image_embedding: BINARY>> COMMENT 'NULL unless status is ok',
    status STRING NOT NULL,
    status_reason STRING COMMENT 'why, in one line'
    """,
    checks={**STATUS_CHECK, **UID_CHECK, "ok_has_looks": "status != 'ok' OR looks IS NOT NULL"},
)

EVALSETS = Table(
    "evalsets",
    key=("name",),
    is_project_wide=True,
    ddl="""
    name STRING NOT NULL COMMENT 'of a registered evaluation set: its pairs and embeddings are the dataset so named',
    source STRING NOT NULL COMMENT 'glob of its shards',
    added_at TIMESTAMP NOT NULL COMMENT 'UTC'
    """,
)
