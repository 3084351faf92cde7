"""Config as nested keys: YAML files, later ones over earlier ones, then `a.b=c`. Touches YAML files, reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from etl.stage import UserError


def layered(names: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """The files' keys, later ones over earlier ones, and the overrides over them all. Raises UserError.

    A name without a folder is looked for in conf/ here, then in that of the checkout, the wheel or the zip.
    """
    merged: dict[str, Any] = {}
    for layer in (*map(_read, names), *map(_override, overrides)):
        merged = merge(merged, layer)
    return merged


def _read(name: str) -> dict[str, Any]:
    folders: list[Traversable] = [Path("conf"), Path(__file__).parents[1] / "conf", files("etl") / "conf"]
    path = next((p for p in (Path(name), *(folder / f"{name}.yaml" for folder in folders)) if p.is_file()), None)
    if path is None:
        found = (file.name for folder in folders if folder.is_dir() for file in folder.iterdir())
        known = sorted({file.removesuffix(".yaml") for file in found if file.endswith(".yaml")})
        raise UserError(f"wanted a config file; found none named {name!r}; fix: a path, or one of {', '.join(known)}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"wanted YAML in {path}; found: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"wanted keys and values in {path}; found a {type(content).__name__}")
    return content or {}


def _override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"wanted --set a.b=value; found {text!r}")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"wanted --set {path}= and a YAML value; found {value!r}; fix: quote it") from None
    for key in reversed(path.split(".")):
        nested = {key: nested}
    return dict(nested)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` over `under`, key by key at every depth."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
