"""What a Python process is: its packages, its copy of our code, its GPU. Touches nothing.

On executors it is asked by a function that is shipped whole, so that one without our code can still say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from etl.stage import series_udf

IMPORTS = ("numpy", "open_clip", "pandas", "pyarrow", "pyspark", "torch", "torchvision")
"""What executors import; their versions must be the driver's."""


def make_look(imports: tuple[str, ...] = IMPORTS) -> Callable[[], dict[str, Any]]:
    """A function that tells of the process it runs in; it needs nothing but the standard library there."""

    def look() -> dict[str, Any]:
        import hashlib
        import importlib
        import importlib.resources
        import os
        import socket
        import sys

        def code(package: str) -> dict[str, str]:
            place = importlib.resources.files(package)  # also within a zip
            content, folders = hashlib.sha256(), [("", place)]
            while folders:
                path, folder = folders.pop()
                for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
                    if entry.is_dir() and entry.name != "__pycache__":
                        folders.append((f"{path}{entry.name}/", entry))
                    elif entry.name.endswith(".py"):
                        content.update(f"{path}{entry.name}\0".encode() + entry.read_bytes())
            return {"place": str(place), "content": content.hexdigest()[:12]}

        found: dict[str, Any] = {"host": socket.gethostname(), "process": os.getpid(), "python": sys.version.split()[0],
                                 "packages": {}, "code": {}, "errors": {}, "gpu": None, "num_cuda": 0}  # fmt: skip
        for name in imports:
            try:
                found["packages"][name] = str(getattr(importlib.import_module(name), "__version__", "?"))
            except Exception as error:  # whatever a broken package raises is what is told
                found["errors"][name] = f"{type(error).__name__}: {error}"
        for package in ("etl", "models"):
            try:
                found["code"][package] = code(package)
            except Exception as error:
                found["errors"][package] = f"{type(error).__name__}: {error}"
        if "torch" in found["packages"]:
            import torch

            found["num_cuda"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if "pyspark" in found["packages"]:
            from pyspark import TaskContext

            context = TaskContext.get()
            gpu = context.resources().get("gpu") if context else None
            found["gpu"] = gpu.addresses[0] if gpu else None
        return found

    return look


def looks(imports: tuple[str, ...] = IMPORTS) -> Callable[..., Any]:
    """A pandas UDF: any column -> what `look` tells, as JSON, the same for every row of a task."""
    look = make_look(imports)

    def probe(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        import json
        import time

        import pandas

        time.sleep(0.2)  # so that no executor takes all tasks
        told = json.dumps(look())
        for batch in batches:
            yield pandas.Series([told] * len(batch))

    return series_udf(probe, "string")  # Python: it is the Python processes that are asked
