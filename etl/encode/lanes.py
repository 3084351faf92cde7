"""One pass over decoded images, many models: full batches as images come, captions by the window. Touches nothing.

A lane is one model's part of the pass. Rows leave in order, when every lane has done with them: the output is cut
otherwise than the input, which an iterator pandas UDF may do as long as rows and order stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from etl.encode.feed import Block, Feed, Row
from models.images import StatusError

WINDOW_ROWS = 512
"""Captions encoded together: enough of each length to fill batches, and bounded whatever comes in one Arrow batch."""
FEW_ROWS = 200
"""Fewer rows than this say nothing of the share of invalid ones."""
TIMINGS = ("read_seconds", "decode_seconds", "model_seconds", "wait_seconds", "num_oom_halvings")
"""Columns of every pass: threads reading, threads decoding, the model busy, the model waiting for images; and how often
a batch did not fit into the device's memory and was halved."""

Columns = dict[str, list[Any]]


class Reader(Protocol):
    """A model of the pass. Loaded once per worker process."""

    @property
    def batch_size(self) -> int:
        """Images of a forward pass."""

    @property
    def num_oom_halvings(self) -> int:
        """How often a batch did not fit, since it was loaded."""

    @property
    def columns(self) -> Sequence[str]:
        """What it gives of a row, beside `status` and `status_reason`."""

    def encode(self, images: list[Any]) -> Iterable[Any]:
        """At most `batch_size` prepared images -> one result each."""

    def finish(self, results: list[Any], texts: list[str]) -> Columns:
        """Results and captions of rows with an image -> `columns` and `status`, `status_reason`, a value per row."""


class InvalidOutputError(Exception):
    """A model gives no usable output for too many rows: its weights or its device are at fault, not the rows."""


class Lane:
    """What one reader has done, and what waits for a full batch. `seconds`: how long its model was busy."""

    def __init__(self, reader: Reader, *, on_batch: Callable[[int], None], max_invalid_fraction: float) -> None:
        self.seconds = 0.0
        self._reader, self._on_batch, self._max_invalid_fraction = reader, on_batch, max_invalid_fraction
        self._errors: list[StatusError | None] = []
        self._waiting: list[tuple[int, Any]] = []
        self._results: list[Any] = []
        self._num_rows = self._num_invalid = 0

    @property
    def num_oom_halvings(self) -> int:
        """Since the reader was loaded."""
        return self._reader.num_oom_halvings

    @property
    def num_ready(self) -> int:
        """Leading rows that wait for nothing."""
        return self._waiting[0][0] if self._waiting else len(self._errors)

    def add(self, images: Iterable[Any]) -> None:
        """Prepared images, or errors that say why there is none, in order of their rows."""
        for image in images:
            is_error = isinstance(image, StatusError)
            if not is_error:
                self._waiting.append((len(self._errors), image))
            self._errors.append(image if is_error else None)
            if len(self._waiting) == self._reader.batch_size:
                self.flush()

    def flush(self) -> None:
        """The model runs on what waits, also where that is no full batch."""
        if not self._waiting:
            return
        started = time.perf_counter()
        self._on_batch(len(self._waiting))
        self._results.extend(self._reader.encode([image for _, image in self._waiting]))
        self._waiting = []
        self.seconds += time.perf_counter() - started

    def take(self, texts: list[str]) -> pd.DataFrame:
        """The first len(texts) rows, which must be ready, with the reader's columns. They leave the lane."""
        started, count = time.perf_counter(), len(texts)
        errors, self._errors = self._errors[:count], self._errors[count:]
        is_ok = [error is None for error in errors]
        results, self._results = self._results[: sum(is_ok)], self._results[sum(is_ok) :]
        self._waiting = [(row - count, image) for row, image in self._waiting]
        columns = self._reader.finish(results, [text for text, ok in zip(texts, is_ok, strict=True) if ok])
        frame = pd.DataFrame(
            index=range(count), columns=[*self._reader.columns, "status", "status_reason"], dtype=object
        )
        for name, values in columns.items():
            column = np.empty(len(values), dtype=object)  # numpy would make a matrix of lists and bytes
            column[:] = values
            frame.loc[is_ok, name] = column
        for row, error in enumerate(errors):
            if error is not None:
                frame.loc[row, ["status", "status_reason"]] = error.status, error.reason
        self._hold_against_cap(columns["status"])
        self.seconds += time.perf_counter() - started
        return frame.where(frame.notna(), None)

    def _hold_against_cap(self, statuses: list[str]) -> None:
        self._num_rows += len(statuses)
        self._num_invalid += statuses.count("invalid_output")
        if self._num_rows >= FEW_ROWS and self._num_invalid > self._max_invalid_fraction * self._num_rows:
            found = f"{self._num_invalid} of {self._num_rows}"
            raise InvalidOutputError(
                f"wanted invalid output for at most {self._max_invalid_fraction:.1%} of rows; found {found}; "
                f"fix: check the encoder's weights and the device"
            )


Window = tuple[list[pd.DataFrame], pd.DataFrame]
"""Rows that are done: a frame per lane, and TIMINGS, which stand in the first row."""


def run_pass(feed: Feed, lanes: Sequence[Lane], rows: Iterable[Row]) -> Iterator[Window]:
    """Windows, in the order of the rows."""
    texts: list[str] = []
    clock = _Clock(feed, lanes)
    for block in feed.blocks(rows):
        clock.add(block)
        texts += [row.text for row in block.rows]
        for number, lane in enumerate(lanes):
            lane.add(image if isinstance(image, StatusError) else image[number] for image in block.images)
        if (ready := min(lane.num_ready for lane in lanes)) >= WINDOW_ROWS:
            yield [lane.take(texts[:ready]) for lane in lanes], clock.read(ready)
            texts = texts[ready:]
    for lane in lanes:
        lane.flush()
    if texts:
        yield [lane.take(texts) for lane in lanes], clock.read(len(texts))


class _Clock:
    """TIMINGS since they were last read."""

    def __init__(self, feed: Feed, lanes: Sequence[Lane]) -> None:
        self._feed, self._lanes = feed, lanes
        self._read = self._decode = 0.0
        self._seen = self._now()  # the worker's model may have served another task

    def _now(self) -> NDArray[np.float64]:
        busy, halvings = (sum(lane.seconds for lane in self._lanes), sum(lane.num_oom_halvings for lane in self._lanes))
        return np.array([busy, self._feed.wait_seconds, halvings])

    def add(self, block: Block) -> None:
        self._read += block.read_seconds
        self._decode += block.decode_seconds

    def read(self, num_rows: int) -> pd.DataFrame:
        now = self._now()
        told = [self._read, self._decode, *(now - self._seen)]
        self._read, self._decode, self._seen = 0.0, 0.0, now
        frame = pd.DataFrame(np.zeros((num_rows, len(TIMINGS))), columns=list(TIMINGS))
        frame.iloc[0] = told
        return frame
