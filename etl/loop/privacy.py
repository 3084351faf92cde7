"""`dfn privacy`: whether a registered filter gives away which pairs it was trained on, before it is published.

Trains twins of it on halves of its own dataset (`models.privacy`), in OUTPUT/privacy, one file of scores each: killed
and run again, it goes on. What was found becomes tags of the filter's version in MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from etl.filters import recipe
from etl.loop.loop import Loop
from etl.loop.training import Data
from etl.loop.training_config import TrainingConfig
from etl.project import Project
from etl.stage import UserError, digest
from models.privacy import Leak, halves, leak

VERSION = 1
"""Raise it when the same filter's twins would score otherwise."""
TAGS = ("privacy_auc", "privacy_auc_calibrated", "privacy")


def check(project: Project, uri: str, num_twins: int) -> tuple[str, Leak]:
    """(the version's URI, what was found of it), which its tags then say too.

    Args:
        uri: a filter in MLflow's registry, models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        UserError: it was fine-tuned, or trained on other pairs than this project's.
        RegistryError, TrackingDownError: no such version; no answer.
    """
    from models import registry
    from models.tracking import answering

    with answering(project.tracking_uri):
        name, number = registry.name_of(uri), registry.number_of(uri)
        params = registry.run_params(name, number)
    version = f"models:/{name}/{number}"
    loop = Loop(project)
    dataset, data = _learnt_from(loop, params, version)
    config = TrainingConfig.model_validate({field: params[field] for field in TrainingConfig.model_fields})
    found = _found(project, loop, data, config, num_twins)
    tags = dict(zip(TAGS, (str(found.by_score), str(found.calibrated), json.dumps(asdict(found))), strict=True))
    with answering(project.tracking_uri):
        registry.set_tags(name, number, {**tags, "privacy_dataset": dataset})
    return version, found


def _learnt_from(loop: Loop, params: Mapping[str, str], version: str) -> tuple[str, Data]:
    """The dataset whose rows are those that the run had."""
    if params.get("kind") != "filter" or params.keys() & {"alpha", "init"}:
        raise UserError(f"privacy: wanted a filter that was trained once, on one dataset; found {version}, which was "
                        "fine-tuned or averaged; fix: name the filter before that")  # fmt: skip
    datasets = {name: loop.data_of(name) for name in recipe.datasets(loop.project)}
    for name, data in datasets.items():
        if data.content == params["content"]:
            return name, data
    raise UserError(f"privacy: wanted the pairs that {version} was trained on; found others in "
                    f"{', '.join(datasets)}; fix: --conf of the project that trained it")  # fmt: skip


def _found(project: Project, loop: Loop, data: Data, config: TrainingConfig, num_twins: int) -> Leak:
    from models.data import Vectors

    vectors = Vectors.open(data.vectors)
    try:
        is_member_KN = halves(len(vectors), num_twins)
    except ValueError as error:
        raise UserError(f"privacy: {error}; fix: --twins, or a larger dataset") from None
    pool = loop.data_of(loop.pool)
    key = digest(VERSION, config.model_dump(), data.content, pool.content, project.encoder[0].version, num_twins)
    folder = project.config.output_folder / "privacy" / key[:12]
    folder.mkdir(parents=True, exist_ok=True)
    scores = [
        _scores(project, data, pool, config, number, is_member_N, folder / f"twin-{number:02}.npy")
        for number, is_member_N in enumerate(is_member_KN)
    ]
    return leak(np.stack(scores), is_member_KN)


def _scores(project: Project, data: Data, pool: Data, config: TrainingConfig, number: int, is_member_N: Any,
            path: Path) -> Any:  # fmt: skip
    """Of all pairs under one twin: float64, shape N. Made once; the twin itself is not kept."""
    from models.data import Vectors, open_npy, uid_to_u8
    from models.filters import Filter
    from models.train import ImageStats, TrainConfig, train

    label = f"twin {number + 1} of the filter"
    if not path.exists():
        vectors = Vectors.open(data.vectors)
        members = [uid for uid, is_member in zip(vectors.uids, is_member_N, strict=True) if is_member]
        stats = ImageStats.of(Vectors.open(pool.vectors))  # as the filter's own
        with TemporaryDirectory(dir=path.parent) as temporary:
            done = train(
                Vectors.open(data.vectors, uid_to_u8(members)), TrainConfig(**config.model_dump(), seed=number),
                Path(temporary) / "twin", encoder_record=project.encoder[0], stats=stats,
            )  # fmt: skip
            scores_N = Filter.load(done.folder).score(vectors.image_NI, vectors.text_NT)
            np.save(Path(temporary) / "scores.npy", scores_N.astype(np.float64))
            (Path(temporary) / "scores.npy").replace(path)
        project.say(f"{label:<29} {len(members):,} pairs, {config.steps} steps in {done.seconds:.1f} s")
    else:
        project.say(f"{label:<29} up to date")
    return open_npy(path)
