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

from etl.loop.loop_config import TrainingConfig
from etl.project import Project
from etl.runs import RunRow, find_runs, record_runs
from etl.shard_writer import publish_json
from etl.stage import digest
from etl.tables import EVALUATIONS
from models.filters import HEADS
from models.records import FilterRecord

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
class Data:
    """What a model is trained on."""

    vectors: Path
    content: str
    """What names the rows: a receipt's hash, a folder's content."""
    inputs: Mapping[str, int]
    """Path of each Delta table that they come from -> its version."""
    uids: Path | None = None
    """The `.npy` list of a selection; None: all of `vectors`."""
    receipt: Mapping[str, Any] | None = None
    """Of the selection that `uids` lists, kept with the run."""


@dataclass(frozen=True)
class Made:
    """What writing a model took."""

    losses: list[float]
    """One a step; none for an average."""
    seconds: float

    def __str__(self) -> str:
        if not self.losses:
            return "weights averaged"
        return f"{len(self.losses)} steps in {self.seconds:.1f} s, loss {self.losses[0]:.2f} to {self.losses[-1]:.2f}"


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
    parent: Path | None = None
    """What names the round's run in MLflow, whose children these runs are; see `models.spool.begin`."""
    _pending: list[RunRow] = field(default_factory=list)

    @cached_property
    def _known(self) -> dict[tuple[str, str], dict[str, Any]]:
        return find_runs(self.project.store)

    @cached_property
    def encode_texts(self) -> Callable[..., Any]:
        from models.encoder import Encoder

        return Encoder.load(self.project.encoder[1]).encode_texts

    @cached_property
    def _stats(self) -> Any:
        from models.data import Vectors
        from models.train import ImageStats

        return ImageStats.of(Vectors.open(self.stats_from))

    def run(self, kind: str, name: str, config: TrainingConfig, seed: int, data: Data, *,
            init: Path | None = None) -> Trained:  # fmt: skip
        """One model: `kind` is filter or induced, `name` its arm, `init` trained heads that go on (None: random)."""
        first = {"init": FilterRecord.read(init).version} if init else {}

        def make(folder: Path) -> Made:
            from models.data import Vectors, read_uids
            from models.filters import Heads
            from models.train import TrainConfig, train

            rows = Vectors.open(data.vectors, read_uids(data.uids) if data.uids else None)
            recipe = TrainConfig(**config.model_dump(), seed=seed)
            heads = Heads.load(init / HEADS) if init else None
            done = train(rows, recipe, folder, encoder_record=self.project.encoder[0], stats=self._stats, init=heads)
            return Made(done.losses, done.seconds)

        made_of = [config.model_dump(), seed, data.content, *first.values()]
        return self._once(kind, name, seed, made_of, {**config.model_dump(), **first}, data, make)

    def average(self, kind: str, name: str, alpha: float, seed: int, before: Trained, after: Trained,
                data: Data) -> Trained:  # fmt: skip
        """(1 - alpha) of the weights before fine-tuning on `data` and alpha of those after, as one model."""
        versions = {side: FilterRecord.read(m.folder).version for side, m in (("before", before), ("after", after))}

        def make(folder: Path) -> Made:
            from models.average import average_heads

            average_heads(before.folder, after.folder, folder, alpha=alpha, encoder_folder=self.project.encoder[1])
            return Made([], 0.0)

        return self._once(kind, name, seed, [alpha, *versions.values()], {"alpha": alpha, **versions}, data, make)

    def _once(self, kind: str, name: str, seed: int, made_of: list[Any], params: Mapping[str, Any], data: Data,
              make: Callable[[Path], Made]) -> Trained:  # fmt: skip
        """What `make` writes, evaluated, logged and recorded; or what an earlier run of the same `made_of` found."""
        sets = [(s.name, s.vectors.name) for s in self.eval_sets]
        key = digest(VERSION, kind, *made_of, self.stats_from.name, self.project.encoder[0].version, sets)
        label = f"{kind} {name} seed {seed}"
        folder = self.project.config.output_folder / "models" / f"{kind}-{key[:12]}"
        if (folder / RUN).exists():
            found = json.loads((folder / RUN).read_text())
            self.project.say(f"{label:<29} up to date")
        else:
            from models.system_metrics import watched

            with watched() as system:
                made = make(folder)
                found = {"metrics": self._evaluated(folder), "losses": made.losses, "seconds": made.seconds}
            found |= {"folder": str(folder), "arm": name, "seed": seed}
            found["mlflow_run_id"] = self._log(label, kind, params, data, found, system)
            self.project.say(f"{label:<29} {made}")
            publish_json(folder / RUN, found)
        if (kind, key) not in self._known:
            facts = {name: value for name, value in found.items() if name != "losses"}
            row = RunRow(kind, None, key, data.inputs, json.dumps(params), facts, found["seconds"])
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

    def _log(self, label: str, kind: str, params: Mapping[str, Any], data: Data, found: Mapping[str, Any],
             system: list[Any]) -> str | None:  # fmt: skip
        from models import spool

        told = {"seed": found["seed"], "arm": found["arm"], "kind": kind, "content": data.content}
        folder = Path(found["folder"])
        run_id = spool.log_training_run(
            self.project.tracking_uri, self.project.config.name, label, params={**params, **told},
            metrics=found["metrics"], step_losses=found["losses"], inputs=data.inputs, folder=folder,
            tags={"kind": kind, "arm": found["arm"]}, receipt=data.receipt, system=system,
            parent=self.parent,
        )  # fmt: skip
        if run_id is None:
            self.project.say(f"{label:<29} MLflow does not answer: the run waits beside {folder}; dfn sync sends it")
        return run_id

    def _evaluated(self, folder: Path) -> dict[str, float]:
        from models.data import Vectors
        from models.evaluate import evaluate
        from models.filters import Filter

        model, metrics = Filter.load(folder), dict[str, float]()
        for eval_set in self.eval_sets:
            encode = self.encode_texts if eval_set.labels else None
            found = evaluate(model, Vectors.open(eval_set.vectors), labels=eval_set.labels, encode_texts=encode)
            metrics |= {f"{eval_set.name}.{metric}": value for metric, value in found.items()}
        return metrics


def labels_of(path: str | None) -> Mapping[str, str] | None:
    """uid -> class, from a parquet file with columns uid and label; None where a set has no classes."""
    if path is None:
        return None
    table = pd.read_parquet(path)
    return dict(zip(table["uid"], table["label"], strict=True))
