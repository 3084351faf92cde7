"""Candidates to images in tar shards. Reads candidates. Writes fetches, and shards in the dataset's folder for ingest.

All rows of a host are one task's: it keeps to the host's pace and asks for its robots.txt once. Before any decoder sees
them, bytes are held against blocklists and the sha256 that the index has. What is stored has no metadata (EXIF, GPS).
A killed run is taken up where it was: what was stored is not fetched again (`etl/web/fetch_shards.py`).
"""

from __future__ import annotations

import asyncio
import datetime
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import pydantic
from PIL import Image
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.arrow import batch_of, schema_of
from etl.export.strip import strip_metadata
from etl.intake.blocklists import Blocklist, read_blocklists
from etl.intake.stay_out import REASON, StayOut
from etl.stage import Facts, Read, Stage, StageConfig, digest, tasks
from etl.tables import CANDIDATES, FETCHES
from etl.web.fetch_shards import Row, ShardSink, noted, notes, take_over
from models.images import MAX_PIXELS, ImageError, decode_rgb, measure, sha256_hex

if TYPE_CHECKING:
    from etl.web.fetch import Fetched, Limits

WANTED = ("uid", "url", "text", "page_url", "crawl", "host", "sha256", "opt_out_evidence")
ROW = """uid string, url string, final_url string, status string, status_reason string, http_status int,
size_bytes bigint, sha256 string, num_attempts int, opt_out_evidence string, shard string, fetched_at string"""
SCHEMA = schema_of(ROW)
BATCH_ROWS = 10_000
EXTENSIONS = {"jpeg": "jpg"}
VERSION = 2


