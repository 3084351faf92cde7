"""What a rule says of each pair. Reads frames; touches nothing, but for the lists that it names.

`gather` joins what the rule looks at, `judge` gives each pair what speaks against it first, or `eligible`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.intake.blocklists import phash_of
from etl.selection import balance, soft_cap, wordnet
from etl.selection.cut import find_cuts, lookup
from etl.selection.rule import COLUMNS, Condition, Unique
from etl.stage import UserError, digest

if TYPE_CHECKING:
    from etl.stages.selection import Config

GATHERED = ("pairs", "signals", "image_signals", "scores", "contaminated", "inputs")
"""What `gather` joins, of what a selection reads."""


def gather(config: Config, pairs: DataFrame, signals: DataFrame | None, image_signals: DataFrame | None,
           scores: DataFrame | None, contaminated: DataFrame | None,
           inputs: DataFrame | None = None) -> DataFrame:  # fmt: skip
    """A row per pair, with all that the rule looks at: uid, status, group, rank, of_NAME, is_contaminated, is_blocked,
    names_LIST, entries and ingested_at.

    A score that is no finite number is NULL.
    """
    blocked = is_blocked(blocklist(config.exclude.blocklists, config.blocklist_sha256))
    said = {f"names_{name}": wordnet.names(config.wordnet_folder, config.synsets[name], config.files_sha256)
            for name in config.lists()}  # fmt: skip
    if config.balance:
        said["entries"] = balance.matched(config.balance, config.files_sha256)
    found = pairs.select(
        "uid", "status", *(COLUMNS[name].column().alias(f"of_{name}") for name in config.reads("pairs")),
        (F.col("width_px").cast("bigint") * F.col("height_px")).alias("area"), blocked.alias("is_blocked"),
        *(column.alias(name) for name, column in said.items()), *(["shard"] if inputs is not None else []),
    )  # fmt: skip
    if inputs is not None:
        found = found.join(ingested(inputs), on="shard", how="left").drop("shard")
    if signals is not None:
        own = [COLUMNS[name].column().alias(f"of_{name}") for name in config.reads("signals")]
        found = found.join(signals.select("uid", *own), on="uid", how="left")
    if image_signals is not None:
        worst = [F.max(COLUMNS[name].column()).alias(f"of_{name}") for name in config.reads("image_signals")]
        found = found.join(image_signals.groupBy("uid").agg(*worst), on="uid", how="left")
    for name, (filter_, version) in sorted(config.scored_by.items()):
        own_scores = scores.where((F.col("filter") == filter_) & (F.col("filter_version") == version))  # type: ignore[union-attr]
        score = F.when((F.col("status") == "ok") & (F.abs("score") < math.inf), F.col("score").cast("double"))
        found = found.join(own_scores.select("uid", score.alias(f"of_{name}")), on="uid", how="left")
    if contaminated is not None:
        seen = contaminated.select("uid").distinct().withColumn("is_contaminated", F.lit(True))
        found = found.join(seen, on="uid", how="left")
    ranking = draw(config.seed) if config.keep.is_ranked else F.lit(0.0)
    if config.keep.is_scored:
        ranking = F.col(f"of_{config.keep.of}")
    group = F.coalesce(F.col(f"of_{config.keep.per}"), F.lit("")) if config.keep.per else F.lit("")
    return found.withColumns({"rank": ranking, "group": group})


def ingested(inputs: DataFrame) -> DataFrame:
    """(shard, ingested_at) for every shard that `pairs` can name: an end of a file's uri, since the root is not known.

    All uris begin with the root, so of those that end alike the shortest is root and shard, and no folder between.
    """
    steps = F.split("uri", "/")
    ends = F.transform(F.sequence(F.lit(1), F.size(steps)), lambda i: F.array_join(F.slice(steps, i, 4096), "/"))
    order = F.struct(F.length("uri"), "uri")
    found = inputs.select(F.explode(ends).alias("shard"), "ingested_at", order.alias("order"))
    return found.groupBy("shard").agg(F.min_by("ingested_at", "order").alias("ingested_at"))


def draw(seed: int) -> Column:
    """A number in [0, 1) that follows from seed and uid alone: no `rand()`, so partitions cannot change it."""
    digits = F.substring(F.md5(F.concat(F.lit(f"{seed}:"), F.col("uid"))), 1, 13)
    return F.conv(digits, 16, 10).cast("double") / F.lit(float(16**13))


def blocklist(paths: tuple[Path, ...], wanted_sha256: str = "") -> list[str]:
    """The files' lines, without blanks and comments. Raises UserError where they changed since they were named."""
    try:
        lines = [line.strip() for path in paths for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"exclude.blocklists: wanted text files; found: {error}") from None
    found = sorted({line.lower() if "/" not in line else line for line in lines if line and line[0] != "#"})
    if wanted_sha256 and digest(found) != wanted_sha256:
        raise UserError("exclude.blocklists: wanted the lines that the rule was made with; found others; fix: restore")
    return found


