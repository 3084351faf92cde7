"""The contracts of what comes from the web: candidates, the ledger of crawl files, fetches. Touches nothing.

Import from `etl.tables`, which has the others.
"""

from __future__ import annotations

from etl.stage import Table
from etl.statuses import STATUS_CHECK, UID_CHECK

CANDIDATES = Table(
    "candidates",
    key=("uid",),
    ddl="""
    uid STRING NOT NULL COMMENT 'that of a list, else md5 of url, NUL and text as found; 32 lower-case hex digits',
    url STRING NOT NULL COMMENT 'of the image: absolute, http or https, without a fragment',
    text STRING NOT NULL COMMENT 'the alt text, entities decoded, white space folded; of a list as it is there',
    alt_raw STRING COMMENT 'the attribute as the page has it',
    page_url STRING COMMENT 'of the page; NULL where a list names no page',
    crawl STRING NOT NULL COMMENT 'CC-MAIN-YYYY-WW of Common Crawl, else the dataset',
    file STRING NOT NULL COMMENT 'the crawl file or list in which this uid was seen first',
    number BIGINT NOT NULL COMMENT 'its place among the candidates of that file, from 0',
    host STRING NOT NULL COMMENT 'of the image, lower case: whose pace and robots.txt a download keeps to',
    chunk_group STRING NOT NULL COMMENT 'three hex digits of the md5 of host: a chunk of downloads holds whole hosts',
    sha256 STRING COMMENT 'that the image must have, 64 hex digits; NULL where nobody says',
    opt_out_evidence STRING COMMENT 'how the page says no: a header or a meta element; NULL where it does not'
    """,
    checks={**UID_CHECK, "url_is_http": "url RLIKE '^https?://'", "text_is_there": "length(text) > 0"},
)

CRAWL_FILES = Table(
    "crawl_files",
    key=("uri",),
    ddl="""
    uri STRING NOT NULL COMMENT 'handed to collect: a WARC or WAT file, a list of URLs, a data file of a table',
    size_bytes BIGINT COMMENT 'its size when listed, bytes',
    etag STRING COMMENT 'what told its content when listed: ETag, or modification time and size',
    status STRING NOT NULL COMMENT 'ok, cut, bad_record, not_a_crawl_file, bad_parquet, bad_list, unreadable',
    status_reason STRING COMMENT 'why, in one line',
    num_images BIGINT NOT NULL COMMENT 'img elements, or rows of a list, found in it',
    num_by_status MAP<STRING, BIGINT> NOT NULL COMMENT 'status -> of them; sums to num_images; ok: candidates',
    num_pages_by_status MAP<STRING, BIGINT> NOT NULL COMMENT 'status -> records of the file that answer a request',
    collected_at TIMESTAMP NOT NULL COMMENT 'UTC'
    """,
    checks={**STATUS_CHECK, "num_images_not_negative": "num_images >= 0"},
)

FETCHES = Table(
    "fetches",
    key=("uid",),
    ddl="""
    uid STRING NOT NULL COMMENT 'a candidate',
    url STRING NOT NULL COMMENT 'that was asked for',
    final_url STRING COMMENT 'that answered, after redirects; NULL where none did',
    status STRING NOT NULL COMMENT 'of the last attempt; see STATUSES',
    status_reason STRING COMMENT 'why, in one line',
    http_status INT COMMENT 'of the last answer; NULL where there was none',
    size_bytes BIGINT COMMENT 'of the image as it came, bytes',
    sha256 STRING COMMENT 'of the image as it came, 64 hex digits; what is stored has no metadata, and another',
    num_attempts INT NOT NULL COMMENT 'requests for the image; 0 where none was made',
    opt_out_evidence STRING COMMENT 'what said no, word for word, and where it stood',
    shard STRING COMMENT 'the tar that holds it, relative to the folder of the dataset; NULL unless status is ok',
    fetched_at TIMESTAMP NOT NULL COMMENT 'UTC'
    """,
    checks={
        **UID_CHECK,
        **STATUS_CHECK,
        "ok_is_stored": "(status = 'ok') = (shard IS NOT NULL)",
        "opted_out_has_evidence": "status != 'opted_out' OR opt_out_evidence IS NOT NULL",
    },
)
