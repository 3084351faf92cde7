"""Crawl files and lists of URLs to candidates. Reads WARC and WAT files, lists, tables. Writes candidates, and
crawl_files: the ledger of the files.

A task takes a file at a time. Of two candidates with one uid that of the earlier chunk stays, then that of the smaller
(file, place in it); the ledger counts the other. Elements that give no candidate are counted by why. A file that is
damaged gives what is whole, and its line says why there is no more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pyarrow as pa
import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.arrow import batch_of, count_from, schema_of
from etl.intake.lists import Columns
from etl.intake.stay_out import StayOut, is_forgotten
from etl.intake.table_lists import GROUP, is_table, list_table, numbered, table_rows
from etl.intake.uids import uid_of
from etl.shards import ShardSummary, list_shards
from etl.stage import Read, Stage, StageConfig, tasks
from etl.stages.ingest import marked
from etl.storage import with_storage
from etl.tables import CANDIDATES, CRAWL_FILES

FOUND = """uid string, url string, text string, alt_raw string, page_url string, host string, chunk_group string,
sha256 string, opt_out_evidence string"""
SCANNED = f"uri string, number bigint, is_file boolean, status string, status_reason string, counts string, {FOUND}"
SCHEMA = schema_of(SCANNED)
FOUND_NAMES = [part.split()[0] for part in FOUND.split(",")]
COUNTS = "images map<string,bigint>, pages map<string,bigint>"
NO_COUNTS = '{"images": {}, "pages": {}}'
COMMON_CRAWL = re.compile(r"CC-MAIN-\d{4}-\d{2}")
BATCH_ROWS = 10_000
Row = dict[str, Any]


class Config(StageConfig):
    max_page_bytes: int = pydantic.Field(default=2 << 20, gt=0)
    """What is read of one page."""
    max_images_per_page: int = pydantic.Field(default=1000, gt=0)
    max_records: int = pydantic.Field(default=1_000_000, gt=0)
    """Read of one file."""
    user_agent: str = "dfn-etl"
    """The name by which pages may speak to this crawler in particular."""
    chunk_rows: int = pydantic.Field(default=50, gt=0, exclude=True)
    """Files per commit."""
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks per chunk; None: spark.sql.shuffle.partitions."""
    columns: Columns = pydantic.Field(default={})
    """Known to a run only: column of a list -> what it is, where its name does not say."""
    source: str = ""
    """Known to a run only: the crawl, where no path says which one of Common Crawl's it is."""
    urls: str = pydantic.Field(default="", exclude=True)
    """Known to a run only: the lists of URLs of the dataset, or the table."""
    stay_out: StayOut = pydantic.Field(default=StayOut(), exclude=True)
    """Known to a run only: what was forgotten."""
    storage: dict[str, dict[str, Any]] = pydantic.Field(default={}, exclude=True)
    """Known to a run only: see `etl/storage.py`."""


def listing(dataset: Any) -> pd.DataFrame:
    """The crawl files of a dataset, or its lists of URLs."""
    kind = "crawl" if dataset.crawl else "urls"
    if is_table(dataset.urls):
        rows = [(*file, kind, GROUP) for file in list_table(dataset.urls)]
    else:
        files = list_shards(dataset.crawl or dataset.urls) if dataset.is_downloaded else []
        rows = [(file.uri, file.size_bytes, file.etag, kind, file.uri) for file in files]
    return pd.DataFrame(rows, columns=["uri", "size_bytes", "etag", "reader", "chunk_group"])


def _crawl(uri: str, config: Config) -> Iterator[list[Row] | Row]:
    """Candidates of the pages of a crawl file, and its line."""
    from etl.web.crawl import Caps, Found, scan_crawl  # of the extra `web`

    caps = Caps(config.max_page_bytes, config.max_images_per_page, config.max_records)
    for item in scan_crawl(uri, caps=caps, agent=config.user_agent):
        if isinstance(item, Found):
            yield rows_of(item)
        else:
            counts = json.dumps({"images": item.images, "pages": item.pages})
            yield {"status": item.status, "status_reason": item.reason, "counts": counts}


def _urls(uri: str, config: Config) -> Iterator[list[Row] | Row]:
    """Candidates of a list, what is none with its status, and its line."""
    from etl.web.url_lists import candidates_of, scan_urls

    for item in scan_urls(uri, columns=config.columns):
        if isinstance(item, ShardSummary):
            yield {"status": item.status, "status_reason": item.status_reason, "counts": NO_COUNTS}
        else:
            yield [with_group(row) for row in candidates_of(item)]


READERS = {"crawl": _crawl, "urls": _urls}
"""Key of a dataset's config -> how its files are read: rows of candidates, and last the line on the file."""


