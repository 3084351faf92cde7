"""Jobs in a few processes, each with one core and without Spark; or, with one, in this process.

A process that is killed leaves nothing half done: a job's result appears whole, and is done anew otherwise.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from etl.evidence.base import Base
from etl.evidence.bench import Bench
from etl.evidence.config import EvidenceConfig
from etl.evidence.jobs import ArmJob, FilterJob, Job
from etl.stage import UserError

OnDone = Callable[[int, int], None]
"""Called after each job with (done, all)."""
_mine: dict[str, Bench] = {}


class Workers:
    """`do` returns when all jobs are done."""

    def __init__(self, bench: Bench, pool: ProcessPoolExecutor | None) -> None:
        self._bench, self._pool = bench, pool

    def do(self, jobs: Sequence[Job], on_done: OnDone = lambda done, wanted: None) -> int:
        """Filters first, so that no process waits for one that another trains. Returns how many were not done yet.

        Raises:
            UserError: a process died.
        """
        filters = [job for job in jobs if isinstance(job, FilterJob)]
        for job in jobs:
            if isinstance(job, ArmJob) and job.scorer:
                filters += job.scorer.filters
        wanted = list(dict.fromkeys([*filters, *jobs]))
        left = [job for job in wanted if self._bench.result(job) is None]
        for number, _ in enumerate(self._done(left), start=len(wanted) - len(left) + 1):
            on_done(number, len(wanted))
        return len(left)

    def _done(self, jobs: Sequence[Job]) -> Iterator[None]:
        if self._pool is None:
            for job in jobs:
                self._bench.do(job)
                yield
            return
        futures = [self._pool.submit(_do, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool:
            raise UserError("evidence: wanted all processes to live; found that one died, for lack of memory perhaps; "
                            "fix: run it again, it goes on; or --set evidence.processes=1") from None  # fmt: skip
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def workers(bench: Bench, config: EvidenceConfig, base: Base, output: Path) -> Iterator[Workers]:
    """As many processes as the config says."""
    if config.processes == 1:
        yield Workers(bench, None)
        return
    given = (config.model_dump(mode="json"), base, str(output), os.getpid())
    context = get_context("spawn")  # a fork would copy the threads of torch and of the gateway to the JVM, locks held
    with ProcessPoolExecutor(config.processes, context, _begin, given) as pool:
        yield Workers(bench, pool)


def _begin(config: dict[str, Any], base: Base, output: str, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _mine["bench"] = Bench(EvidenceConfig(**config), base, Path(output))


def _end_with(parent: int) -> None:
    """A parent that is killed cannot tell its children."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do(job: Job) -> None:
    _mine["bench"].do(job)
