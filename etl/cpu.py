"""CPU seconds of this process and all that it started: what a run costs, however busy the machine is. Reads /proc."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil  # type: ignore[import-untyped]
from pyspark.sql import SparkSession


def cpu_seconds() -> float:
    """Of this process, the JVM and the Python workers below it, user and system, since they began.

    Children that ended count once somebody has waited for them. Executors on other machines are not seen.
    """
    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):  # ended meanwhile
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class Meter:
    """How busy the cores were since it was last read."""

    def __init__(self) -> None:
        self._at, self._cpu = time.monotonic(), cpu_seconds()

    def read(self) -> float:
        """Share of all cores of this machine that `cpu_seconds` counts, 0 to 1."""
        at, cpu = time.monotonic(), cpu_seconds()
        share = (cpu - self._cpu) / max((at - self._at) * (os.cpu_count() or 1), 1e-9)
        self._at, self._cpu = at, cpu
        return min(1.0, max(0.0, share))


def is_local(spark: SparkSession) -> bool:
    """Whether the executors are of this process: then what it counts is all that a run took."""
    return ".connect." not in type(spark).__module__ and str(spark.conf.get("spark.master", "")).startswith("local")
