"""What a list of uids keeps, in place of a rule: as DataComp and DFN publish what they kept. Reads the list and pairs.
Writes selections, and a receipt that proves them.

The list is taken as it is: of the rules of `selection`, exclusions too, none is applied. A uid that is listed n times
is repeated n times. What of the list the pool lacks is counted.
"""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.selection.uid_lists import num_entries, read_list
from etl.stage import Facts, Read, Stage, StageConfig, UserError
from etl.stages.selection import slice_of, with_receipt
from etl.tables import PAIRS, RECEIPTS, SELECTIONS
from models.records import sha256_file

OPTION = "--uids"
KEPT = ("ok", "metadata_only")
"""Statuses of pairs that a list can keep: with the second, those whose pixels have yet to be fetched."""


class Config(StageConfig):
    name: str = "listed"
    """What people call this selection."""
    listed: Path | None = None
    """The list: `.npy` of dtype u8,u8, where driver and executors see it."""
    sha256: str = ""
    """Known to a run only: of the list's bytes."""


def of_list(path: Path, name: str) -> Config:
    """The settings that keep what is in the list at `path`. Raises UserError where there is none."""
    num_entries(path, OPTION)
    return Config(name=name, listed=path.absolute(), sha256=sha256_file(path))


def check(config: Config) -> Path:
    """The list, whose bytes are still those that the selection was made from. Raises UserError."""
    path = config.listed
    if path is None:
        raise UserError("stage listed: wanted a list of uids; found none; fix: dfn select --uids LIST.npy")
    if not path.is_file() or sha256_file(path) != config.sha256:
        found = "another file" if path.is_file() else "none"
        raise UserError(f"the list {path}: wanted sha256 {config.sha256[:16]}; found {found}; fix: put it back")
    return path


def prepare(pairs: DataFrame, *, config: Config) -> Facts:
    """{num_listed, num_entries, num_not_in_pool, num_rows_by_status, and what every receipt has}: uids, but for
    num_entries, which counts repeats."""
    counts = judged(pairs, config).groupBy("verdict", "is_listed").agg(F.count("*"), F.sum("num_repeats")).collect()
    by_verdict: dict[str, int] = {}
    for verdict, _, count, _ in counts:
        by_verdict[verdict] = by_verdict.get(verdict, 0) + count
    not_in_pool = by_verdict.pop("not_in_pool", 0)
    num_kept = by_verdict.setdefault("kept", 0)
    return {
        "num_listed": sum(count for _, is_listed, count, _ in counts if is_listed),
        "num_entries": sum(entries or 0 for *_, entries in counts),
        "num_not_in_pool": not_in_pool,
        "num_eligible": num_kept,
        "num_rows_by_status": by_verdict,
        "cuts": None,
        "tops": [],
        "threshold": None,
        "threshold_uid": None,
    }


def transform(pairs: DataFrame, *, config: Config, facts: Facts) -> tuple[DataFrame, DataFrame]:
    kept = judged(pairs, config).where("verdict = 'kept'")
    selection_id, score = F.lit(facts["key"][:16]), F.lit(None).cast("double")
    rows = kept.select(selection_id.alias("selection_id"), "uid", score.alias("score"), "num_repeats")
    return with_receipt(rows, config.model_dump_json(), 0, facts)


def judged(pairs: DataFrame, config: Config) -> DataFrame:
    """(uid, num_repeats, is_listed, verdict) of pairs and of listed uids; `kept`, or what speaks against it."""
    listed = read_list(pairs.sparkSession, check(config), OPTION)
    both = pairs.select("uid", "status").join(listed, on="uid", how="full_outer")
    is_listed = F.col("num_repeats").isNotNull()
    return both.select("uid", "num_repeats", is_listed.alias("is_listed"), _verdict().alias("verdict"))


def as_judged(pairs: DataFrame, config: Config) -> DataFrame:
    """(uid, verdict, rank, is_kept) of every pair, as a rule's receipt is replayed."""
    found = judged(pairs, config).where("verdict != 'not_in_pool'")
    is_kept, rank = F.col("verdict") == "kept", F.lit(None).cast("double")
    verdict = F.when(is_kept, "eligible").otherwise(F.col("verdict"))
    return found.select("uid", verdict.alias("verdict"), rank.alias("rank"), is_kept.alias("is_kept"))


def _verdict() -> Column:
    return (
        F.when(F.col("status").isNull(), "not_in_pool")
        .when(~F.col("status").isin(list(KEPT)), F.col("status"))
        .when(F.col("num_repeats").isNull(), "not_listed")
        .otherwise("kept")
    )


STAGE = Stage(
    "listed", reads={"pairs": Read(PAIRS)}, writes=(SELECTIONS, RECEIPTS), config=Config, transform=transform,
    prepare=prepare, resume="table", version=1, slice_of=slice_of,
)  # fmt: skip
