"""What a person sees while the application works: lines, a live bar per long stage, one JSON line; and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from etl.job import Progress as Done


INTERRUPTED = "interrupted: what was committed stays; run it again to go on"


class Reporter:
    """Lines go to standard error, so that `--json` owns standard output."""

    def __init__(self, *, is_quiet: bool = False, is_json_lines: bool = False) -> None:
        self._is_json_lines = is_json_lines
        self._console = Console(stderr=True, quiet=is_quiet, highlight=False)
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def say(self, line: str) -> None:
        """One line, with the seconds since the start."""
        if self._is_json_lines:
            self._json({"said": line})
            return
        seconds = f"{time.monotonic() - self._started:7.1f} s"
        self._console.print(f"[dim]{seconds}[/dim]  {escape(line)}", soft_wrap=True)

    def progress(self, at: Done) -> None:
        """After each chunk: a live bar on a terminal, a line in a log."""
        rate = at.rows_per_second
        left = (at.rows_total - at.rows_done) / rate if rate else 0
        if self._is_json_lines:
            told = {"stage": at.stage, "dataset": at.dataset, "rows_done": at.rows_done, "rows_total": at.rows_total}
            told |= {"rows_per_second": round(rate, 3), "seconds_left": round(left, 1), "busiest": at.busiest}
            self._json(told)
            return
        if not self._console.is_terminal:
            place = f"{at.stage:<14} {at.dataset:<14} {at.rows_done:,} of {at.rows_total:,} rows"
            self.say(", ".join(filter(None, [place, f"{rate:,.0f} rows/s", f"{left:.0f} s left", at.busiest])))
            return
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bar.start()
        key = (at.stage, at.dataset)
        if key not in self._tasks:
            self._tasks[key] = self._bar.add_task(f"{at.stage} {at.dataset}", total=at.rows_total, rate="")
        self._bar.update(self._tasks[key], completed=at.rows_done, rate=f"{rate:,.0f} rows/s {at.busiest}")
        if at.rows_done >= at.rows_total:
            self.close()

    def _json(self, told: Mapping[str, Any]) -> None:
        """A line for programs, with the seconds since the start."""
        line = json.dumps({"seconds": round(time.monotonic() - self._started, 1), **told})
        self._console.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._tasks = None, {}


def stop_at_signals() -> None:
    """Ctrl-C and SIGTERM end the process at once: what is committed is whole, and the JVM ends when its parent has.

    Spark's own handler would ask the JVM, in the middle of another question, to cancel its jobs.
    """

    def stop(number: int, _: object) -> None:
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        os.write(2, f"{show_cursor}{INTERRUPTED}\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


WIDE = 100
"""Characters of a mapping on one line; a longer one gets a line for each of its values."""


def emit(result: Mapping[str, Any], *, as_json: bool) -> None:
    """The result: one JSON line for programs, aligned lines for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=str, sort_keys=True) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _lines(result, ""))


def _lines(result: Mapping[str, Any], indent: str) -> Iterator[str]:
    """A line for each plain value and flat mapping; what holds more is indented below its name."""
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        rows = value if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value) else []
        if isinstance(value, Mapping) and (_is_deep(value) or len(_flat(value)) > WIDE):
            yield f"{indent}{key}"
            yield from _lines(value, indent + "  ")
        elif rows:
            yield from (f"{indent}{key:<{width}}  {_flat(row)}" for row in rows)
        else:
            yield f"{indent}{key:<{width}}  {_flat(value) if isinstance(value, Mapping) else value}"


def _is_deep(value: Mapping[str, Any]) -> bool:
    return any(isinstance(inner, Mapping) for inner in value.values())


def _flat(row: Mapping[str, Any]) -> str:
    """On one line, without what is not set."""
    return ", ".join(f"{key}: {value}" for key, value in row.items() if value is not None) or "-"
