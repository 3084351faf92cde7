"""One pair through every stage: what each said of it, and why a selection kept it or not. Reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.selection import judging
from etl.selection.receipts import Replay, receipts
from etl.stage import Table, UserError
from etl.stages import listed
from etl.store import Store
from etl.tables import CONTAMINATED, DUPLICATES, EMBEDDINGS, IMAGE_SIGNALS, LEAK_METHODS, PAIRS, SCORES, SIGNALS

SHOWN: tuple[tuple[Table, tuple[str, ...]], ...] = (
    (PAIRS, ("status", "status_reason", "url", "text", "source", "shard", "image_format", "width_px", "height_px")),
    (SIGNALS, ("language", "language_confidence", "nsfw_text_score", "num_words", "num_chars", "aspect_ratio")),
    (IMAGE_SIGNALS, ("model", "model_version", "nsfw_score", "face_boxes", "status")),
    (DUPLICATES, ("method", "group_uid", "distance")),
    (CONTAMINATED, ("eval_set", "method", "distance", "edit")),
    (EMBEDDINGS, ("encoder", "encoder_version", "cosine", "status", "status_reason")),
    (SCORES, ("filter", "filter_version", "score", "status")),
)


def _closeness(row: Mapping[str, Any]) -> tuple[int, float, str]:
    """Order of rows of `contaminated`, the closest first: units differ, so by method before distance."""
    return LEAK_METHODS.index(row["method"]), row["distance"], row["eval_set"]


def explain(store: Store, dataset: str, uid: str) -> dict[str, Any]:
    """Table -> its rows of the pair; `selections` -> selection -> kept, or what spoke against it.

    Evaluation sets come with the closest first. Raises UserError where no pair has the uid.
    """
    found: dict[str, Any] = {}
    for table, columns in SHOWN:
        if store.exists(dataset, table):
            own = store.read(dataset, table).where(F.col("uid") == uid)
            rows = own.select(*[c for c in columns if c in own.columns]).collect()  # a table may be of before a column
            found[table.name] = [{k: v for k, v in row.asDict().items() if v is not None} for row in rows]
    found[CONTAMINATED.name] = sorted(found.get(CONTAMINATED.name, []), key=_closeness)
    if not found.get(PAIRS.name):
        raise UserError(f"wanted a uid of {dataset}; found no pair {uid}; fix: 32 lower-case hex digits, as in `pairs`")
    found["selections"] = {
        f"{receipt['rule']['name']} {id_}": _verdict(store, dataset, uid, receipt)
        for id_, receipt in receipts(store, dataset).items()
    }
    return found


def _verdict(store: Store, dataset: str, uid: str, receipt: dict[str, Any]) -> str:
    replay = Replay(store, dataset, receipt)
    if obstacle := replay.obstacle():
        return f"not known: {obstacle}"
    if replay.stage is listed.STAGE:
        rows = replay.judged().where(F.col("uid") == uid).collect()
        return "not in the pool then" if not rows else "kept" if rows[0]["is_kept"] else str(rows[0]["verdict"])
    inputs = replay.inputs
    near = _group_members(inputs.get("duplicates"), uid)
    only = {name: frame.where(F.col("uid").isin(near)) if "uid" in frame.columns else frame
            for name, frame in inputs.items()}  # fmt: skip
    duplicates = only.pop("duplicates", None)
    gathered = judging.gather(replay.config, **{name: only.get(name) for name in judging.GATHERED})  # type: ignore[arg-type]
    judged = judging.judge(gathered, duplicates, replay.config, receipt["facts"])
    cuts = receipt["facts"]["cuts"]
    own = judged.where(F.col("uid") == uid)
    repeats = judging.num_repeats(replay.config, cuts).alias("num_repeats")
    rows = own.select("verdict", "rank", "group", repeats).collect()
    if not rows:
        return "not in the pool then"
    row = rows[0]
    if row["verdict"] == "contaminated":
        seen = inputs["contaminated"].where(F.col("uid") == uid).collect()
        closest = min((r.asDict() for r in seen), key=_closeness)
        as_edited = f" as {closest['edit']}" if closest.get("edit") else ""
        of = f"{closest['method']} of {closest['eval_set']}{as_edited}"
        return f"contaminated ({of}, distance {closest['distance']:.4g})"
    if row["verdict"] != "eligible":
        return str(row["verdict"])
    if replay.config.keep.soft_cap:
        return f"drawn {row['num_repeats']} times (score {row['rank']:.4f})"
    cut = (cuts or {}).get(row["group"])
    place = f" (rank {row['rank']:.4f}, cut {cut[0]:.4f})" if cut else ""
    return ("kept" if row["num_repeats"] else "below the cut") + place


def _group_members(duplicates: DataFrame | None, uid: str) -> list[str]:
    """The pair, and the members of its groups: which of them is kept decides about it."""
    if duplicates is None:
        return [uid]
    groups = duplicates.where(F.col("uid") == uid).select("method", "group_uid").distinct()
    members = duplicates.join(groups, on=["method", "group_uid"], how="left_semi").select("uid").distinct().collect()
    return sorted({uid, *(row["uid"] for row in members)})
