"""What the machine did to a run, told in one line: a full disk, a damaged table. Reads what an exception says."""

from __future__ import annotations

import re

FULL = "No space left on device"
UNREADABLE = re.compile(r"\[FAILED_READ_FILE\.?\w*\][^\n]*?reading file (?:file:)?(\S+?)\.?\s")
WRITTEN = re.compile(r"writing rows to (?:file:)?(\S+?)\.?\s")
NAMED = re.compile(rf"{FULL}: '([^']+)'|(?:FileNotFoundException|FileSystemException): (\S+)[ :].*{FULL}")


def told(error: BaseException) -> str | None:
    """`wanted ...; found ...; fix: ...` of an exception of Python's, of Spark's or of a task's; None of any other."""
    text = f"{error}\n"
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
