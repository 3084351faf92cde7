"""What the versions of a table say of themselves: the operation, and the note that this application wrote. Touches
nothing; `store.py` reads logs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etl.stage import Slice, overlap

NO_DATA_CHANGE = {
    "OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "CREATE TABLE", "ADD CONSTRAINT", "ADD COLUMNS",
}  # fmt: skip


@dataclass(frozen=True)
class Commit:
    """One version in a table's history, with what this application wrote beside the data."""

    version: int
    operation: str
    note: dict[str, Any]
    is_append: bool = False
    """Rows came, and none went or changed."""

    @staticmethod
    def of(version: int, operation: str, user_metadata: str | None, parameters: Mapping[str, Any] | None) -> Commit:
        """From what a log's commitInfo, or a row of DESCRIBE HISTORY, says."""
        return Commit(version, operation, _note(user_metadata), (parameters or {}).get("mode") == "Append")

    def changes(self, where: Slice) -> bool:
        """Whether rows of a slice may have changed: not by compaction, nor by a commit of another slice."""
        return self.operation not in NO_DATA_CHANGE and overlap(self.note.get("slice", {}), where)


def data_version(history: Iterable[Commit], where: Slice) -> int:
    """The newest version in which rows of a slice changed; -1 where none is known."""
    return max((commit.version for commit in history if commit.changes(where)), default=-1)


def _note(text: str | None) -> dict[str, Any]:
    try:
        note = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(note, dict):
        return {}
    note["slice"] = {k: v if isinstance(v, str) else tuple(v) for k, v in note.get("slice", {}).items()}
    return note
