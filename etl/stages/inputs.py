"""The readers of ingest: one for each key of a dataset's config that names files. Runs on executors; reads files, and
packs images that lie in no tar (`etl/intake/packing.py`).

A reader takes a file and gives batches of some of the columns of `pairs`, with `number`, the place in the file, where
the order is another; and last the line on the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from etl.arrow import batch_of, count_from, schema_of
from etl.intake.blocklists import Blocklist, read_blocklists
from etl.intake.packing import (
    FOLDER_MARK,
    Beside,
    Packer,
    Sample,
    list_folders,
    packed,
    samples_of_folder,
    samples_of_list,
    samples_of_rows,
)  # fmt: skip
from etl.intake.table_lists import numbered
from etl.shards import Row, ShardSummary, list_shards, scan
from etl.stages.metadata import scan_metadata
from etl.storage import folder_of, with_storage

if TYPE_CHECKING:
    from etl.stages.ingest import Config

ROW = """uid string, url string, text string, source string, shard string, offset_bytes bigint, size_bytes bigint,
sha256 string, phash bigint, image_format string, width_px int, height_px int, status string, status_reason string"""
COLUMNS = [part.split()[0] for part in ROW.split(",")]
SCANNED = f"uri string, number bigint, is_file boolean, {ROW}"
SCHEMA = schema_of(SCANNED)
NUMBERED = schema_of(f"number bigint, {ROW}")
BATCH_ROWS = 10_000
HAS_PIXELS = ("ok", "missing_text", "invalid_text")
"""Statuses of rows whose image could be decoded."""
Scanned = Iterator[pa.RecordBatch | ShardSummary]


class Task(NamedTuple):
    """What all files of a task are read by."""

    config: Config
    blocklist: Blocklist

    def scan(self, uri: str) -> Iterator[Row | ShardSummary]:
        """A tar's rows; what a blocklist names has that for its status."""
        caps = {"max_pixels": self.config.max_pixels, "max_member_bytes": self.config.max_member_bytes}
        for item in scan(uri, source_default=self.config.source, **caps):
            if isinstance(item, ShardSummary) or item["status"] not in HAS_PIXELS:
                yield item
                continue
            url, sha256, phash, of = item["url"] or "", item["sha256"], item["phash"], self.blocklist
            why = of.of_url(url) or of.of_sha256(sha256) or of.of_phash(phash)
            yield item | ({"status": "blocklisted", "status_reason": why} if why else {})

    def packed(self, samples: Iterator[Sample]) -> Scanned:
        """Samples that lie in no tar, in tars from here on."""
        to = Packer(self.config.shards_root, self.scan, self.blocklist, self.config.max_pixels, self.config.source)
        return _batches(packed(samples, to))


def _shards(uri: str, task: Task) -> Scanned:
    rows = enumerate(task.scan(uri))
    return _batches(row if isinstance(row, ShardSummary) else (number, row) for number, row in rows)


def _metadata(uri: str, task: Task) -> Scanned:
    return scan_metadata(uri, columns=task.config.columns, source_default=task.config.source)


def _images(uri: str, task: Task) -> Scanned:
    """A folder of pictures, or a list of them."""
    config, ends = task.config, list[ShardSummary]()
    folder, mark, _ = uri.rpartition(FOLDER_MARK)
    if mark:
        source = samples_of_folder(folder, folder_of(config.images), config.max_member_bytes)
    else:
        source = samples_of_list(uri, config.columns, config.max_member_bytes)

    def samples() -> Iterator[Sample]:
        for item in source:
            if isinstance(item, ShardSummary):
                ends.append(item._replace(uri=uri))
            else:
                yield item

    yield from task.packed(samples())
    yield from ends


READERS: Mapping[str, Callable[[str, Task], Scanned]] = {"shards": _shards, "images": _images, "metadata": _metadata}
"""Key of a dataset's config -> how its files are read; those of an earlier key come first."""


def scanner(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Files to rows of SCANNED: one per sample, and one per file with status and reason of the file."""

    def scan_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        task = Task(config, read_blocklists(config.blocklists, config.stay_out))
        for file in (file for batch in batches for file in batch.to_pylist()):
            number = 0
            for item in READERS[file["reader"]](file["uri"], task):
                if isinstance(item, ShardSummary):
                    known = {"status": item.status, "status_reason": item.status_reason, "is_file": True}
                    yield batch_of(SCHEMA, 1, uri=file["uri"], **known)
                    continue
                yield _scanned(item, file["uri"], number)
                number += len(item)

    return with_storage(scan_files, config.storage)


def rows_scanner(config: Config) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Rows of a table, as `table_rows` gives them, to rows of SCANNED, one each."""

    def scan_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        task = Task(config, read_blocklists(config.blocklists, config.stay_out))
        for uri, rows in groupby(_tagged(batches), key=itemgetter(0)):
            for batch in task.packed(sample for _, sample in rows):
                yield _scanned(batch, uri, 0)

    return with_storage(scan_rows, config.storage)


def _tagged(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, Sample]]:
    for batch in numbered(batches):
        samples = samples_of_rows(batch, batch.column("number").to_pylist(), Beside("", 0))
        yield from zip(batch.column("uri").to_pylist(), samples, strict=True)


def _scanned(rows: pa.RecordBatch, uri: str, start: int) -> pa.RecordBatch:
    known = {"number": count_from(start, len(rows)), **{name: rows.column(name) for name in rows.schema.names}}
    return batch_of(SCHEMA, len(rows), uri=uri, is_file=False, **known)


def _batches(items: Iterator[Any]) -> Scanned:
    """(number, row) as batches; the line on a file as it is."""
    for is_file, group in groupby(items, key=lambda item: isinstance(item, ShardSummary)):
        while rows := list(islice(group, BATCH_ROWS)):
            if is_file:
                yield from rows
            else:
                yield pa.RecordBatch.from_pylist([{"number": number, **row} for number, row in rows], NUMBERED)


def list_inputs(kind: str, pattern: str) -> list[tuple[str, int, str]]:
    """(uri, size_bytes, etag) of what a key of READERS names. Of images a pattern that ends with / names folders."""
    if kind == "images" and pattern.endswith("/"):
        return list_folders(pattern)
    return [(file.uri, file.size_bytes, file.etag) for file in list_shards(pattern)]
