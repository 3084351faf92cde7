"""Where everything downloaded is kept. Makes folders."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$DFN_CACHE, else ~/.cache/dfn-etl."""
    return Path(os.environ.get("DFN_CACHE") or Path.home() / ".cache" / "dfn-etl")


def made(folder: Path) -> Path:
    """`folder`, made if it was not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
