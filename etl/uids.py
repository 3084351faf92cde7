"""What names a pair for good, where its source does not. Touches nothing."""

from __future__ import annotations

import hashlib


def uid_of(url: str | None, text: str | None) -> str:
    """md5(url, NUL, text): 32 lower-case hex digits."""
    return hashlib.md5(f"{url or ''}\0{text or ''}".encode(), usedforsecurity=False).hexdigest()
