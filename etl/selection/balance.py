"""MetaCLIP's balancing: captions that hold only what many captions hold are thinned out. Reads frames and the entries.

Xu et al. 2023 (arXiv 2309.16671), algorithm 1, and facebookresearch/MetaCLIP: an entry is matched where the caption,
with blanks around , . ; : ? ! ` and for each tab and end of line, holds it between two blanks, in its own case. An
entry that n captions hold, n > t (a head entry), keeps each of them with probability t / n; any other (tail) keeps all.
A pair stays if any of its entries keeps it, and one without entries goes. Each entry draws by itself, as there: by a
hash of seed, uid and entry, so that neither partitions nor other entries of the list change a draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pydantic
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from etl.selection.pinned import pinned_bytes, pinned_path
from etl.stage import StageConfig, UserError, series_udf

SPACED = str.maketrans({**{c: f" {c} " for c in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})
DRAWS = 16**13
"""Numbers that a draw can be, as `judging.draw` has them."""


class Balance(StageConfig):
    entries: Path
    """Text file with an entry a line, or a JSON list of them, as MetaCLIP's metadata.json. In memory on each worker."""
    t: int = pydantic.Field(default=20_000, gt=0)
    """Captions of an entry from which on it is thinned: 20,000 in the paper for 400M pairs, 170,000 for 2.5B."""


def read_entries(path: str, sha256: Mapping[str, str]) -> list[str]:
    """Raises UserError for a file that is none or holds none."""
    data = pinned_bytes(Path(path), sha256)
    try:
        lines = json.loads(data) if path.endswith(".json") else data.decode().splitlines()
    except ValueError as error:
        raise UserError(f"balance.entries: wanted text or a JSON list; found {path}: {error}") from None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"balance.entries: wanted a list of strings; found another JSON in {path}")
    entries = [entry for entry in dict.fromkeys(lines) if entry.strip(" ")]
    if not entries:
        raise UserError(f"balance.entries: wanted an entry a line; found none in {path}")
    return entries


@lru_cache(maxsize=2)
def matcher(path: str, pins: frozenset[tuple[str, str]]) -> Callable[[str], list[str]]:
    """Caption -> its entries, in the order of the caption; read once a worker.

    Between blanks an entry is a run of the caption's words, so runs as long as an entry that starts with the same word
    are looked up: linear in the caption, with no automaton to build. What is found is what a search for substrings
    (MetaCLIP's Aho-Corasick) finds.
    """
    entries = read_entries(path, dict(pins))
    known, lengths = frozenset(entries), dict[str, tuple[int, ...]]()
    for entry in entries:
        words = entry.split(" ")
        lengths[words[0]] = tuple(sorted({*lengths.get(words[0], ()), len(words)}))

    def match(text: str) -> list[str]:
        words = text.translate(SPACED).split(" ")
        runs = (" ".join(words[i : i + n]) for i, word in enumerate(words) for n in lengths.get(word, ()))
        return list(dict.fromkeys(run for run in runs if run in known))

    return match


def matched(balance: Balance, sha256: Mapping[str, str]) -> Column:
    """The entries that `text` holds, array<string>; of NULL: none."""
    path, pins = pinned_path(balance.entries), frozenset(sha256.items())
    read_entries(path, sha256)  # a mistake is told here, once

    def match(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        entries_of = matcher(path, pins)
        for texts in batches:
            yield pd.Series([entries_of(text) if isinstance(text, str) else [] for text in texts], dtype=object)

    # Python: a look-up in half a million entries, which SQL would have to explode captions for.
    return series_udf(match, "array<string>")(F.col("text"))


def count_entries(eligible: DataFrame, balance: Balance, sha256: Mapping[str, str]) -> dict[str, Any]:
    """{num_entries, num_matched, num_head, num_tail, heads: entry -> captions} of rows with `entries`.

    `heads` are the entries of more than t captions: so few that they can be collected, for each has t captions.
    """
    counted = eligible.select(F.explode("entries").alias("entry")).groupBy("entry").count().localCheckpoint()
    num_matched = counted.count()
    heads = {row["entry"]: int(row["count"]) for row in counted.where(F.col("count") > balance.t).collect()}
    num_entries = len(read_entries(pinned_path(balance.entries), sha256))
    return {"num_entries": num_entries, "num_matched": num_matched, "num_head": len(heads),
            "num_tail": num_matched - len(heads), "heads": dict(sorted(heads.items()))}  # fmt: skip


def is_drawn(seed: int, uid: str, entry: str, count: int, t: int) -> bool:
    """With probability t / count."""
    return int(hashlib.md5(f"{seed}:{uid}:{entry}".encode()).hexdigest()[:13], 16) * count < t * DRAWS  # noqa: S324


def balanced(judged: DataFrame, heads: Mapping[str, int], balance: Balance, seed: int) -> DataFrame:
    """`judged` with the verdicts `no_entry` and `balanced_out` of eligible rows that balancing leaves out."""
    found, t = dict(heads), balance.t

    def stays(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        for uids, entries in batches:
            yield pd.Series(
                [any(e not in found or is_drawn(seed, u, e, found[e], t) for e in own)
                 for u, own in zip(uids, entries, strict=True)], dtype=bool,
            )  # fmt: skip

    # Python: thousands of counts to look up, where a map of SQL's is searched from end to end.
    is_drawn_by_any = series_udf(stays, "boolean")(F.col("uid"), F.col("entries"))
    is_eligible = F.col("verdict") == "eligible"
    left_out = F.when(F.size("entries") == 0, "no_entry").when(~is_drawn_by_any, "balanced_out")
    return judged.withColumn(
        "verdict", F.when(is_eligible, F.coalesce(left_out, "verdict")).otherwise(F.col("verdict"))
    )
