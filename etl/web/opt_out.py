"""Who says that their images are not to be used: headers, meta elements, TDMRep. Pure functions; robots.txt is asked
for in `etl/web/manners.py`.

What counts: `noai`, `noimageai`, `noml`, `noindex`, `noimageindex` and `none` (which is noindex and more) in an
X-Robots-Tag header or a robots meta element, for every robot or for ours; and a TDM reservation
(https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/): `tdm-reservation: 1` as a header or a meta
element, or in /.well-known/tdmrep.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from models.images import one_line

DIRECTIVES = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Directives with a colon, which a name before a colon must not be taken for."""
TDM = "tdm-reservation"


def said_by_headers(headers: Iterable[tuple[str, str]], agent: str) -> str | None:
    """The header that says no, as `name: value`; None where none does."""
    for name, value in headers:
        kind = name.strip().lower()
        if kind == "x-robots-tag" and _forbids(value, agent):
            return one_line(f"X-Robots-Tag: {value.strip()}")
        if kind == TDM and value.strip() == "1":
            return f"{TDM}: 1"
    return None


def said_by_metas(metas: Iterable[tuple[str, str]], agent: str) -> str | None:
    """The (name, content) of a meta element that says no, as `meta name: content`; None where none does."""
    for name, content in metas:
        kind = name.strip().lower()
        if (kind in ("robots", agent.lower()) and _tokens(content) & DIRECTIVES) or (
            kind == TDM and content.strip() == "1"
        ):
            return one_line(f"meta {kind}: {content.strip()}")
    return None


def said_by_tdmrep(document: bytes, path: str) -> str | None:
    """The rule of a tdmrep.json that covers `path` and reserves; the first that covers it counts. None where none does.

    A document that does not parse says nothing.
    """
    try:
        rules = json.loads(document)
    except (ValueError, RecursionError):
        return None
    for rule in rules if isinstance(rules, list) else ():
        location = rule.get("location") if isinstance(rule, dict) else None
        if isinstance(location, str) and _covers(location, path):
            is_reserved = str(rule.get(TDM)) == "1"
            return one_line(f"/.well-known/tdmrep.json: {location} {TDM} 1") if is_reserved else None
    return None


def _covers(location: str, path: str) -> bool:
    """A path with * for anything and $ for its end, as in robots.txt."""
    pattern = re.sub(r"([\[?])", r"[\1]", location)
    return fnmatchcase(path, pattern[:-1] if pattern.endswith("$") else f"{pattern}*")


def _forbids(value: str, agent: str) -> bool:
    """Of a header's value: directives for every robot, or after `NAME:` those for that one."""
    is_meant = True
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        if colon and name.strip() not in WITH_VALUE:
            is_meant = name.strip() in ("*", "robots", agent.lower())
            part = rest
        if is_meant and part.strip() in DIRECTIVES:
            return True
    return False


def _tokens(content: str) -> set[str]:
    return set(re.split(r"[\s,]+", content.strip().lower()))
