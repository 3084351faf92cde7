"""Files that a rule reads, pinned by their sha256: driver and executors read the same bytes, or say so. Reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from etl.stage import UserError


def pinned_path(path: Path) -> str:
    """As executors get it, and as `pins` names it: whole, since they stand in another folder."""
    return str(path.expanduser().absolute())


def pinned_bytes(path: Path, sha256: Mapping[str, str]) -> bytes:
    """The bytes of a file. Raises UserError where it cannot be read, or is not the one of `pins`, if that names it."""
    name = pinned_path(path)
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"rule: wanted the file {name}; found: {error.strerror}; fix: name one that is there") from None
    if name in sha256 and hashlib.sha256(data).hexdigest() != sha256[name]:
        raise UserError(f"rule: wanted {name} as it was when the rule was made; found another; fix: restore it")
    return data


def pins(paths: Iterable[Path]) -> dict[str, str]:
    """Whole path -> sha256, sorted. Raises UserError for what cannot be read."""
    return {pinned_path(path): hashlib.sha256(pinned_bytes(path, {})).hexdigest() for path in sorted(paths)}
