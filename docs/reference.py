"""The reference pages, generated from the code whenever the documentation is built: commands, configuration, tables.

A hook of MkDocs. Reads the code; writes nothing.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pydantic
import typer
from mkdocs.structure.files import File, Files

NOT_SAID = "-"


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages to those that are files."""
    for name, content in (("cli", commands()), ("config", configuration()), ("tables", tables())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def commands() -> str:
    """A section for each command of `dfn`, with its arguments and options."""
    from etl.__main__ import app

    root = typer.main.get_command(app)
    lines = ["# Commands", "", "Exit codes: 0 done, 1 a bug, 2 a mistake that you can mend (one line: wanted, found, "
             "fix), 3 partial: some files were not read whole.", ""]  # fmt: skip
    for name, command in _commands(root, "dfn"):
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([name, *arguments, "[OPTIONS]"])
        lines += [f"## {name}", "", f"`{usage}`", "", _paragraphs(command.help), ""]
        rows = [[_option(p), _default(p), _cell(getattr(p, "help", None))] for p in command.params if p.name != "help"]
        lines += [*_table(["", "default", "meaning"], rows), ""]
    return "\n".join(lines)


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _option(param: Any) -> str:
    is_option = param.param_type_name == "option"
    names = [*param.opts, *param.secondary_opts] if is_option else [param.name.upper()]
    return ", ".join(f"`{name}`" for name in names)


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    if value is None or value is False or value == [] or value == "" or callable(value):
        return NOT_SAID
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def configuration() -> str:
    """A section for each model of the configuration, from the root on."""
    from etl.config import Config

    lines = ["# Configuration", "", "Layers of YAML, later ones over earlier ones (`--conf A --conf B`), then "
             "`--set a.b=value`. An unknown key is an error that names the nearest known one.", ""]  # fmt: skip
    seen: set[type] = set()
    waiting: list[tuple[str, type[pydantic.BaseModel]]] = [("", Config)]
    while waiting:
        path, model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        docs, rows = _field_docs(model), []
        for name, field in model.model_fields.items():
            key = f"{path}.{name}" if path else name
            inner = [t for t in _models(field.annotation) if t not in seen]
            waiting += [(f"{key}.NAME" if _is_mapping(field.annotation) else key, t) for t in inner]
            rows.append([f"`{name}`", _type(field.annotation), _value(field), docs.get(name, "")])
        own = model.__doc__ if model.__doc__ and not model.__doc__.startswith("!!!") else ""
        lines += [f"## {path or 'The whole'}", "", *([_paragraphs(own), ""] if own else []),
                  *_table(["key", "type", "default", "meaning"], rows), ""]  # fmt: skip
    return "\n".join(lines)


def _field_docs(model: type) -> dict[str, str]:
    """Field -> the string below it, of a model and those that it is made from."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if base is pydantic.BaseModel or not issubclass(base, pydantic.BaseModel):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # made by create_model
            continue
        body = tree.body[0].body  # type: ignore[attr-defined]
        for field, below in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[ast.unparse(field.target)] = _cell(str(below.value.value))
    return found


def _models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, pydantic.BaseModel):
            yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _is_mapping(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return origin is dict or any(_is_mapping(inner) for inner in typing.get_args(annotation))


def _type(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if arguments := [inner for inner in typing.get_args(annotation) if inner is not types.NoneType]:
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            return " or ".join(_type(inner) for inner in arguments)
        if typing.get_origin(annotation) is dict:
            return f"name -> {_type(arguments[1])}"
        return "list of " + _type(arguments[0])
    return getattr(annotation, "__name__", str(annotation)).removesuffix("Config") or "settings"


def _value(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if isinstance(value, pydantic.BaseModel):
        return "see below"
    return NOT_SAID if value in (None, "", (), [], {}) else f"`{value}`"


COLUMN = re.compile(r"^\s*(\w+) ([A-Z][\w<>,: ]*?)(?: NOT NULL)?(?: COMMENT '((?:[^'\\]|\\.)*)')?,?$")


def tables() -> str:
    """A section for each table: its columns with type and meaning, key, slices and checks."""
    from etl import tables as contracts
    from etl.stage import Table

    found = {t.name: t for t in vars(contracts).values() if isinstance(t, Table)}
    lines = ["# Tables", "", "Delta tables, a folder of them for each dataset. Units are suffixes: `_px`, `_bytes`, "
             "`_bits`, `_seconds`, `_fraction`, `_at` (UTC).", ""]  # fmt: skip
    for name, table in sorted(found.items()):
        facts = [f"Key: {', '.join(f'`{column}`' for column in table.key)}."]
        facts += (
            [f"Partitioned by {', '.join(f'`{column}`' for column in table.sliced_by)}."] if table.sliced_by else []
        )
        facts += ["One for all datasets."] if table.is_project_wide else []
        rows = [list(row) for row in columns_of(table.ddl)]
        checks = [f"- `{condition}`" for condition in table.checks.values()]
        lines += [f"## {name}", "", " ".join(facts), "", *_table(["column", "type", "meaning"], rows), ""]
        lines += ["Checked on every write:", "", *checks, ""] if checks else []
    return "\n".join(lines)


def columns_of(ddl: str) -> Iterator[tuple[str, str, str]]:
    """(column, type, meaning) of a contract. Raises ValueError for a line that is none."""
    for line in filter(str.strip, ddl.strip().splitlines()):
        match = COLUMN.match(line)
        if match is None:
            raise ValueError(f"wanted a column; found {line!r}")
        name, kind, comment = match.groups()
        yield f"`{name}`", kind.lower(), _cell((comment or "").replace("\\'", "'"))


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _cell(text: str | None) -> str:
    return re.sub(r"([|<>])", r"\\\1", " ".join((text or "").split()))


def _paragraphs(text: str | None) -> str:
    parts = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(" ".join(part.split()) for part in parts)