def is_blocked(lines: list[str]) -> Column:
    """Whether a pair's uid, sha256, URL, domain, or a domain above it is in the list, or a perceptual hash near it."""
    if not lines:
        return F.lit(False)
    named = F.array(*map(F.lit, lines))
    host = F.lower(F.regexp_extract("url", r"^[a-zA-Z][\w+.-]*://(?:[^/?#@]*@)?([^/?#:]+)", 1))
    labels = F.split(host, r"\.")
    domains = F.transform(F.sequence(F.lit(1), F.size(labels)), lambda i: F.array_join(F.slice(labels, i, 256), "."))
    names = F.array_compact(F.array("uid", "sha256", "url"))
    is_named = F.arrays_overlap(named, F.concat(names, F.coalesce(domains, F.array().cast("array<string>"))))
    phashes = [found for line in lines if (found := phash_of(line))]
    return reduce(Column.__or__, is_near(phashes), is_named)


def is_near(phashes: Iterable[tuple[int, int]]) -> list[Column]:
    """Whether a pair's perceptual hash is near a listed one: a condition for each distance that the list names.

    `phashes`: 64 bits, and within how many of them.
    """
    by_bits: dict[int, list[Column]] = {}
    for listed, bits in phashes:
        by_bits.setdefault(bits, []).append(F.lit(_signed(listed)))
    distances = {bits: F.transform(F.array(*some), _distance) for bits, some in by_bits.items()}
    return [F.coalesce(F.array_min(found) <= bits, F.lit(False)) for bits, found in distances.items()]


def _distance(listed: Column) -> Column:
    return F.bit_count(F.col("phash").bitwiseXOR(listed))


def _signed(bits: int) -> int:
    """64 bits as BIGINT has them."""
    return bits - (1 << 64) if bits >> 63 else bits


def tops(found: DataFrame, config: Config) -> list[dict[str, Any]]:
    """The cut of each leaf of `where` that has a top_fraction: {of, top_fraction, ties, rank, uid}; rank None: none."""
    leaves = _top_leaves(config)
    population = found.where(F.col("status").isin(list(config.among)))
    num_rows = population.count() if leaves else 0
    cuts = []
    for leaf in leaves:
        ranked = population.select(F.lit("").alias("group"), F.col(f"of_{leaf.of}").alias("rank"), "uid")
        ranked = ranked.where("rank IS NOT NULL")
        fraction = leaf.top_fraction or 0.0
        # DataComp's threshold is the value at index n, from 0, of the sorted values: that of the first row left out.
        wanted = int(num_rows * fraction) + 1 if leaf.ties == "all" else math.floor(round(fraction * num_rows, 6))
        cut = find_cuts(ranked, {"": wanted}).get("")
        named = {"of": leaf.of, "top_fraction": leaf.top_fraction, "ties": leaf.ties}
        cuts.append({**named, "rank": cut.rank if cut else None, "uid": cut.uid if cut else None})
    return cuts


def _top_leaves(config: Config) -> list[Condition]:
    return list(dict.fromkeys(leaf for leaf in config.leaves() if leaf.top_fraction))


def _is_in_top(leaf: Condition, cut: Mapping[str, Any]) -> Column:
    value = F.col(f"of_{leaf.of}")
    if cut["rank"] is None:
        return F.lit(False)
    is_above: Column = value > cut["rank"]
    is_at_cut: Column = value == cut["rank"]
    return is_above | (is_at_cut if leaf.ties == "all" else is_at_cut & (F.col("uid") <= cut["uid"]))


