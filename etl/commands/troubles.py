"""What the machine did to a run, told in one line: full disk or memory, a damaged table, a JVM gone, a missing package.

Reads what an exception says.
"""

from __future__ import annotations

import re

FULL = "No space left on device"
SHORT_OF_MEMORY = re.compile(r"UNABLE_TO_ACQUIRE_MEMORY|SparkOutOfMemoryError|OutOfMemoryError: Java heap space")
UNREADABLE = re.compile(r"\[FAILED_READ_FILE\.?\w*\][^\n]*?reading file (?:file:)?(\S+?)\.?\s")
WRITTEN = re.compile(r"writing rows to (?:file:)?(\S+?)\.?\s")
NAMED = re.compile(rf"{FULL}: '([^']+)'|(?:FileNotFoundException|FileSystemException): (\S+)[ :].*{FULL}")
MISSING = re.compile(r"No module named '(\w+)")
EXTRAS = {
    "spark": ("pyspark",),
    "train": ("torch", "torchvision", "open_clip", "timm", "transformers", "onnx", "onnxruntime", "webdataset"),
    "web": ("aiohttp", "fastwarc", "protego", "resiliparse"),
    "s3": ("s3fs",),
    "corpora": ("resvg_py",),
}
"""Extra of pyproject.toml -> the modules that it brings."""


def told(error: BaseException) -> str | None:
    """`wanted ...; found ...; fix: ...` of an exception of Python's, of Spark's or of a task's; None of any other."""
    text = f"{error}\n"
    if found := MISSING.search(text):
        extra = next((extra for extra, modules in EXTRAS.items() if found[1] in modules), None)
        where = "" if isinstance(error, ModuleNotFoundError) else ", on every executor too"
        return extra and f"wanted {found[1]}{where}; found none; fix: pip install 'dfn-etl[{extra}]'"
    if isinstance(error, ConnectionRefusedError | ConnectionResetError) or type(error).__name__ == "Py4JNetworkError":
        return "wanted Spark's JVM; found it gone: killed, or out of memory; fix: run again, what was committed stays"
    if SHORT_OF_MEMORY.search(text):
        return (
            "wanted room in memory for a task's rows; found too little; fix: more and smaller tasks, one for two "
            "million rows: --set 'spark.conf={spark.sql.shuffle.partitions: \"64\"}', or more spark.driver.memory"
        )
    if FULL in text:
        matches = [found for pattern in (NAMED, WRITTEN) if (found := pattern.search(text))]
        paths = [path for match in matches for path in match.groups() if path]
        where = paths[0] if paths else "where Spark writes: its tables, or spark.local.dir"
        return f"wanted room for what is written to {where}; found the disk full; fix: make room, and run again"
    if found := UNREADABLE.search(text):
        return (
            f"wanted a table's file at {found[1]} whole; found it damaged or gone; "
            "fix: see 'When a table is damaged' in docs/how-to/resume.md"
        )
    return None
