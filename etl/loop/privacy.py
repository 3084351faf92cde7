"""`dfn privacy`: whether a registered filter gives away which pairs it was trained on, before it is published.

Trains twins of it on halves of its own dataset (`models.privacy`), in OUTPUT/privacy, one file of scores each: killed
and run again, it goes on. What was found becomes tags of the filter's version in MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
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
    tags = {"privacy_auc": str(found.by_score), "privacy_auc_calibrated": str(found.calibrated),
            "privacy": json.dumps(asdict(found)), "privacy_dataset": dataset}  # fmt: skip
    with answering(project.tracking_uri):
        registry.set_tags(name, number, tags)
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


@dataclass(frozen=True)
class Twins:
    """Filters of one recipe on halves of `data`, by the scores that they give to all of it."""

    project: Project
    data: Data
    pool: Data
    """By whose statistics the filter was standardised."""
    config: TrainingConfig
    folder: Path

    @cached_property
    def _stats(self) -> Any:
        from models.data import Vectors
        from models.train import ImageStats

        return ImageStats.of(Vectors.open(self.pool.vectors))

    def scores(self, number: int, is_member_N: Any) -> Any:
        """Under one twin: float64, shape N. Made once; the twin itself is not kept."""
        from models.data import Vectors, open_npy, uid_to_u8
        from models.filters import Filter
        from models.train import TrainConfig, train

        path, label = self.folder / f"twin-{number:02}.npy", f"twin {number + 1} of the filter"
        if path.exists():
            self.project.say(f"{label:<29} up to date")
            return open_npy(path)
        vectors = Vectors.open(self.data.vectors)
        members = [uid for uid, is_member in zip(vectors.uids, is_member_N, strict=True) if is_member]
        rows = Vectors.open(self.data.vectors, uid_to_u8(members))
        recipe = TrainConfig(**self.config.model_dump(), seed=number)
        with TemporaryDirectory(dir=self.folder) as temporary:
            out = Path(temporary)
            done = train(rows, recipe, out / "twin", encoder_record=self.project.encoder[0], stats=self._stats)
            scores_N = Filter.load(done.folder).score(vectors.image_NI, vectors.text_NT)
            np.save(out / path.name, scores_N.astype(np.float64))
            (out / path.name).replace(path)
        self.project.say(f"{label:<29} {len(members):,} pairs, {recipe.steps} steps in {done.seconds:.1f} s")
        return open_npy(path)


def _found(project: Project, loop: Loop, data: Data, config: TrainingConfig, num_twins: int) -> Leak:
    from models.data import Vectors

    try:
        is_member_KN = halves(len(Vectors.open(data.vectors)), num_twins)
    except ValueError as error:
        raise UserError(f"privacy: {error}; fix: --twins, or a larger dataset") from None
    pool = loop.data_of(loop.pool)
    key = digest(VERSION, config.model_dump(), data.content, pool.content, project.encoder[0].version, num_twins)
    folder = project.config.output_folder / "privacy" / key[:12]
    folder.mkdir(parents=True, exist_ok=True)
    twins = Twins(project, data, pool, config, folder)
    return leak(np.stack([twins.scores(*each) for each in enumerate(is_member_KN)]), is_member_KN)
