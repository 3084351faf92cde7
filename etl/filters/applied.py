"""The config's rule applied to a pool, with its filters made and their scores brought up to date first.

Touches tables through the project's stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etl.filters.filters import Filters, check_ingested, filter_folder
from etl.project import Project
from etl.selection.receipts import receipt_of
from etl.stages import selection
from etl.stages.selection import DFN


def given(project: Project, filter: str) -> dict[str, Path | str]:
    """What `--filter` names, by the name that a rule has for it; nothing where it is empty.

    Args:
        filter: one of the config's filters, a folder, models:/NAME@ALIAS, or cosine: the encoder's own vectors.
    """
    if not filter:
        return {}
    if filter in project.config.filters:
        return {DFN: filter}
    return {DFN: project.cosine_filter() if filter == "cosine" else filter_folder(project, filter)}


def selected(project: Project, pool: str, filter: str) -> dict[str, Any]:
    """The receipt of what the rule in `stages.selection` keeps. Raises UserError where nothing was ever ingested."""
    rule = project.config.stages.selection  # type: ignore[attr-defined]
    settings = Filters(project, pool, given(project, filter)).scoring(rule)
    check_ingested(project, pool)  # a rule need not name a filter
    done = project.run(selection.STAGE, pool, settings)
    return receipt_of(project.store, pool, str(done.slice["selection_id"]))
