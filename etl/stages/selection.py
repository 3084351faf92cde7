"""What a rule keeps. Reads pairs, and of signals, scores, contaminated, duplicates and inputs what the rule names.
Writes selections, and a receipt that proves them.

In `etl/selection`: the rule's language is `rule.py`; the exact cut, at any size, `cut.py`; draws with repeats
`soft_cap.py`; MetaCLIP's balancing `balance.py`. Partitions and order change nothing.
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

from etl.selection import wordnet
from etl.selection.balance import Balance, balanced, count_entries
from etl.selection.cut import find_cuts
from etl.selection.judging import draw, gather, judge, num_repeats, tops
from etl.selection.rule import COLUMNS, GROUPS, Condition, Exclude, Unique
from etl.selection.soft_cap import SoftCap, find_soft_cuts
from etl.stage import Facts, Read, Slice, Stage, StageConfig, content_hash
from etl.tables import CONTAMINATED, DUPLICATES, IMAGE_SIGNALS, INPUTS, PAIRS, RECEIPTS, SCORES, SELECTIONS, SIGNALS

DFN, DFN_BEFORE = "dfn", "dfn_before"
"""The filter that a rule means where it names none."""


class Keep(StageConfig):
    """Exactly one of the four ways."""

    top_fraction: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Of the eligible pairs, the share with the highest scores; 0.15 in the DFN paper."""
    of: str = DFN
    """The filter whose scores those are, and those of soft_cap."""
    soft_cap: SoftCap | None = None
    """Samples drawn by the scores, with repeats."""
    random_fraction: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Of the eligible pairs, a share drawn by a hash of seed and uid: the control arm."""
    all: Literal[True] | None = None
    """Every eligible pair."""
    per: Literal[GROUPS] | None = None  # type: ignore[valid-type]
    """A quota: the share is taken of each language, source or format by itself."""
    at_most: int | None = pydantic.Field(default=None, gt=0)
    """Pairs at most, of each group where `per` is given: those ranked first, or drawn where nothing ranks. Of soft_cap
    samples at most, repeats counted."""

    @pydantic.model_validator(mode="after")
    def one_of(self) -> Keep:
        choices = ("top_fraction", "soft_cap", "random_fraction", "all")
        if len(found := [name for name in choices if getattr(self, name) is not None]) != 1:
            raise ValueError(f"wanted exactly one of {', '.join(choices)}; found {', '.join(found) or 'none'}")
        return self

    @property
    def is_ranked(self) -> bool:
        return not self.all or self.at_most is not None

    @property
    def is_scored(self) -> bool:
        """Whether the scores of `of` rank."""
        return self.top_fraction is not None or self.soft_cap is not None

    def num_kept(self, num_eligible: int) -> int:
        """Pairs, or with soft_cap samples."""
        fraction = self.soft_cap.samples if self.soft_cap else self.top_fraction or self.random_fraction or 1.0
        # Rounded first: 0.29 * 100 is 28.999999999999996 in binary, and 29 is meant.
        wanted = math.floor(round(fraction * num_eligible, 6))
        return min(wanted, self.at_most) if self.at_most else wanted


class Config(StageConfig):
    name: str = "dfn"
    """What people call this selection."""
    keep: Keep = Keep(top_fraction=0.15)
    where: Condition | None = None
    """What a pair must fulfil to be eligible; see `etl/selection/rule.py`."""
    among: tuple[Literal["ok", "metadata_only"], ...] = ("ok",)
    """Statuses of the pairs that can be kept. With metadata_only: also pairs whose pixels have yet to be fetched."""
    exclude: Exclude = Exclude()
    unique: Unique | None = None
    balance: Balance | None = None
    """Of what is left after `where`, `exclude` and `unique`."""
    synsets: dict[str, Path] = pydantic.Field(default={})
    """Lists that `names` can name: text files of WordNet 3.0 ids (n02084071), one a line."""
    wordnet: Path | None = None
    """Folder of WordNet 3.0's index.* and *.exc, for `names`; without it Debian's package is fetched into the cache."""
    seed: int = 0
    scored_by: dict[str, tuple[str, str]] = pydantic.Field(default={})
    """Known to a run only: a filter that the rule names -> filter and version in `scores`."""
    blocklist_sha256: str = ""
    """Known to a run only: of the blocklists' lines."""
    files_sha256: dict[str, str] = pydantic.Field(default={})
    """Known to a run only: of the other files that the rule reads."""

    @pydantic.model_validator(mode="after")
    def lists_are_there(self) -> Config:
        if unknown := set(self.lists()) - self.synsets.keys():
            there = ", ".join(self.synsets) or "none"
            raise ValueError(
                f"names: wanted a list in `synsets`; found {', '.join(sorted(unknown))}, there are {there}"
            )
        return self

    def leaves(self) -> list[Condition]:
        return list(self.where.leaves()) if self.where else []

    def lists(self) -> list[str]:
        """Lists of synsets that the rule names."""
        return sorted({leaf.names for leaf in self.leaves() if leaf.names})

    @property
    def wordnet_folder(self) -> Path:
        if self.wordnet is None:
            raise ValueError("wordnet: wanted a folder; a run fetches the package and names it")
        return self.wordnet

    def files(self) -> list[Path]:
        """That the rule reads, but for blocklists."""
        lists = [self.synsets[name] for name in self.lists()]
        return [*lists, *(wordnet.files(self.wordnet_folder) if lists else []),
                *([self.balance.entries] if self.balance else [])]  # fmt: skip

    def named(self) -> set[str]:
        """Columns and filters that the rule looks at."""
        leaves = {leaf.of for leaf in self.leaves() if leaf.of and not leaf.names}
        ranking = {self.keep.of} if self.keep.is_scored else set()
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
    keep = rule.get("keep", {})  # a list of uids has none
    is_scored = keep.get("top_fraction") is not None or keep.get("soft_cap") is not None
    found = scored_by.get(keep["of"]) if scored_by and is_scored else None
    return (found[0], found[1]) if found else None


