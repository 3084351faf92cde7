"""What a machine was doing while a run trained: CPU, memory, disk, network, GPU, under MLflow's own names.

MLflow's monitors are used; its thread is not, for that sends to the server as it goes, and a server may be down.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from models.spool import Point

INTERVAL_SECONDS = 10.0


def _monitors() -> list[Any]:
    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except Exception:  # no NVIDIA driver or no pynvml, each with an error of its own
        return found
    return found


@contextmanager
def watched(interval_seconds: float = INTERVAL_SECONDS) -> Iterator[list[Point]]:
    """Yields a list that has a point a metric for each interval, and for the end, when the block is left."""
    points: list[Point] = []
    monitors, is_over = _monitors(), threading.Event()

    def sample(step: int) -> None:
        now = int(time.time() * 1000)
        for monitor in monitors:
            monitor.collect_metrics()
            points.extend(
                (f"system/{name}", float(value), now, step) for name, value in monitor.aggregate_metrics().items()
            )
            monitor.clear_metrics()

    def watch() -> None:
        step = 0
        while not is_over.wait(interval_seconds):
            sample(step)
            step += 1
        sample(step)

    thread = threading.Thread(target=watch, daemon=True, name="system-metrics")
    thread.start()
    try:
        yield points
    finally:
        is_over.set()
        thread.join()