def _are_networks(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        ip_network(name)
    return names


class Config(StageConfig):
    resize_px: int | None = pydantic.Field(default=None, gt=0)
    """Longest side: a larger image is made smaller, and a JPEG. None: as it came, without its metadata."""
    jpeg_quality: int = pydantic.Field(default=95, ge=1, le=100)
    """Of what is made smaller."""
    max_bytes: int = pydantic.Field(default=20 << 20, gt=0)
    """Of an image as it comes, and unfolded."""
    max_pixels: int = pydantic.Field(default=MAX_PIXELS, gt=0)
    honour_opt_outs: bool = True
    """robots.txt, X-Robots-Tag, robots meta elements, TDM reservations; see `etl/web/opt_out.py`."""
    user_agent: str = pydantic.Field(default="dfn-etl/0.1", min_length=1, exclude=True)
    """Say who you are and how to reach you; what stands before / or a space is the name that robots.txt is read for."""
    deadline_seconds: float = pydantic.Field(default=30.0, gt=0, exclude=True)
    """For all attempts at one URL together."""
    connect_seconds: float = pydantic.Field(default=10.0, gt=0, exclude=True)
    max_redirects: int = pydantic.Field(default=5, ge=0, exclude=True)
    max_attempts: int = pydantic.Field(default=3, gt=0, exclude=True)
    """Of a URL whose failure may pass: no connection, no answer in time, half an answer, status 429 or 5xx."""
    backoff_seconds: float = pydantic.Field(default=1.0, ge=0, exclude=True)
    """Before the second attempt; twice as long before each further one, and as long as Retry-After says."""
    concurrency: int = pydantic.Field(default=64, gt=0, exclude=True)
    """Connections of one task."""
    per_host: int = pydantic.Field(default=2, gt=0, exclude=True)
    """Connections to one host."""
    delay_seconds: float = pydantic.Field(default=0.1, ge=0, exclude=True)
    """Between the starts of two requests to one host."""
    allowed_networks: Annotated[tuple[str, ...], pydantic.AfterValidator(_are_networks)] = pydantic.Field(
        default=(), exclude=True
    )
    """Networks such as 10.1.0.0/16 that may be connected to although they are not public: an intranet, a test."""
    blocklists: tuple[Path, ...] = pydantic.Field(default=(), exclude=True)
    """Text files of URLs, domains, sha256 and perceptual hashes; see `etl/intake/blocklists.py`."""
    stay_out: StayOut = pydantic.Field(default=StayOut(), exclude=True)
    """Known to a run only: what was forgotten."""
    pairs_per_shard: int = pydantic.Field(default=1000, gt=0, exclude=True)
    chunk_rows: int = pydantic.Field(default=50_000, gt=0, exclude=True)
    """Candidates per commit, about: whole hosts."""
    num_tasks: int | None = pydantic.Field(default=None, gt=0, exclude=True)
    """Tasks per chunk; None: spark.sql.shuffle.partitions."""
    web_folder: str = pydantic.Field(default="", exclude=True)
    """Known to a run only: where the dataset's shards are; a folder that driver and executors share."""

    @property
    def folder(self) -> Path:
        """Of what this config makes: another size is another folder, whose shards never mix with these."""
        return Path(self.web_folder) / digest(VERSION, self.model_dump(mode="json"))[:12]

    @property
    def limits(self) -> Limits:
        from etl.web.addresses import networks  # of the extra `web`, as is what a task runs
        from etl.web.fetch import Limits

        return Limits(
            self.user_agent, self.deadline_seconds, self.connect_seconds, self.max_bytes, self.max_redirects,
            self.max_attempts, self.backoff_seconds, self.honour_opt_outs, networks(self.allowed_networks),
            self.concurrency,
        )  # fmt: skip


def prepare(candidates: DataFrame, *, config: Config) -> Facts:
    """Takes over what a killed run left. Raises UserError for a blocklist that cannot be read."""
    read_blocklists(config.blocklists)
    config.folder.mkdir(parents=True, exist_ok=True)
    return {"num_taken_over": take_over(config.folder)}


def transform(candidates: DataFrame, *, config: Config, facts: Facts) -> DataFrame:
    spread = candidates.select(*WANTED).repartition(tasks(config.num_tasks, candidates), "host")
    # Python: many requests at once, and no image may enter the JVM.
    fetched = spread.mapInArrow(downloader(config), ROW)
    return fetched.withColumn("fetched_at", F.to_timestamp("fetched_at"))


def tidy(config: Config, written: DataFrame) -> None:
    """Removes the notes whose rows are all committed."""
    found = [(str(path), uid) for path, uids in notes(config.folder) for uid in uids]
    if found:
        frame = written.sparkSession.createDataFrame(found, "path string, uid string")
        left = frame.join(written.select("uid"), on="uid", how="left_anti").select("path").distinct().collect()
        for path in {path for path, _ in found} - {row["path"] for row in left}:
            Path(path).unlink(missing_ok=True)


def downloader(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Candidates to rows of `fetches`, one each."""

    def download(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        task = context.partitionId() if context else 0
        take_over(config.folder, task)  # of an attempt at this task that failed
        known = noted(config.folder)
        rows = [row for batch in batches for row in batch.to_pylist()]
        done = [known[row["uid"]] for row in rows if row["uid"] in known]
        left = [row for row in rows if row["uid"] not in known]
        sink = ShardSink(config.folder, task, config.pairs_per_shard)
        done += asyncio.run(Download(config, sink).run(left)) if left else []
        for start in range(0, len(done), BATCH_ROWS):
            part = done[start : start + BATCH_ROWS]
            yield batch_of(SCHEMA, len(part), **{name: [row.get(name) for row in part] for name in SCHEMA.names})

    return download


class Download:
    """The rows of one task, and where their images go."""

    def __init__(self, config: Config, sink: ShardSink) -> None:
        self._config, self._sink = config, sink
        self._blocklist: Blocklist = read_blocklists(config.blocklists, config.stay_out)
        self._failed: list[Row] = []
        self._thread = ThreadPoolExecutor(1)  # decodes and writes, while the loop reads from the network

    async def run(self, rows: list[Row]) -> list[Row]:
        """A row of `fetches` for each. What was stored before an error is published all the same."""
        from etl.web.fetch import Fetched, Fetcher
        from etl.web.pace import Pace, fetch_all

        queues: dict[str, list[tuple[str, Row]]] = {}
        for row in rows:
            if (evidence := row["opt_out_evidence"]) and self._config.honour_opt_outs:
                self._end(row, Fetched("opted_out", "as its page says", evidence=f"{row['page_url']}: {evidence}"))
            else:
                queues.setdefault(row["host"], []).append((row["url"], row))
        pace = Pace(self._config.per_host, self._config.delay_seconds)
        try:
            async with Fetcher(self._config.limits, self._blocklist) as fetcher:
                await fetch_all(queues.values(), fetcher, pace, self._done)
        finally:
            self._thread.shutdown()
            self._sink.close()
        return self._failed + self._sink.stored

    async def _done(self, row: Row, found: Fetched) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end, row, found)

    def _end(self, row: Row, found: Fetched) -> None:
        ended = fetch_row(row, found)
        if found.status == "ok":
            try:
                image, extension = self._checked(row, found.data, str(ended["sha256"]))
            except ImageError as error:
                ended |= {"status": error.status, "status_reason": error.reason}
                if error.reason == REASON:  # its hash is not written down again
                    ended["sha256"] = None
            else:
                facts = {name: row[name] for name in ("uid", "url", "page_url", "crawl")}
                facts |= {"caption": row["text"], "sha256": sha256_hex(image), "original_sha256": ended["sha256"]}
                self._sink.add(ended, image, extension, row["text"], facts)
                return
        self._failed.append(ended)

    def _checked(self, row: Row, data: bytes, sha256: str) -> tuple[bytes, str]:
        if (why := self._blocklist.of_sha256(sha256)) is not None:
            raise ImageError("blocklisted", why)
        if row["sha256"] and row["sha256"].lower() != sha256:
            raise ImageError("hash_mismatch", f"wanted sha256 {row['sha256']}")
        if (why := self._blocklist.of_bytes(data, self._config.max_pixels)) is not None:
            raise ImageError("blocklisted", why)
        return stored_form(data, self._config)


def fetch_row(row: Row, found: Fetched) -> Row:
    """A row of `fetches`, without its shard."""
    return {
        "uid": row["uid"], "url": row["url"], "final_url": found.final_url, "status": found.status,
        "status_reason": found.reason, "http_status": found.http_status,
        "size_bytes": len(found.data) if found.status == "ok" else None,
        "sha256": sha256_hex(found.data) if found.status == "ok" else None, "num_attempts": found.num_attempts,
        "opt_out_evidence": found.evidence, "shard": None,
        "fetched_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }  # fmt: skip


def stored_form(data: bytes, config: Config) -> tuple[bytes, str]:
    """Bytes without metadata, and their extension.

    JPEG, PNG and WebP stay as they are in every pixel; what has to be made smaller becomes a JPEG; the first frame of
    another format, or of what cannot be stripped, a PNG. Raises ImageError.
    """
    kind, width_px, height_px = measure(data, max_pixels=config.max_pixels)
    if config.resize_px is not None and (longest_px := max(width_px, height_px)) > config.resize_px:
        # A JPEG may be decoded at a half of its size and less, while it stays twice as large as what is wanted. For
        # making smaller, whole steps are means of squares, as img2dataset's are, and the rest is Hamming's filter.
        twice_px = -(-2 * min(width_px, height_px) * config.resize_px // longest_px)
        image = decode_rgb(data, max_pixels=config.max_pixels, smallest_px=twice_px)
        image.thumbnail((config.resize_px, config.resize_px), Image.Resampling.HAMMING, reducing_gap=1.0)
        return _encoded(image, "JPEG", quality=config.jpeg_quality), "jpg"
    stripped = strip_metadata(data)
    if stripped.is_stripped:
        return stripped.data, EXTENSIONS.get(kind, kind)
    return _encoded(decode_rgb(data, max_pixels=config.max_pixels), "PNG"), "png"


def _encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    image.save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


STAGE = Stage(
    "download", reads={"candidates": Read(CANDIDATES)}, writes=(FETCHES,), config=Config, transform=transform,
    resume="rows", version=VERSION, kinds=("pool", "filter", "dev", "eval"), prepare=prepare, committed=tidy,
)  # fmt: skip
