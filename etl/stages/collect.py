"""Crawl files to candidates. Reads WARC and WAT files. Writes candidates, and crawl_files: the ledger of the files.

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
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.arrow import batch_of, count_from, schema_of
from etl.shards import list_shards
from etl.stage import Read, Stage, StageConfig, tasks
from etl.stages.ingest import marked
from etl.storage import with_storage
from etl.tables import CANDIDATES, CRAWL_FILES
from etl.uids import uid_of

FOUND = """uid string, url string, text string, alt_raw string, page_url string, host string, chunk_group string,
opt_out_evidence string"""
SCANNED = f"uri string, number bigint, is_file boolean, status string, status_reason string, counts string, {FOUND}"
SCHEMA = schema_of(SCANNED)
COUNTS = "images map<string,bigint>, pages map<string,bigint>"
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
    source: str = ""
    """Known to a run only: the crawl, where no path says which one of Common Crawl's it is."""
    storage: dict[str, dict[str, Any]] = pydantic.Field(default={}, exclude=True)
    """Known to a run only: see `etl/storage.py`."""


def listing(dataset: Any) -> pd.DataFrame:
    """The crawl files of a dataset."""
    files = list_shards(dataset.crawl) if dataset.crawl else []
    rows = [(file.uri, file.size_bytes, file.etag, file.uri) for file in files]
    return pd.DataFrame(rows, columns=["uri", "size_bytes", "etag", "chunk_group"])


def scanner(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Files to rows of SCANNED: one per candidate, and one per file with its status and counts."""
    from etl.crawl import Caps, CrawlFile, Found, scan_crawl  # of the extra `web`

    caps = Caps(config.max_page_bytes, config.max_images_per_page, config.max_records)

    def scan_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for uri in (uri for batch in batches for uri in batch.column("uri").to_pylist()):
            number, rows = 0, list[Row]()
            for item in scan_crawl(uri, caps=caps, agent=config.user_agent):
                rows += rows_of(item) if isinstance(item, Found) else []
                if rows and (len(rows) >= BATCH_ROWS or isinstance(item, CrawlFile)):
                    known = {name: [row[name] for row in rows] for name in rows[0]}
                    numbers = count_from(number, len(rows))
                    yield batch_of(SCHEMA, len(rows), uri=uri, number=numbers, is_file=False, status="ok", **known)
                    number, rows = number + len(rows), []
                if isinstance(item, CrawlFile):
                    counts = json.dumps({"images": item.images, "pages": item.pages})
                    line = {"status": item.status, "status_reason": item.reason, "counts": counts}
                    yield batch_of(SCHEMA, 1, uri=uri, is_file=True, **line)

    return with_storage(scan_files, config.storage)


def rows_of(found: Any) -> list[Row]:
    """A row per image of a page, which is a `Found`."""
    rows = []
    for image in found.page.images:
        host = urlsplit(image.url).hostname or ""
        rows.append({
            "uid": uid_of(image.url, image.text), **image._asdict(), "page_url": found.page_url, "host": host,
            "chunk_group": group_of_host(host), "opt_out_evidence": found.page.opt_out,
        })  # fmt: skip
    return rows


def group_of_host(host: str) -> str:
    """Three hex digits: all URLs of one host are downloaded in one chunk."""
    return hashlib.md5(host.encode(), usedforsecurity=False).hexdigest()[:3]


def transform(files: DataFrame, known: DataFrame, *, config: Config) -> tuple[DataFrame, DataFrame]:
    spread = files.repartition(tasks(config.num_tasks, files))
    # Python: records, charsets and HTML are parsed by libraries that the JVM does not have.
    scanned = spread.mapInArrow(scanner(config), SCANNED).localCheckpoint()
    images = scanned.where("NOT is_file").withColumns({"shard": F.col("uri"), "offset_bytes": F.col("number")})
    before = known.withColumnsRenamed({"file": "shard", "number": "offset_bytes"})
    images = marked(images, before)
    crawl = F.regexp_extract("uri", COMMON_CRAWL.pattern, 0)
    candidates = images.where("status = 'ok' AND NOT is_written").select(
        "uid", "url", "text", "alt_raw", "page_url",
        F.when(crawl != "", crawl).otherwise(F.lit(config.source)).alias("crawl"),
        F.col("uri").alias("file"), "number", "host", "chunk_group", F.lit(None).cast("string").alias("sha256"),
        "opt_out_evidence",
    )  # fmt: skip
    return candidates, ledger(files, scanned, images)


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
