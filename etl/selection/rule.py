"""The language of rules: conditions on columns and scores, typed and checked before Spark starts. Touches nothing.

A leaf is `{of: NAME, TEST: VALUE}`, NAME a column of `COLUMNS` or a filter; `all`, `any` and `not` join them. A leaf on
a missing value is false (so that `not` of it is true).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import pydantic
from pyspark.sql import Column
from pyspark.sql import functions as F

from etl.stage import StageConfig


@dataclass(frozen=True)
class Known:
    """A column that a rule can name."""

    table: Literal["pairs", "signals", "image_signals"]
    kind: Literal["string", "number", "caption"]
    column: Callable[[], Column]
    """Over the columns of its table."""


def _plain(table: Any, kind: Any, *names: str) -> dict[str, Known]:
    return {name: Known(table, kind, lambda name=name: F.col(name)) for name in names}  # type: ignore[misc]


def _aspect_ratio() -> Column:
    """In double precision: the one in `signals` is rounded to a float, which a limit met exactly would feel."""
    ratio = F.try_divide(F.greatest("width_px", "height_px").cast("double"), F.least("width_px", "height_px"))
    return F.when(_has_both(), ratio)  # greatest and least skip NULLs


def _num_fasttext_tokens() -> Column:
    """What `fasttext.tokenize` counts: runs between ASCII blanks and NUL, and a token for each end of line."""
    return F.regexp_count("text", F.lit(r"[^ \t\n\x0b\f\r\x00]+")) + F.regexp_count("text", F.lit(r"\n"))


def _num_faces() -> Column:
    return F.when(F.col("face_boxes").isNotNull(), F.size("face_boxes"))


COLUMNS: dict[str, Known] = {
    **_plain("pairs", "string", "source", "image_format", "url"),
    **_plain("pairs", "number", "width_px", "height_px", "size_bytes"),
    "min_side_px": Known("pairs", "number", lambda: F.when(_has_both(), F.least("width_px", "height_px"))),
    "aspect_ratio": Known("pairs", "number", _aspect_ratio),
    "num_fasttext_tokens": Known("pairs", "number", _num_fasttext_tokens),
    **_plain("signals", "string", "language"),
    **_plain("signals", "number", "language_confidence", "num_words", "num_chars", "nsfw_text_score"),
    **_plain("image_signals", "number", "nsfw_score"),
    "num_faces": Known("image_signals", "number", _num_faces),
    **_plain("pairs", "caption", "text"),
}
"""Name in a rule -> what it is. Of `nsfw_score` and `num_faces` the highest that any model gave."""
GROUPS = tuple(name for name, known in COLUMNS.items() if known.kind == "string" and name != "url")
"""What quotas can be per."""
FLOATS = ("language_confidence", "nsfw_score", "nsfw_text_score")
"""Stored in single precision, as scores are."""
BOUNDS: dict[str, Callable[[Column, Any], Column]] = {
    "at_least": lambda column, value: column >= value,
    "above": lambda column, value: column > value,
    "at_most": lambda column, value: column <= value,
    "below": lambda column, value: column < value,
}

ALONE = ("is_in", "names", "top_fraction")
"""Tests that join no other in a leaf."""


def _has_both() -> Column:
    return F.col("width_px").isNotNull() & F.col("height_px").isNotNull()


class Condition(StageConfig):
    """One of `all`, `any`, `not` and a leaf."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    all: tuple[Condition, ...] | None = None
    any: tuple[Condition, ...] | None = None
    not_: Condition | None = pydantic.Field(default=None, alias="not")
    of: str | None = None
    """A column of COLUMNS, or a filter, whose score is meant."""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    is_in: tuple[str, ...] | None = None
    """Of a column of strings."""
    names: str | None = None
    """Of `text`: a list in the rule's `synsets`. Whether a word of the caption, inflected or not, means first, in
    WordNet, a synset of the list: DataComp's text_based."""
    top_fraction: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Of all pairs with a status in `among`, scored or not, before any other condition: the share ranked first."""
    ties: Literal["uid", "all"] = "uid"
    """uid: exactly that many, equals by uid. all: every pair with at least the value after the last one, as
    DataComp's `get_threshold` has it."""

    @pydantic.model_validator(mode="after")
    def is_one_thing(self) -> Condition:
        if sum(value is not None for value in (self.all, self.any, self.not_, self.of)) != 1:
            raise ValueError("wanted one of all, any, not, of")
        tests = {name for name in (*BOUNDS, *ALONE) if getattr(self, name) is not None}
        if bool(self.of) != bool(tests):
            raise ValueError(f"wanted `of` with a test; found {', '.join(tests) or f'of: {self.of} alone'}")
        if len(tests) > 1 and tests & set(ALONE):
            raise ValueError(f"wanted {', '.join(ALONE)} alone; found {', '.join(sorted(tests))}")
        known = COLUMNS.get(self.of or "")
        if (known is not None and known.kind == "caption") != (tests == {"names"}):
            raise ValueError(f"{self.of}: wanted names of text, and of nothing else; found {', '.join(sorted(tests))}")
        if known and known.kind == "string" and tests != {"is_in"}:
            raise ValueError(f"{self.of}: wanted is_in, since it is text; found {', '.join(sorted(tests))}")
        if "is_in" in tests and not (known and known.kind == "string"):
            raise ValueError(f"{self.of}: wanted at_least, above, at_most or below, since it is a number; found is_in")
        return self

    def leaves(self) -> Iterator[Condition]:
        inner = [*(self.all or ()), *(self.any or ()), *([self.not_] if self.not_ else [])]
        for condition in inner:
            yield from condition.leaves()
        if self.of is not None:
            yield self

    def column(self, resolved: Mapping[Condition, Column]) -> Column:
        """True or false, never NULL. `resolved`: the leaves with top_fraction or names."""
        if self.all is not None:
            return reduce(Column.__and__, (c.column(resolved) for c in self.all), F.lit(True))
        if self.any is not None:
            return reduce(Column.__or__, (c.column(resolved) for c in self.any), F.lit(False))
        if self.not_ is not None:
            return ~self.not_.column(resolved)
        return F.coalesce(resolved[self] if self in resolved else self._test(), F.lit(False))

    def _test(self) -> Column:
        value = F.col(f"of_{self.of}")
        if self.is_in is not None:
            return value.isin(list(self.is_in))
        bounds = {name: F.lit(float(getattr(self, name))) for name in BOUNDS if getattr(self, name) is not None}
        if self.of in FLOATS or self.of not in COLUMNS:  # 0.1 is met by a stored 0.1, which in double precision is more
            bounds = {name: bound.cast("float").cast("double") for name, bound in bounds.items()}
        tests = [BOUNDS[name](value, bound) for name, bound in bounds.items()]
        return reduce(Column.__and__, tests) & ~F.isnan(value)


class Exclude(StageConfig):
    """Pairs that no rule keeps."""

    contaminated: bool = True
    """Those seen in an evaluation or development set."""
    nsfw_above: float | None = pydantic.Field(default=None, ge=0, le=1)
    """Those that an image model scored higher."""
    blocklists: tuple[Path, ...] = ()
    """Text files of a uid, sha256, URL or domain a line: those of the pairs that are named so."""


class Unique(StageConfig):
    """One pair of each group of duplicates, of those that the rest of the rule would keep."""

    by: tuple[Literal["url_text", "sha256", "phash", "minhash", "semantic"], ...] = pydantic.Field(min_length=1)
    """Methods of `duplicates`."""
    keep: Literal["smallest_uid", "largest_image", "oldest"] | None = None
    """Which one; the smallest uid also among equals. oldest: whose shard was ingested first (`inputs`); pairs that came
    without pixels, and so without a shard, come last."""
    highest: str | None = None
    """Or: the one with the highest score of this filter."""

    @pydantic.model_validator(mode="after")
    def one_order(self) -> Unique:
        if self.keep and self.highest:
            raise ValueError(f"wanted keep or highest; found {self.keep} and {self.highest}")
        return self
