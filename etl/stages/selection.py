"""What a rule keeps. Reads pairs, and of signals, scores, contaminated and duplicates what the rule names. Writes
selections, and a receipt that proves them.

The rule's language is `etl/rule.py`; the exact cut, at any size, `etl/cut.py`. Partitions and order change nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.cut import find_cuts
from etl.judging import gather, is_kept, judge, tops
from etl.rule import COLUMNS, GROUPS, Condition
from etl.stage import Facts, Read, Slice, Stage, StageConfig, content_hash
from etl.tables import CONTAMINATED, DUPLICATES, IMAGE_SIGNALS, PAIRS, RECEIPTS, SCORES, SELECTIONS, SIGNALS

DFN = "dfn"
"""The filter that a rule means where it names none."""


class Keep(StageConfig):
    """Exactly one of the three."""

    top_fraction: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Of the eligible pairs, the share with the highest scores; 0.15 in the DFN paper."""
    of: str = DFN
    """The filter whose scores those are."""
    random_fraction: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Of the eligible pairs, a share drawn by a hash of seed and uid: the control arm."""
    all: Literal[True] | None = None
    """Every eligible pair."""
    per: Literal[GROUPS] | None = None  # type: ignore[valid-type]
    """A quota: the share is taken of each language, source or format by itself."""
    at_most: int | None = pydantic.Field(default=None, gt=0)
    """Pairs at most, of each group where `per` is given: those ranked first, or drawn where nothing ranks."""

    @pydantic.model_validator(mode="after")
    def one_of(self) -> Keep:
        choices = ("top_fraction", "random_fraction", "all")
        if len(found := [name for name in choices if getattr(self, name) is not None]) != 1:
            raise ValueError(f"wanted exactly one of {', '.join(choices)}; found {', '.join(found) or 'none'}")
        return self

    @property
    def is_ranked(self) -> bool:
        return not self.all or self.at_most is not None

    def num_kept(self, num_eligible: int) -> int:
        fraction = self.top_fraction or self.random_fraction or 1.0
        # Rounded first: 0.29 * 100 is 28.999999999999996 in binary, and 29 is meant.
        return min(math.floor(round(fraction * num_eligible, 6)), self.at_most or num_eligible)


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

    by: tuple[Literal["sha256", "phash"], ...] = pydantic.Field(min_length=1)
    keep: Literal["smallest_uid", "largest_image"] | None = None
    """Which one; the smallest uid also among equals."""
    highest: str | None = None
    """Or: the one with the highest score of this filter."""

    @pydantic.model_validator(mode="after")
    def one_order(self) -> Unique:
        if self.keep and self.highest:
            raise ValueError(f"wanted keep or highest; found {self.keep} and {self.highest}")
        return self


class Config(StageConfig):
    name: str = "dfn"
    """What people call this selection."""
    keep: Keep = Keep(top_fraction=0.15)
    where: Condition | None = None
    """What a pair must fulfil to be eligible; see `etl/rule.py`."""
    among: tuple[Literal["ok", "metadata_only"], ...] = ("ok",)
    """Statuses of the pairs that can be kept. With metadata_only: also pairs whose pixels have yet to be fetched."""
    exclude: Exclude = Exclude()
    unique: Unique | None = None
    seed: int = 0
    scored_by: dict[str, tuple[str, str]] = pydantic.Field(default={})
    """Known to a run only: a filter that the rule names -> filter and version in `scores`."""
    blocklist_sha256: str = ""
    """Known to a run only: of the blocklists' lines."""

    def named(self) -> set[str]:
        """Columns and filters that the rule looks at."""
        leaves = {leaf.of for leaf in self.where.leaves() if leaf.of} if self.where else set()
        ranking = {self.keep.of} if self.keep.top_fraction is not None else set()
        highest = {self.unique.highest} if self.unique and self.unique.highest else set()
        return leaves | ranking | highest | ({self.keep.per} if self.keep.per else set()) | self._nsfw()

    def _nsfw(self) -> set[str]:
        return {"nsfw_score"} if self.exclude.nsfw_above is not None else set()

    def filters(self) -> list[str]:
        """Filters that the rule names."""
        return sorted(self.named() - COLUMNS.keys())

    def reads(self, table: str) -> list[str]:
        """Columns of a table that the rule looks at."""
        return sorted(name for name in self.named() & COLUMNS.keys() if COLUMNS[name].table == table)

    def score_slice(self) -> Slice:
        pairs = sorted(self.scored_by.values())
        return {"filter": tuple(f for f, _ in pairs), "filter_version": tuple(v for _, v in pairs)}


def ranked_by(rule: Mapping[str, Any]) -> tuple[str, str] | None:
    """(filter, version) whose scores ranked the pairs, from a receipt's rule; None where no score did."""
    scored_by = rule.get("scored_by", {})  # a receipt of before has none
    found = scored_by.get(rule["keep"]["of"]) if scored_by and rule["keep"]["top_fraction"] is not None else None
    return (found[0], found[1]) if found else None


