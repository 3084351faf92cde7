"""The `dfn` command, and the file that spark-submit gets. The commands are in `etl/commands/`.

Exit codes: 0 done, 1 a bug, 2 a mistake that the user can mend, 3 partial: some files were not read whole.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from etl.commands import (
    ask,
    evalset,
    evaluate,
    evidence,
    forget,
    plan,
    privacy,
    promote,
    report,
    selecting,
    selftest,
    train,
    work,
)
from etl.commands.cli import State, app
from etl.commands.troubles import told
from etl.console import INTERRUPTED
from etl.samples.corpora import CorpusError
from etl.stage import UserError
from models.records import RegistryError, WeightsError

COMMANDS = (ask, evalset, evaluate, evidence, forget, plan, privacy, promote, report, selecting, selftest, train, work)
"""They joined the app when they were imported."""
PANELS = {
    "The main job": ("run", "retry", "loop", "select", "export", "promote", "backfill", "sync"),
    "How things stand": ("status", "growth", "verify", "plan", "doctor", "selftest"),
    "Why": ("filters", "diff", "explain", "lineage", "report"),
    "Models and evaluation": ("train", "evaluate", "privacy", "evalset", "evidence", "corpora"),
    "Taking down": ("forget",),
}
"""Of `dfn --help`, in order: heading -> commands."""


def arrange() -> None:
    """Gives each command its place in `dfn --help`."""
    panels = {name: panel for panel, names in PANELS.items() for name in names}  # in order
    every: list[Any] = [*app.registered_commands, *app.registered_groups]
    for command in every:
        command.rich_help_panel = panels[_name(command)]
    app.registered_commands.sort(key=lambda command: list(panels).index(_name(command)))


def _name(command: Any) -> str:
    return str(command.name or command.callback.__name__)


arrange()


def main() -> None:
    """Errors that a user can mend are one line and exit code 2; others are a bug, and say how to see the trace.

    What is done returns: a job of Databricks calls this in a process of its own, which need not take an exit for done.
    """
    if code := _run(app):
        sys.exit(code)


def _run(command: Callable[..., Any]) -> int:
    try:
        return int(command(standalone_mode=False) or 0)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (UserError, CorpusError, RegistryError, WeightsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except typer.Abort:
        sys.stderr.write(f"{INTERRUPTED}\n")
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            if message := error.format_message():  # none where there is no command: then the help was printed
                sys.stderr.write(f"error: {message}\n")
            return 2
        if State.is_debug:
            raise
        if trouble := told(error):
            sys.stderr.write(f"error: {trouble}\n")
            return 2
        first = str(error).strip().splitlines()[:1]
        sys.stderr.write(
            f"error: {type(error).__name__}: {first[0] if first else ''} (dfn --debug ... shows the trace)\n"
        )
        return 1


if __name__ == "__main__":
    main()
