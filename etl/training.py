"""Training runs as the loop sees them: up to date or trained, evaluated, logged to MLflow and recorded in `runs`.

A model's folder with its run.json is what makes a run up to date: a Delta commit per run of two seconds would cost as
much as the run. Touches OUTPUT/models, MLflow, and the tables `runs` and `evaluations`. The training itself is
`models.train`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from etl.config import TrainingConfig
from etl.project import Project
from etl.runs import RunRow, find_runs, record_runs
from etl.shard_writer import publish_json
from etl.stage import digest
from etl.tables import EVALUATIONS

RUN = "run.json"
"""In a model's folder, written last: what the run found. Without it the folder is not a finished run's."""
VERSION = 2
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
    mlflow_run_id: str | None
    """None where MLflow did not answer: `models.spool` knows it when it has."""


@dataclass(frozen=True)
class Trainer:
    """Trains and evaluates on stored vectors; `stats_from` are the vectors that all runs are standardised by."""

    project: Project
    stats_from: Path
    eval_sets: tuple[EvalSet, ...]
    _pending: list[RunRow] = field(default_factory=list)

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
            content: str, inputs: Mapping[str, int],
            receipt: Mapping[str, Any] | None = None) -> Trained:  # fmt: skip
        """One model: `kind` is filter or induced, `name` its arm.

        Args:
            uids: the `.npy` list of a selection; None: all of `vectors`.
            content: what names the training rows (a receipt's hash, a folder's content).
            receipt: of the selection that `uids` lists, kept with the run.
        """
        encoder = self.project.encoder[0].version
        sets = [(s.name, s.vectors.name) for s in self.eval_sets]
        key = digest(VERSION, kind, config.model_dump(), seed, content, self.stats_from.name, encoder, sets)
        label = f"{kind} {name} seed {seed}"
        folder = self.project.config.output_folder / "models" / f"{kind}-{key[:12]}"
        if (folder / RUN).exists():
            found = json.loads((folder / RUN).read_text())
            self.project.say(f"{label:<29} up to date")
        else:
            from models.system_metrics import watched

            with watched() as system:
                found = self._train(folder, config, seed, vectors, uids)
            found |= {"folder": str(folder), "arm": name, "seed": seed}
            found["mlflow_run_id"] = self._log(label, kind, config, content, inputs, found, receipt, system)
            self.project.say(f"{label:<29} {config.steps} steps in {found['seconds']:.1f} s, {_fall(found['losses'])}")
            publish_json(folder / RUN, found)
        if (kind, key) not in self._known:
            facts = {name: value for name, value in found.items() if name != "losses"}
            row = RunRow(kind, None, key, inputs, config.model_dump_json(), facts, found["seconds"])
            self._pending.append(row)
        return Trained(folder, found["metrics"], found["mlflow_run_id"])

    def record(self) -> None:
        """The runs since the last call, as rows of `evaluations` and `runs`: one commit each."""
        store, pending = self.project.store, list(self._pending)
        if not pending:
            return
        if not store.exists("", EVALUATIONS):
            store.create("", EVALUATIONS)
        rows = [
            (run.run_id, *metric.split(".", 1), value, run.facts["seed"])
            for run in pending
            for metric, value in run.facts["metrics"].items()
        ]
        content = digest([run.run_id for run in pending])
        store.append_once(store.rows("", EVALUATIONS, rows), "", EVALUATIONS, content=content, note={"slice": {}})
        record_runs(store, pending)
        self._known.update({(run.name, run.key): run.facts for run in pending})
        self._pending.clear()

    def _log(self, label: str, kind: str, config: TrainingConfig, content: str, inputs: Mapping[str, int],
             found: Mapping[str, Any], receipt: Mapping[str, Any] | None, system: list[Any]) -> str | None:  # fmt: skip
        from models import spool

        params = {**config.model_dump(), "seed": found["seed"], "arm": found["arm"], "kind": kind, "content": content}
        folder = Path(found["folder"])
        run_id = spool.log_training_run(
            self.project.tracking_uri, self.project.config.name, label, params=params, metrics=found["metrics"],
            step_losses=found["losses"], inputs=inputs, heads_folder=folder,
            tags={"kind": kind, "arm": found["arm"]}, receipt=receipt, system=system,
        )  # fmt: skip
        if run_id is None:
            self.project.say(f"{label:<29} MLflow does not answer: the run waits beside {folder}; dfn sync sends it")
        return run_id

    def _train(self, folder: Path, config: TrainingConfig, seed: int, vectors: Path,
               uids: Path | None) -> dict[str, Any]:  # fmt: skip
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
        return {"metrics": metrics, "losses": done.losses, "seconds": done.seconds}


def _fall(losses: list[float]) -> str:
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f}"


def labels_of(path: str | None) -> Mapping[str, str] | None:
    """uid -> class, from a parquet file with columns uid and label; None where a set has no classes."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return dict(zip(table["uid"], table["label"], strict=True))
