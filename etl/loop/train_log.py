"""A run of `dfn train` in MLflow, so that lineage leads from its CLIP to the rows, and from a row to it.

By way of `models.spool`, as the loop's runs. Reads an export's manifest; touches OUT/clip.mlflow.* and MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from etl.shard_writer import MANIFEST, publish_json
from models.job import TrainJob
from models.records import EncoderRecord, FilterRecord

KIND = "pretrained"
"""The tag `kind` of such a run."""


@dataclass(frozen=True)
class Origin:
    """Where a run is logged, and what its pairs were."""

    tracking_uri: str
    """Empty: nowhere."""
    experiment: str = "train"
    receipt: Mapping[str, Any] | None = None
    """Of the selection; None: of a corpus."""


def receipt_of_export(data: str) -> Mapping[str, Any] | None:
    """Of the selection that a folder of shards was exported from; None where it is a corpus, or no export."""
    files, root = url_to_fs(data)
    try:
        found: Mapping[str, Any] | None = json.loads(files.cat_file(f"{root}/{MANIFEST}")).get("receipt")
    except (OSError, ValueError, AttributeError):  # training says what it wants
        return None
    return found


def log(job: TrainJob, result: Mapping[str, Any], metrics: Mapping[str, float], origin: Origin) -> str | None:
    """Logs a finished run once: its id, or None where MLflow does not answer: then it waits beside OUT/clip."""
    from models import spool

    folder = job.out / "clip"
    if waiting := spool.pending(job.out):
        return spool.ship_quickly(waiting[0], origin.tracking_uri)
    if (known := spool.run_id_of(folder)) is not None:
        return known
    dial = {"scale": job.scale, "content": result["run"], "data": job.data, "num_pairs": result["num_pairs"]}
    return spool.log_training_run(
        origin.tracking_uri, origin.experiment, f"{KIND} {job.scale} seed {job.seed}",
        params={**job.recipe.model_dump(), **dial, "seed": job.seed, **_first(job)},
        metrics=metrics, step_losses=result["losses"], inputs=origin.receipt["inputs"] if origin.receipt else {},
        folder=folder, tags={"kind": KIND, "arm": job.name}, receipt=origin.receipt,
    )  # fmt: skip


def note_first(folder: Path, heads: Path) -> None:
    """Beside first weights that are to be joined from towers and heads: whose heads."""
    publish_json(_note(folder), {"init": FilterRecord.read(heads).version})


def _first(job: TrainJob) -> dict[str, str]:
    """What it began with: an encoder, and the filter whose heads were joined to it."""
    if job.init is None:
        return {}
    heads = json.loads(_note(job.init).read_text()) if _note(job.init).exists() else {}
    return {"init_encoder": EncoderRecord.read(job.init).version, **heads}


def _note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")
