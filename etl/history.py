"""What the versions of a table say of themselves: the operation, and the note that this application wrote.

Reads logs on a local disk, and removes one in which no version was ever written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from etl.stage import Slice, UserError, overlap

NO_DATA_CHANGE = {
    "OPTIMIZE", "VACUUM START", "VACUUM END", "SET TBLPROPERTIES", "CREATE TABLE", "ADD CONSTRAINT", "ADD COLUMNS",
}  # fmt: skip

COMMITS = "[0-9]" * 20 + ".json"
"""Of a Delta log: the files of its versions."""


@dataclass(frozen=True)
class Commit:
    """One version in a table's history, with what this application wrote beside the data."""

    version: int
    operation: str
    note: dict[str, Any]
    is_append: bool = False
    """Rows came, and none went or changed."""

    @staticmethod
    def in_file(path: Path) -> Commit:
        """From the file of one version in a table's log (Delta's protocol: one action a line, one of them commitInfo).

        Raises UserError for a file that is not whole. Delta itself takes an empty one for a commit that did nothing:
        what it had added would be gone without a word.
        """
        try:
            actions = [json.loads(line) for line in path.read_text().splitlines()]
            told: dict[str, Any] = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        except (ValueError, TypeError) as error:
            raise _damaged(path, f"it cut or altered ({type(error).__name__})") from None
        if not actions:
            raise _damaged(path, "it empty")
        return Commit.of(
            int(path.stem), told.get("operation", ""), told.get("userMetadata"), told.get("operationParameters")
        )

    @staticmethod
    def of(version: int, operation: str, user_metadata: str | None, parameters: Mapping[str, Any] | None) -> Commit:
        """From what a log's commitInfo, or a row of DESCRIBE HISTORY, says."""
        return Commit(version, operation, _note(user_metadata), (parameters or {}).get("mode") == "Append")

    def changes(self, where: Slice) -> bool:
        """Whether rows of a slice may have changed: not by compaction, nor by a commit of another slice."""
        return self.operation not in NO_DATA_CHANGE and overlap(self.note.get("slice", {}), where)


def is_made(log: Path) -> bool:
    """Whether a table has this log. A kill within its making leaves a folder: no commit, and no rows beside it."""
    return any(log.glob(COMMITS)) or (log.is_dir() and any(log.parent.rglob("*.parquet")))


def clear_unmade(log: Path) -> None:
    """Removes what a kill within a table's making left, which Delta would take for a table; touches no other log."""
    if log.is_dir() and not is_made(log):
        shutil.rmtree(log)


def refuse_gaps(log: Path, paths: Sequence[Path]) -> None:
    """Versions (files of a log, newest first) follow one another; a table that is not made yet has none.

    Raises UserError, naming one that is missing.
    """
    if not paths and is_made(log):
        raise _damaged(log / f"{0:020d}.json", "it and all others gone")
    versions = [int(path.stem) for path in paths]
    for newer, older in pairwise(versions):
        if newer != older + 1:
            raise _damaged(log / f"{older + 1:020d}.json", "it gone")


def _damaged(path: Path, found: str) -> UserError:
    return UserError(
        f"table {path.parent.parent}: wanted version {int(path.stem)} whole; found {found}, in {path}; "
        "fix: see 'When a table is damaged' in docs/how-to/resume.md"
    )


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
