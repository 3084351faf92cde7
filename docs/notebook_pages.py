"""A page for each notebook, made from its source whenever the documentation is built: its text, and its code as code.

A hook of MkDocs. Reads notebooks/; writes nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
HEADER, CELL, MAGIC = "# Databricks notebook source\n", "# COMMAND ----------\n", "# MAGIC "


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages to those that are files."""
    for path in sorted(NOTEBOOKS.glob("*.py")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(path.read_text())))
    return files


def page(source: str) -> str:
    """The cells of a Databricks notebook as Markdown. Raises ValueError for a source that is none."""
    if not source.startswith(HEADER):
        raise ValueError(f"wanted {HEADER.strip()!r} first; found {source[:40]!r}")
    return "\n\n".join(_cell(cell.strip("\n")) for cell in source.removeprefix(HEADER).split(CELL)) + "\n"


def _cell(cell: str) -> str:
    if not cell.startswith(f"{MAGIC}%md"):
        return f"```python\n{cell}\n```"
    lines = [line.removeprefix(MAGIC.strip()).removeprefix(" ") for line in cell.splitlines()]
    return re.sub(r"^%md\s*", "", "\n".join(lines)).strip()