def judge(found: DataFrame, duplicates: DataFrame | None, config: Config, facts: Mapping[str, Any]) -> DataFrame:
    """`found` with its verdict: what speaks against the pair first, or `eligible`.

    `facts`: `tops`, and `balance` once entries are counted: until then nothing is balanced.
    """
    judged = _unique(_judged(found, config, facts["tops"]), duplicates, config)
    if config.balance and facts.get("balance"):
        return balance.balanced(judged, facts["balance"]["heads"], config.balance, config.seed)
    return judged


def _judged(found: DataFrame, config: Config, cuts: list[dict[str, Any]]) -> DataFrame:
    resolved = {leaf: _is_in_top(leaf, cut) for leaf, cut in zip(_top_leaves(config), cuts, strict=True)}
    resolved |= {leaf: F.col(f"names_{leaf.names}") for leaf in config.leaves() if leaf.names}
    fulfils = config.where.column(resolved) if config.where else F.lit(True)
    nsfw = config.exclude.nsfw_above
    reasons = {
        "contaminated": F.col("is_contaminated") if config.exclude.contaminated else F.lit(False),
        "blocked": F.col("is_blocked"),
        "nsfw": F.coalesce(F.col("of_nsfw_score") > F.lit(nsfw).cast("float"), F.lit(False))
        if nsfw is not None
        else F.lit(False),
        "outside_rule": ~fulfils,
        "no_score": F.col("rank").isNull(),
    }
    status = F.when(~F.col("status").isin(list(config.among)), F.col("status"))
    verdict = reduce(lambda so_far, item: so_far.when(item[1], item[0]), reasons.items(), status).otherwise("eligible")
    return found.withColumn("verdict", verdict)


def _unique(judged: DataFrame, duplicates: DataFrame | None, config: Config) -> DataFrame:
    if duplicates is None or config.unique is None:
        return judged
    losers = _losers(judged.where("verdict = 'eligible'"), duplicates, config.unique)
    return judged.join(losers.withColumn("is_duplicate", F.lit(True)), on="uid", how="left").withColumn(
        "verdict", F.when(F.col("is_duplicate"), "duplicate").otherwise(F.col("verdict"))
    )


def _losers(eligible: DataFrame, duplicates: DataFrame, unique: Unique) -> DataFrame:
    """uids of members of a group that are not the one kept of it, by any method."""
    first = F.lit(0.0)
    if unique.highest:
        first = F.coalesce(-F.col(f"of_{unique.highest}"), F.lit(math.inf))
    if unique.keep == "largest_image":
        first = -F.coalesce(F.col("area"), F.lit(0)).cast("double")
    if unique.keep == "oldest":
        first = F.coalesce(F.unix_micros("ingested_at").cast("double"), F.lit(math.inf))
    members = duplicates.where(F.col("method").isin(list(unique.by))).select("method", "group_uid", "uid")
    members = members.join(eligible.select("uid", F.struct(first, F.col("uid")).alias("order")), on="uid", how="inner")
    # An aggregate, not a window: a group of a third of all rows is folded before it is shuffled.
    kept = members.groupBy("method", "group_uid").agg(F.min_by("uid", "order").alias("kept_uid"))
    others = members.join(kept, on=["method", "group_uid"], how="inner").where("uid != kept_uid")
    return others.select("uid").distinct()


def num_repeats(config: Config, cuts: Mapping[str, Any] | None) -> Column:
    """How often an eligible row is kept: 0 below the cut of its group. None: there is no cut, all are kept."""
    if not cuts:
        return F.lit(int(cuts is None))
    if config.keep.soft_cap:
        return soft_cap.num_repeats(draw(config.seed), cuts, config.keep.soft_cap)
    rank = lookup(F.col("group"), {group: cut[0] for group, cut in cuts.items()})
    uid = lookup(F.col("group"), {group: cut[1] for group, cut in cuts.items()})
    is_kept = (F.col("rank") > rank) | ((F.col("rank") == rank) & (F.col("uid") <= uid))
    return F.coalesce(is_kept.cast("int"), F.lit(0))
