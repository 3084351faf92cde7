"""A selection as pages ask about it: every pair with its verdict, rank and whether it may be shown. Reads tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.project import Project
from etl.selection import judging
from etl.selection.receipts import Replay
from etl.stages.selection import ranked_by
from etl.tables import CANDIDATES, CONTAMINATED, FETCHES, IMAGE_SIGNALS, PAIRS, SCORES, SELECTIONS, SIGNALS

NSFW_ABOVE = 0.1
"""A pair that any model scores higher is not shown: DataComp's limit, or the rule's where that is lower."""
SHOWABLE = ("ok", "metadata_only", "missing_text", "invalid_text")
"""Statuses of pairs that can be shown."""


@dataclass(frozen=True)
class Subject:
    project: Project
    pool: str
    receipt: Mapping[str, Any]

    @property
    def selection_id(self) -> str:
        return str(self.receipt["selection_id"])

    @property
    def ranking(self) -> tuple[str, str] | None:
        """(filter, version) whose scores ranked."""
        return ranked_by(self.receipt["rule"])

    @property
    def threshold(self) -> float | None:
        found = self.receipt["facts"].get("threshold")
        return None if found is None else float(found)

    @cached_property
    def replay(self) -> Replay:
        return Replay(self.project.store, self.pool, self.receipt)

    @cached_property
    def obstacle(self) -> str | None:
        """Why the rule cannot be applied again; then what was kept is known, and of the others no reason."""
        return self.replay.obstacle()

    @cached_property
    def judged(self) -> DataFrame:
        """(uid, verdict, rank, is_kept, is_flagged, has_pixels) of every pair, computed once and kept on executors.

        `is_flagged`: must not be shown.
        """
        judged = self._stored() if self.obstacle else self.replay.judged()
        store, pool = self.project.store, self.pool
        limit = (self.receipt["rule"].get("exclude") or {}).get("nsfw_above")
        hidden = flagged(self.project, pool, NSFW_ABOVE if limit is None else min(NSFW_ABOVE, limit))
        rows = judged.join(hidden.withColumn("is_named", F.lit(True)), on="uid", how="left")
        status, has_pixels = F.col("status").isin(list(SHOWABLE)), F.col("shard").isNotNull()
        pairs = store.read(pool, PAIRS).select("uid", status.alias("is_showable"), has_pixels.alias("has_pixels"))
        rows = rows.join(pairs, on="uid", how="left")
        is_flagged = F.col("is_named").isNotNull() | ~F.coalesce("is_showable", F.lit(False))
        is_flagged = is_flagged | F.col("verdict").isin("blocked", "nsfw", "contaminated")
        has_pixels = F.coalesce("has_pixels", F.lit(False)).alias("has_pixels")
        found = rows.select("uid", "verdict", "rank", "is_kept", is_flagged.alias("is_flagged"), has_pixels)
        return found.localCheckpoint()

    def _stored(self) -> DataFrame:
        """As `Replay.judged`, from the rows that the selection wrote and the scores as they are now."""
        store = self.project.store
        kept = store.read(self.pool, SELECTIONS, where={"selection_id": self.selection_id})
        rows = store.read(self.pool, PAIRS).select("uid", "status").join(
            kept.select("uid", "score", F.lit(True).alias("was_kept")), on="uid", how="left"
        )  # fmt: skip
        rank = F.col("score")
        if self.ranking and store.exists(self.pool, SCORES):
            where = {"filter": self.ranking[0], "filter_version": self.ranking[1]}
            now = store.read(self.pool, SCORES, where=where).select("uid", F.col("score").cast("double").alias("now"))
            rows, rank = rows.join(now, on="uid", how="left"), F.coalesce("score", "now")
        is_kept = F.coalesce("was_kept", F.lit(False))
        verdict = F.when(is_kept, "eligible").otherwise(
            F.when(F.col("status") == "ok", "not_known").otherwise(F.col("status"))
        )
        return rows.select("uid", verdict.alias("verdict"), rank.alias("rank"), is_kept.alias("is_kept"))


def flagged(project: Project, pool: str, nsfw_above: float, *, with_leaks: bool = True) -> DataFrame:
    """(uid), each once: pairs that no page shows, by all that is known now.

    Unsafe by picture or words, with a face, opted out, on the config's blocklists, or, `with_leaks`, seen in an
    evaluation set. Where a model looks for unsafe pictures, also those that it has not looked at.
    """
    store = project.store
    pairs = store.read(pool, PAIRS)
    lines = judging.blocklist(project.config.stages.selection.exclude.blocklists)  # type: ignore[attr-defined]
    found = [pairs.where(judging.is_blocked(lines))]
    if with_leaks and store.exists(pool, CONTAMINATED):
        found.append(store.read(pool, CONTAMINATED))
    webs = [store.read(pool, table) for table in (CANDIDATES, FETCHES) if store.exists(pool, table)]
    found += [rows.where("opt_out_evidence IS NOT NULL") for rows in webs]
    if store.exists(pool, SIGNALS):
        found.append(store.read(pool, SIGNALS).where(F.col("nsfw_text_score") > nsfw_above))
    if store.exists(pool, IMAGE_SIGNALS):
        looked = store.read(pool, IMAGE_SIGNALS)
        found.append(looked.where((F.col("nsfw_score") > nsfw_above) | (F.size("face_boxes") > 0)))
        seen = looked.where("nsfw_score IS NOT NULL").select("uid").distinct()
        if not seen.limit(1).isEmpty():
            found.append(pairs.join(seen, on="uid", how="left_anti"))
    return reduce(DataFrame.unionAll, [frame.select("uid") for frame in found]).distinct()
