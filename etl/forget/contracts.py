"""The contracts of what was forgotten: keys to keep out, and the record of each takedown. Hashes only. Touches nothing.

Import from `etl.tables`, which has the others.
"""

from __future__ import annotations

from etl.stage import Table

FORGOTTEN = Table(
    "forgotten",
    key=("takedown_id", "kind", "key_hash", "distance_bits"),
    is_project_wide=True,
    ddl="""
    takedown_id STRING NOT NULL,
    kind STRING NOT NULL COMMENT 'uid, url, domain, sha256, phash',
    key_hash STRING NOT NULL COMMENT 'sha256 of kind, NUL and the key; of a phash its 64 bits XOR a mask, in hex',
    distance_bits INT NOT NULL COMMENT 'of a phash: pictures within so many bits stay out; 0 of the others'
    """,
    checks={"kind_is_known": "kind IN ('uid', 'url', 'domain', 'sha256', 'phash')",
            "key_is_hashed": "length(key_hash) = 64 OR (kind = 'phash' AND length(key_hash) = 16)"},
)  # fmt: skip

TAKEDOWNS = Table(
    "takedowns",
    key=("takedown_id", "state"),
    is_project_wide=True,
    ddl="""
    takedown_id STRING NOT NULL COMMENT 'first 16 hex digits of the sha256 over the hashes of what was named and found',
    state STRING NOT NULL COMMENT 'begun: what will be done; done: all of it is done',
    requested_by STRING NOT NULL COMMENT 'user and host',
    at TIMESTAMP NOT NULL COMMENT 'UTC',
    facts STRING NOT NULL COMMENT 'what was found: rows by table, exports, models, shards; no key. JSON'
    """,
    checks={"state_is_known": "state IN ('begun', 'done')"},
)