def scanner(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Files to rows of SCANNED: one per candidate, and one per file with its status and counts."""

    def scan_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for file in (file for batch in batches for file in batch.to_pylist()):
            uri, number, rows = file["uri"], 0, list[Row]()
            for item in READERS[file["reader"]](uri, config):
                rows += item if isinstance(item, list) else []
                if rows and (len(rows) >= BATCH_ROWS or not isinstance(item, list)):
                    yield _scanned(rows, uri, count_from(number, len(rows)))
                    number, rows = number + len(rows), []
                if not isinstance(item, list):
                    yield batch_of(SCHEMA, 1, uri=uri, is_file=True, **item)

    return with_storage(scan_files, config.storage)


def rows_scanner(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows of a table, as `table_rows` gives them, to rows of SCANNED, one each."""
    from etl.web.url_lists import candidates_of

    for batch in numbered(batches):
        rows = [with_group(row) for row in candidates_of(batch.drop_columns(["uri", "number"]))]
        yield _scanned(rows, batch.column("uri"), batch.column("number"))


def _scanned(rows: list[Row], uri: Any, numbers: pa.Array) -> pa.RecordBatch:
    known = {name: [row.get(name) for row in rows] for name in FOUND_NAMES}
    status = [row.get("status", "ok") for row in rows]
    return batch_of(SCHEMA, len(rows), uri=uri, number=numbers, is_file=False, status=status, **known)


def rows_of(found: Any) -> list[Row]:
    """A row per image of a page, which is a `Found`."""
    of_page = {"page_url": found.page_url, "opt_out_evidence": found.page.opt_out}
    return [
        with_group({"uid": uid_of(image.url, image.text), **image._asdict(), **of_page}) for image in found.page.images
    ]


def with_group(row: Row) -> Row:
    host = urlsplit(row["url"] or "").hostname or ""
    return {**row, "host": host, "chunk_group": group_of_host(host)}


def group_of_host(host: str) -> str:
    """Three hex digits: all URLs of one host are downloaded in one chunk."""
    return hashlib.md5(host.encode(), usedforsecurity=False).hexdigest()[:3]


def crawl_of(uri: str, otherwise: str) -> Column:
    """Which of Common Crawl's crawls a path names."""
    found = F.regexp_extract(uri, COMMON_CRAWL.pattern, 0)
    return F.when(found != "", found).otherwise(F.lit(otherwise))


def scan_all(files: DataFrame, config: Config) -> DataFrame:
    """Rows of SCANNED: one per candidate or row of a list, and one per file."""
    if is_table(config.urls):
        kinds = ("uid", "url", "text", "sha256")
        rows = table_rows(files, config.urls, config.columns, kinds, needs=[("url",), ("text",)])
        # Python: the same code as for lists of files.
        made = rows.mapInArrow(rows_scanner, SCANNED)
        whole = files.select("uri", F.lit(True).alias("is_file"), F.lit("ok").alias("status"))
        return made.unionByName(whole.withColumn("counts", F.lit(NO_COUNTS)), allowMissingColumns=True)
    spread = files.select("uri", "reader").repartition(tasks(config.num_tasks, files))
    # Python: records, charsets and HTML are parsed by libraries that the JVM does not have.
    return spread.mapInArrow(scanner(config), SCANNED)


def transform(files: DataFrame, known: DataFrame, *, config: Config) -> tuple[DataFrame, DataFrame]:
    scanned = scan_all(files, config)
    if config.stay_out:
        keys = is_forgotten(config.stay_out, uid="uid", url="url", page="page_url", sha256=F.lower("sha256"))
        status = F.when(~F.col("is_file") & keys, "forgotten").otherwise(F.col("status"))
        scanned = scanned.withColumn("status", status)
    scanned = scanned.localCheckpoint()
    images = scanned.where("NOT is_file AND status = 'ok'")
    images = images.withColumns({"shard": F.col("uri"), "offset_bytes": F.col("number")})
    before = known.withColumnsRenamed({"file": "shard", "number": "offset_bytes"})
    images = marked(images, before)
    candidates = images.where("status = 'ok' AND NOT is_written").select(
        "uid", "url", "text", "alt_raw", "page_url",
        crawl_of("uri", config.source).alias("crawl"),
        F.col("uri").alias("file"), "number", "host", "chunk_group", F.lower("sha256").alias("sha256"),
        "opt_out_evidence",
    )  # fmt: skip
    skipped = scanned.where("NOT is_file AND status != 'ok'")
    return candidates, ledger(files, scanned, images.select("uri", "status").union(skipped.select("uri", "status")))


def ledger(files: DataFrame, scanned: DataFrame, images: DataFrame) -> DataFrame:
    """A line per file: what its worker counted, with the candidates parted into new ones and duplicates."""
    by_status = images.groupBy("uri", "status").agg(F.count(F.lit(1)).alias("n")).groupBy("uri")
    counted = by_status.agg(F.map_from_entries(F.collect_list(F.struct("status", "n"))).alias("marked"))
    lines = scanned.where("is_file").select("uri", "status", "status_reason", F.from_json("counts", COUNTS).alias("c"))
    none = F.expr("map()").cast("map<string,bigint>")
    all_images = F.map_concat(F.map_filter("c.images", lambda k, _: k != "ok"), F.coalesce("marked", none))
    total = F.aggregate(F.map_values("num_by_status"), F.lit(0).cast("bigint"), lambda a, b: a + b)
    return (
        files.join(lines, on="uri", how="inner")
        .join(counted, on="uri", how="left")
        .withColumn("num_by_status", all_images)
        .select(
            "uri", "size_bytes", "etag", "status", "status_reason", total.alias("num_images"), "num_by_status",
            F.col("c.pages").alias("num_pages_by_status"), F.current_timestamp().alias("collected_at"),
        )
    )  # fmt: skip


STAGE = Stage(
    "collect", reads={"known": Read(CANDIDATES)}, writes=(CANDIDATES, CRAWL_FILES), config=Config, transform=transform,
    resume="rows", version=1, kinds=("pool", "filter", "dev", "eval"), listing=listing,
)  # fmt: skip
