"""Which stages `dfn run` runs for a config, and what one says of another. Touches nothing."""

from __future__ import annotations

from typing import Any

from etl.config import Config

BEFORE_FILTERS = (
    "collect", "download", "ingest", "signals", "dedup", "decontaminate", "embed", "image_signals", "variants",
    "face_boxes", "features", "dedup_semantic", "decontaminate_semantic",
)  # fmt: skip
"""Stages that need no filter: what `dfn run` does when none is named, without those that the config has no use for."""


def idle_stages(config: Config) -> dict[str, str]:
    """Stages that the config has no use for -> what they want."""
    stages: Any = config.stages
    idle = {} if config.image_models else {"image_signals": "image_models, such as [open_nsfw]"}
    if not stages.face_boxes.column:
        idle["face_boxes"] = "stages.face_boxes.column, such as face_bboxes"
    for name in ("dedup_semantic", "decontaminate_semantic"):
        if not getattr(stages, name).is_on:
            idle[name] = f"stages.{name}.is_on: true"
    if not stages.decontaminate_semantic.is_on:
        idle["variants"] = idle["decontaminate_semantic"]
    elif not stages.variants.edits:
        idle["variants"] = "stages.variants.edits, such as [mirrored]"
    if config.encoder.published:  # vectors came with the release
        return idle | dict.fromkeys(("embed", "variants"), "no encoder.published")
    return idle | {"features": "encoder.published, such as datacomp_l14"}


def edits_of(config: Config) -> tuple[str, ...]:
    """As what evaluation pictures are looked for, beside as they are."""
    stages: Any = config.stages
    return () if "variants" in idle_stages(config) else stages.variants.edits
