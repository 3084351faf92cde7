"""Training runs as the loop sees them: up to date or trained, evaluated, logged to MLflow and recorded in `runs`.

Touches OUTPUT/models, MLflow, and the tables `runs` and `evaluations`. The training itself is `models.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from etl.config import TrainingConfig
from etl.project import Project
from etl.runs import find_runs, record_run
from etl.stage import digest
from etl.tables import EVALUATIONS

VERSION = 1
"""Raise it when the same inputs and config would train or evaluate otherwise."""


@dataclass(frozen=True)
class EvalSet:
    """An evaluation dataset: its stored vectors and, where it has classes, uid -> class."""

    name: str
    vectors: Path
    labels: Mapping[str, str] | None


@dataclass(frozen=True)
class Trained:
    """A model that was trained once, now or earlier."""

    folder: Path
    metrics: Mapping[str, float]
    """DATASET.METRIC -> value in [0, 1]."""
    mlflow_run_id: str


@dataclass(frozen=True)
class Trainer:
    """Trains and evaluates on stored vectors; `stats_from` are the vectors that all runs are standardised by."""

    project: Project
    stats_from: Path
    eval_sets: tuple[EvalSet, ...]

    @cached_property
    def _known(self) -> dict[tuple[str, str], dict[str, Any]]:
        return find_runs(self.project.store)

    @cached_property
    def _encode_texts(self) -> Callable[..., Any]:
        from models.encoder import Encoder

        return Encoder.load(self.project.encoder[1]).encode_texts

    @cached_property
    def _stats(self) -> Any:
        from models.data import Vectors
        from models.train import ImageStats

        return ImageStats.of(Vectors.open(self.stats_from))

    def run(self, kind: str, name: str, config: TrainingConfig, seed: int, *, vectors: Path, uids: Path | None,
            content: str, inputs: Mapping[str, int]) -> Trained:  # fmt: skip
        """One model: `kind` is filter or induced, `name` its arm.

        Args:
            uids: the `.npy` list of a selection; None: all of `vectors`.
            content: what names the training rows (a receipt's hash, a folder's content).
        """
        encoder = self.project.encoder[0].version
        sets = [(s.name, s.vectors.name) for s in self.eval_sets]
        key = digest(VERSION, kind, config.model_dump(), seed, content, self.stats_from.name, encoder, sets)
        label = f"{kind} {name} seed {seed}"
        folder = self.project.config.output_folder / "models" / f"{kind}-{key[:12]}"
        known = self._known.get((kind, key))
        if known and folder.is_dir():
            self.project.say(f"{label:<29} up to date")
            return Trained(folder, known["metrics"], known["mlflow_run_id"])
        trained, losses, seconds = self._train(folder, config, seed, vectors, uids)
        params = {**config.model_dump(), "seed": seed, "arm": name, "kind": kind, "content": content}
        from models import registry

        run_id = registry.log_training_run(
            self.project.tracking_uri, self.project.config.name, label, params=params, metrics=trained,
            step_losses=losses, inputs=inputs, heads_folder=folder, tags={"kind": kind, "arm": name},
        )  # fmt: skip
        facts = {"metrics": trained, "mlflow_run_id": run_id, "folder": str(folder), "arm": name, "seed": seed}
        record_run(
            self.project.store, name=kind, dataset=None, key=key, inputs=inputs, config_json=config.model_dump_json(),
            facts=facts, seconds=seconds,
        )  # fmt: skip
        self._record_metrics(run_id, trained, seed)
        self.project.say(
            f"{label:<29} {len(losses)} steps in {seconds:.1f} s, loss {losses[0]:.2f} to {losses[-1]:.2f}"
        )
        return Trained(folder, trained, run_id)

    def _train(self, folder: Path, config: TrainingConfig, seed: int, vectors: Path,
               uids: Path | None) -> tuple[dict[str, float], list[float], float]:  # fmt: skip
        from models.data import Vectors, read_uids
        from models.evaluate import evaluate
        from models.filters import Filter
        from models.train import TrainConfig, train

        rows = Vectors.open(vectors, read_uids(uids) if uids else None)
        record = self.project.encoder[0]
        recipe = TrainConfig(**config.model_dump(), seed=seed)
        done = train(rows, recipe, folder, encoder_record=record, stats=self._stats)
        model, metrics = Filter.load(folder), dict[str, float]()
        for eval_set in self.eval_sets:
            encode = self._encode_texts if eval_set.labels else None
            found = evaluate(model, Vectors.open(eval_set.vectors), labels=eval_set.labels, encode_texts=encode)
            metrics |= {f"{eval_set.name}.{metric}": value for metric, value in found.items()}
        return metrics, done.losses, done.seconds

    def _record_metrics(self, run_id: str, metrics: Mapping[str, float], seed: int) -> None:
        store = self.project.store
        if not store.exists("", EVALUATIONS):
            store.create("", EVALUATIONS)
        rows = [(run_id, *name.split(".", 1), value, seed) for name, value in metrics.items()]
        frame = store.spark.createDataFrame(rows, store.schema("", EVALUATIONS))
        store.append_once(frame, "", EVALUATIONS, content=run_id, note={"slice": {}, "run": run_id})


def labels_of(path: str | None) -> Mapping[str, str] | None:
    """uid -> class, from a parquet file with columns uid and label; None where a set has no classes."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return dict(zip(table["uid"], table["label"], strict=True))
