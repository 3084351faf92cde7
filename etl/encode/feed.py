"""Pointers -> decoded images, ahead of the model. Blocks of neighbours: one range read, one thread, one hand-over each.

Touches shards (reads). Memory is bounded by the number of blocks in flight, whatever the size of a shard.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import local
from typing import Any, NamedTuple

from etl.tar import RangeReader, ShardError
from models.images import ImageError, StatusError

BLOCK_ROWS = 32
"""Rows of one hand-over: 1.6 MB of usual photos, read in one go."""

Decode = Callable[[bytes], tuple[Any, ...]]
"""The bytes of a file -> what each reader takes of it. Raises ImageError. Called from several threads."""


class Row(NamedTuple):
    """A pair to encode: a pointer into a shard, or the bytes themselves; and its caption."""

    place: tuple[str, int, int] | bytes | None
    """(uri, offset_bytes, size_bytes), the image's bytes, or None where the pair has no pixels."""
    text: str


@dataclass
class Block:
    """Rows in order, what was decoded of each (or the error that says why not), and the seconds that it took."""

    rows: list[Row]
    images: list[tuple[Any, ...] | StatusError] = field(default_factory=list)
    read_seconds: float = 0.0
    decode_seconds: float = 0.0


class Feed:
    """Reads and decodes in threads while the caller uses what is ready. `wait_seconds`: how long the caller waited."""

    def __init__(self, decode: Decode, *, threads: int = 1, block_rows: int = BLOCK_ROWS) -> None:
        self.wait_seconds = 0.0
        self._decode, self._threads, self._block_rows = decode, threads, block_rows
        self._ahead = 2 * threads + 2
        self._local = local()

    def blocks(self, rows: Iterable[Row]) -> Iterator[Block]:
        """Blocks in order, cut from `rows` as they come. At most 2 x threads + 2 are in flight."""
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._threads, thread_name_prefix="decode"))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            flying: deque[Future[Block]] = deque()
            for part in _parts(rows, self._block_rows):
                flying.append(pool.submit(self._work, part))
                if len(flying) > self._ahead:
                    yield self._next(flying)
            while flying:
                yield self._next(flying)

    def _next(self, flying: deque[Future[Block]]) -> Block:
        started = time.perf_counter()
        block = flying.popleft().result()
        self.wait_seconds += time.perf_counter() - started
        return block

    def _work(self, rows: list[Row]) -> Block:
        started = time.perf_counter()
        if not hasattr(self._local, "reader"):
            self._local.reader = RangeReader()
        files = _read(self._local.reader, [row.place for row in rows])
        read = time.perf_counter()
        images = [self._decoded(file) for file in files]
        return Block(rows, images, read - started, time.perf_counter() - read)

    def _decoded(self, file: bytes | StatusError) -> tuple[Any, ...] | StatusError:
        if not isinstance(file, bytes):
            return file
        try:
            return self._decode(file)
        except ImageError as error:
            return error


def _parts(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _read(reader: RangeReader, places: Sequence[tuple[str, int, int] | bytes | None]) -> list[bytes | StatusError]:
    """The bytes of each, neighbours in one read; one that cannot be read costs no other."""
    pointers = [place for place in places if isinstance(place, tuple)]
    found = iter(_read_all(reader, pointers))
    missing = ImageError("no_vectors", "the pair has no pixels")
    return [next(found) if isinstance(p, tuple) else missing if p is None else p for p in places]


def _read_all(reader: RangeReader, pointers: list[tuple[str, int, int]]) -> list[bytes | StatusError]:
    found: list[bytes | StatusError] = []
    while len(found) < len(pointers):
        try:
            for data in reader.read_many(pointers[len(found) :]):
                found.append(data)  # noqa: PERF402 - those before the one that fails stay
        except ShardError as error:
            found.append(error)
    return found
