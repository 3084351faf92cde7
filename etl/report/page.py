"""What every page is made with: text made harmless, numbers for people, the frame. Touches nothing.

Every value that a template prints passes `clean` and then jinja's escaping, because captions are hostile. Equal data
give equal bytes: nothing here looks at the clock.
"""

from __future__ import annotations

import math
import re
import unicodedata
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined
from markupsafe import Markup

MAX_CAPTION_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 2000
HARMLESS = "\u200c\u200d\u200e\u200f\u00ad"  # format characters that honest captions need: emoji, Persian, Hebrew
NONE, MINUS, SPACE = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
Funnel = Sequence[tuple[str, int, str]]
"""Step, rows left, why the others left."""


def render(template: str, **values: Any) -> str:
    """A page: `values` in a template of this folder. Those that `base.html.j2` wants: kind, title, intro, sections."""
    page = Environment(
        autoescape=True,
        finalize=clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        loader=PackageLoader("etl", "report"),
    )
    page.filters |= {"number": number, "percent": percent, "duration": duration, "caption": caption}
    page.filters |= {"short": short, "base64": b64encode, "whole": Markup}  # Markup: our own, may be long
    return page.get_template(template).render(**values)


def clean(value: object, limit: int = MAX_TEXT_CHARACTERS) -> object:
    """Text as one line, cut, without control, override, private or surrogate characters; no NaN. Markup passes."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    if isinstance(value, Markup | Undefined | int | float):
        return value
    value = str(value)
    line = re.sub(rf"[^\S{SPACE}]+", " ", value[: 4 * limit]).strip()  # the first cut keeps a caption of 1 MB cheap
    if len(line) > limit or len(value) > 4 * limit:
        line = line[: limit - 1].rstrip() + "…"
    bad = {c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in HARMLESS}
    return "".join("\N{REPLACEMENT CHARACTER}" if c in bad else c for c in line)


def caption(text: str) -> object:
    return clean(text, MAX_CAPTION_CHARACTERS)


def short(text: str, limit: int = 20) -> object:
    return clean(text, limit)


def number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace("-", MINUS)


def percent(part: float | None, whole: float = 1.0) -> str:
    return NONE if part is None or not math.isfinite(part) or whole <= 0 else f"{100 * part / whole:.1f}{SPACE}%"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 60:
        return number(seconds, 1) + SPACE + "s"
    return f"{round(seconds) // 60}{SPACE}min {round(seconds) % 60:02}{SPACE}s"


def steps(funnel: Funnel) -> list[tuple[str, int, int, str]]:
    """(step, rows left, rows gone, why) of a funnel."""
    before = [rows for _, rows, _ in [*funnel[:1], *funnel]]
    return [(step, left, n - left, why) for (step, left, why), n in zip(funnel, before, strict=False)]
