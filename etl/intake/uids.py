"""What names a pair for good, where its source does not. Touches nothing."""

from __future__ import annotations

import hashlib


def uid_of(url: str | None, text: str | None) -> str:
    """md5(url, NUL, text): 32 lower-case hex digits."""
    return uid_of_bytes(url or "", (text or "").encode())


def uid_of_bytes(name: str, text: bytes) -> str:
    """`uid_of` for a text that may be no UTF-8, and the name of what has no URL."""
    content = name.encode("utf-8", "surrogateescape") + b"\0" + text
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