def prepare(pairs: DataFrame, signals: DataFrame | None = None, image_signals: DataFrame | None = None,
            scores: DataFrame | None = None, contaminated: DataFrame | None = None,
            duplicates: DataFrame | None = None, inputs: DataFrame | None = None, *,
            config: Config) -> Facts:  # fmt: skip
    """{cuts: group -> [rank, uid] or None, tops, threshold, threshold_uid, num_eligible, num_rows_by_status}.

    And of a rule that has such: `balance`, `num_samples`. With soft_cap a cut is a draw's rank, and no threshold.
    """
    found = gather(config, pairs, signals, image_signals, scores, contaminated, inputs)
    found = found.localCheckpoint()  # joined once, scanned often
    facts: Facts = {"tops": tops(found, config)}
    judged = judge(found, duplicates, config, facts)
    judged = judged.localCheckpoint() if config.unique else judged
    if config.balance:
        facts["balance"] = count_entries(judged.where("verdict = 'eligible'"), config.balance, config.files_sha256)
        judged = balanced(judged, facts["balance"]["heads"], config.balance, config.seed).localCheckpoint()
    group = F.when(F.col("verdict") == "eligible", F.col("group"))
    sizes = judged.groupBy("verdict", group.alias("group")).count().collect()
    counts = {row["verdict"]: int(row["count"]) for row in sizes if row["verdict"] != "eligible"}
    eligible = {row["group"]: int(row["count"]) for row in sizes if row["verdict"] == "eligible"}
    found_cuts = _cut(judged.where("verdict = 'eligible'").select("group", "rank", "uid"), eligible, config)
    num_eligible, kept = sum(eligible.values()), found_cuts.pop("kept")
    by_status = {"kept": kept, "below_cut": num_eligible - kept, **counts}
    return {**facts, **found_cuts, "num_eligible": num_eligible, "num_rows_by_status": by_status}


def _cut(ranked: DataFrame, num_eligible: Mapping[str, int], config: Config) -> Facts:
    """{cuts, threshold, threshold_uid, kept: pairs}, and with soft_cap num_samples, of the eligible pairs of groups."""
    wanted, cap = {group: config.keep.num_kept(count) for group, count in num_eligible.items()}, config.keep.soft_cap
    ranking = find_cuts(ranked, wanted) if config.keep.is_ranked and not cap else {}
    if cap:
        ranking = find_soft_cuts(ranked, draw(config.seed), wanted, cap)
    only = ranking.get("") if not config.keep.per and not cap else None
    cuts = {group: [cut.rank, cut.uid] for group, cut in sorted(ranking.items())} if config.keep.is_ranked else None
    found: Facts = {"cuts": cuts, "threshold": only.rank if only else None, "threshold_uid": only.uid if only else None,
                    "kept": sum(wanted.values())}  # fmt: skip
    if cap:
        repeats = ranked.select(num_repeats(config, cuts).alias("n")).where("n > 0")
        row = repeats.agg(F.count(F.lit(1)).alias("kept"), F.coalesce(F.sum("n"), F.lit(0)).alias("n")).collect()[0]
        found |= {"kept": row["kept"], "num_samples": row["n"]}
    return found


def transform(pairs: DataFrame, signals: DataFrame | None = None, image_signals: DataFrame | None = None,
              scores: DataFrame | None = None, contaminated: DataFrame | None = None,
              duplicates: DataFrame | None = None, inputs: DataFrame | None = None, *,
              config: Config, facts: Facts) -> tuple[DataFrame, DataFrame]:  # fmt: skip
    found = gather(config, pairs, signals, image_signals, scores, contaminated, inputs)
    every = judge(found, duplicates, config, facts).where("verdict = 'eligible'")
    selection_id = F.lit(facts["key"][:16]).alias("selection_id")
    rank = F.col("rank") if config.keep.is_ranked else F.lit(None).cast("double")
    repeats = num_repeats(config, facts["cuts"]).alias("num_repeats")
    kept = every.select(selection_id, "uid", rank.alias("score"), repeats).where("num_repeats > 0")
    return with_receipt(kept, config.model_dump_json(), config.seed, facts)


def with_receipt(kept: DataFrame, rule: str, seed: int, facts: Facts) -> tuple[DataFrame, DataFrame]:
    """Rows of `selections`, all of one, and the row of `receipts` that proves them."""
    selections = kept.localCheckpoint()  # Written and hashed below: joined once.
    sums = selections.agg(F.count(F.lit(1)).alias("num_rows"), *content_hash("uid", "num_repeats"))
    inputs = F.create_map(*[F.lit(x) for label, version in facts["inputs"].items() for x in (label, version)])
    known = {k: v for k, v in facts.items() if k not in ("inputs", "key")}
    receipts = sums.select(
        F.lit(facts["key"][:16]).alias("selection_id"),
        inputs.cast("map<string,bigint>").alias("inputs"),
        F.lit(rule).alias("rule"),
        F.lit(seed).cast("bigint").alias("seed"),
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
        "inputs": Read(INPUTS, is_read=lambda config: config.unique is not None and config.unique.keep == "oldest"),
    },
    writes=(SELECTIONS, RECEIPTS),
    config=Config,
    transform=transform,
    prepare=prepare,
    resume="table",
    version=2,
    slice_of=slice_of,
)
