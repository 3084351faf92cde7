"""Leases: files that one process holds at a time. Touches two files beside each other, NAME.lock and NAME.holder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from etl.stage import UserError


@contextmanager
def held(stem: Path) -> Iterator[None]:
    """Holds a lease. The operating system frees a dead holder's at once.

    Raises UserError with the holder's host and process.
    """
    lock = filelock.FileLock(f"{stem}.lock")
    holder = Path(f"{stem}.holder")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        who = holder.read_text() if holder.exists() else "an unknown process"
        raise UserError(
            f"wanted to write {stem.name}; found it being written by {who}; fix: wait for it or stop it"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