def prepare(pairs: DataFrame, signals: DataFrame | None = None, image_signals: DataFrame | None = None,
            scores: DataFrame | None = None, contaminated: DataFrame | None = None,
            duplicates: DataFrame | None = None, *, config: Config) -> Facts:  # fmt: skip
    """{cuts: group -> [rank, uid] or None, tops, threshold, threshold_uid, num_eligible, num_rows_by_status}."""
    found = gather(config, pairs, signals, image_signals, scores, contaminated)
    found = found.localCheckpoint()  # joined once, scanned often
    top_cuts = tops(found, config)
    judged = judge(found, duplicates, config, top_cuts)
    judged = judged.localCheckpoint() if config.unique else judged
    group = F.when(F.col("verdict") == "eligible", F.col("group"))
    sizes = judged.groupBy("verdict", group.alias("group")).count().collect()
    counts = {row["verdict"]: int(row["count"]) for row in sizes if row["verdict"] != "eligible"}
    eligible = {row["group"]: int(row["count"]) for row in sizes if row["verdict"] == "eligible"}
    num_eligible = sum(eligible.values())
    num_kept = {group: config.keep.num_kept(count) for group, count in eligible.items()}
    ranked = judged.where("verdict = 'eligible'").select("group", "rank", "uid")
    cuts = find_cuts(ranked, num_kept) if config.keep.is_ranked else {}
    total = sum(num_kept.values())
    only = cuts.get("") if not config.keep.per else None
    found_cuts = {group: [cut.rank, cut.uid] for group, cut in sorted(cuts.items())}
    return {
        "cuts": found_cuts if config.keep.is_ranked else None,
        "tops": top_cuts,
        "threshold": only.rank if only else None,
        "threshold_uid": only.uid if only else None,
        "num_eligible": num_eligible,
        "num_rows_by_status": {"kept": total, "below_cut": num_eligible - total, **counts},
    }


def transform(pairs: DataFrame, signals: DataFrame | None = None, image_signals: DataFrame | None = None,
              scores: DataFrame | None = None, contaminated: DataFrame | None = None,
              duplicates: DataFrame | None = None, *, config: Config,
              facts: Facts) -> tuple[DataFrame, DataFrame]:  # fmt: skip
    found = gather(config, pairs, signals, image_signals, scores, contaminated)
    every = judge(found, duplicates, config, facts["tops"]).where("verdict = 'eligible'")
    selection_id = F.lit(facts["key"][:16]).alias("selection_id")
    rank = F.col("rank") if config.keep.is_ranked else F.lit(None).cast("double")
    kept = every.where(is_kept(facts["cuts"])).select(
        selection_id, "uid", rank.alias("score"), F.lit(1).alias("num_repeats")
    )
    selections = kept.localCheckpoint()  # Written and hashed below: joined once.
    sums = selections.agg(F.count(F.lit(1)).alias("num_rows"), *content_hash("uid", "num_repeats"))
    inputs = F.create_map(*[F.lit(x) for label, version in facts["inputs"].items() for x in (label, version)])
    known = {k: v for k, v in facts.items() if k not in ("inputs", "key")}
    receipts = sums.select(
        selection_id,
        inputs.cast("map<string,bigint>").alias("inputs"),
        F.lit(config.model_dump_json()).alias("rule"),
        F.lit(config.seed).cast("bigint").alias("seed"),
        F.lit(json.dumps(known, sort_keys=True)).alias("facts"),
        "num_rows",
        _hash_of_sums().alias("hash"),
    )
    return selections, receipts


def _hash_of_sums() -> Column:
    """`fold_hash` of the two sums, in SQL."""
    modulus = f"{1 << 64}BD"
    high, low = "coalesce(hash_high, 0BD)", "coalesce(hash_low, 0BD)"
    hexed = "lpad(lower(conv(cast({} as string), 10, 16)), 16, '0')"
    return F.expr(
        f"concat({hexed.format(f'({high} + ({low} div {modulus})) % {modulus}')}, {hexed.format(f'{low} % {modulus}')})"
    )


def slice_of(config: StageConfig, key: str) -> Slice:
    """Named by inputs, rule and code: what a later pool makes of the same rule stands beside it."""
    return {"selection_id": key[:16]}


STAGE = Stage(
    "selection",
    reads={
        "pairs": Read(PAIRS),
        "signals": Read(SIGNALS, is_read=lambda config: bool(config.reads("signals"))),
        "image_signals": Read(IMAGE_SIGNALS, is_read=lambda config: bool(config.reads("image_signals"))),
        "scores": Read(SCORES, is_read=lambda config: bool(config.scored_by), slice_of=Config.score_slice),
        "contaminated": Read(CONTAMINATED, is_read=lambda config: config.exclude.contaminated),
        "duplicates": Read(DUPLICATES, is_read=lambda config: config.unique is not None),
    },
    writes=(SELECTIONS, RECEIPTS),
    config=Config,
    transform=transform,
    prepare=prepare,
    resume="table",
    version=2,
    slice_of=slice_of,
)
