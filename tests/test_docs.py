"""The documentation is true to the code: commands, options, targets and configs are there; the tutorial runs."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from etl.__main__ import app
from etl.layers import layered

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each line of code that runs `dfn` or `make`, and of each such inline code."""
    text = page.read_text()
    blocks = [code for kind, code in FENCE.findall(text) if kind in ("", "sh")]
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines += re.findall(r"`((?:dfn|make) [^`\n]+)`", FENCE.sub("", text))
    for line in lines:
        if command := re.search(r"^(dfn|make) .*|etl/__main__\.py .*", line):
            words = shlex.split(command[0].partition(" > ")[0], comments=True)
            yield ["dfn" if words[0].endswith(".py") else words[0], *words[1:]]


def problems(words: list[str]) -> Iterator[str]:
    """What of a command is not there."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        yield from (f"no target {w}" for w in words[1:] if re.fullmatch(r"[a-z-]+", w) and w not in targets)
        return
    command = typer.main.get_command(app)
    rest = words[1:]
    while rest and hasattr(command, "commands") and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):
        if rest[:1] != ["COMMAND"]:
            yield f"no command {' '.join(words[:2])}"
        return
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    yield from (f"no option {w}" for w in rest if w.startswith("-") and w.partition("=")[0] not in options)
    named = [value for key, value in pairwise(rest) if key in ("--conf", "-c")]
    for name in named:
        if "." not in name:
            layered([name], [])  # raises where conf/ has none


def test_what_is_no_command_is_found():
    assert list(problems(["dfn", "slect", "--conf", "tiny"])) == ["no command dfn slect"]
    assert list(problems(["dfn", "select", "--fliter=x"])) == ["no option --fliter=x"]
    assert list(problems(["make", "tests", "PART=x"])) == ["no target tests"]
    with pytest.raises(Exception, match="no_such"):
        list(problems(["dfn", "run", "--conf", "no_such"]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_their_options_are_there(page):
    assert [(" ".join(words), problem) for words in commands(page) for problem in problems(words)] == []


def test_there_is_something_to_check():
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 50 and {words[1] for words in found if words[0] == "dfn"} >= {"run", "loop", "select", "doctor"}


def hook(name: str):
    """A hook of MkDocs, which are modules in docs/."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_every_column_of_every_table_is_in_the_reference():
    reference = hook("reference")
    page = reference.tables()
    assert "| `uid` | string | 32 lower-case hex digits; names the pair for good |" in page
    assert "## `" not in page and page.count("\n## ") >= 15
    assert list(reference.columns_of("a MAP<STRING, BIGINT> NOT NULL COMMENT 'it\\'s',\n  b INT")) == [
        ("`a`", "map<string, bigint>", "it's"), ("`b`", "int", "")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="wanted a column"):
        list(reference.columns_of("a"))
    assert "| `chunk_rows` | int |" in reference.configuration()
    assert "## dfn evalset add" in reference.commands()


def test_a_notebook_becomes_a_page_of_its_text_and_its_code():
    pages = hook("notebook_pages")
    source = (
        "# Databricks notebook source\n# MAGIC %md\n# MAGIC # Title\n# MAGIC\n# MAGIC Text `x`.\n\n"
        "# COMMAND ----------\n\na = 1\n\nb = 2\n\n# COMMAND ----------\n\n# MAGIC %md One line.\n"
    )
    assert pages.page(source) == "# Title\n\nText `x`.\n\n```python\na = 1\n\nb = 2\n```\n\nOne line.\n"
    with pytest.raises(ValueError, match="wanted '# Databricks notebook source' first"):
        pages.page("a = 1")
    nav = (ROOT / "mkdocs.yml").read_text()
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        page = pages.page(path.read_text())
        assert page.startswith("# ") and "MAGIC" not in page and page.count("```") % 2 == 0
        assert f"notebooks/{path.stem}.md" in nav


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_tutorial_runs_from_its_first_command_to_its_last(tmp_path):
    """All of it, one after another in one shell, as a reader would."""
    text = (ROOT / "docs" / "tutorial.md").read_text()
    script = "\n".join(["set -euo pipefail", *(code for kind, code in FENCE.findall(text) if kind == "sh")])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "build" / "tiny" / "report.html").exists()
    assert (tmp_path / "exported" / "manifest.json").exists()
    assert "problems  none" in done.stdout
