"""The whole suite: base, choices on the development set, experiments in order, claims, report; resumable at any point.

What is done is on disk by its content (`jobs.key_of`) and is not trained again. Touches OUTPUT through its parts,
writes OUTPUT/{chosen,summary}.json, report.html and plots/ after each experiment, and an MLflow run per experiment and
seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from etl.evidence import spark_check, summary
from etl.evidence.base import Base, prepare
from etl.evidence.bench import Bench
from etl.evidence.claims import Runs
from etl.evidence.config import EvidenceConfig, Experiment, check
from etl.evidence.experiments import Cell, Lab, cells
from etl.evidence.jobs import Job
from etl.evidence.workers import Workers, workers
from etl.job import Progress
from etl.project import Project
from etl.shard_writer import publish_json
from etl.stage import UserError, digest
from models.tracking import TrackingDownError, log_run


@dataclass
class Suite:
    """One run of it."""

    project: Project
    pools: tuple[str, ...] = ()
    """That are run now; none: all of the config."""
    trained: dict[str, int] = field(default_factory=dict)
    """Phase -> jobs that were not done before."""

    def __post_init__(self) -> None:
        kinds = {name: dataset.kind for name, dataset in self.project.config.datasets.items()}
        check(self.config, kinds)
        if unknown := [name for name in self.pools if name not in self.config.pools]:
            raise UserError(f"--pool: wanted some of {', '.join(self.config.pools)}; found {', '.join(unknown)}")
        self.pools = self.pools or tuple(self.config.pools)

    @property
    def config(self) -> EvidenceConfig:
        return self.project.config.evidence

    @cached_property
    def base(self) -> Base:
        return prepare(self.project)

    @cached_property
    def bench(self) -> Bench:
        return Bench(self.config, self.base, self.project.config.output_folder)

    def run(self, experiments: Sequence[Experiment]) -> dict[str, Any]:
        """The summary, with the claims of these experiments and of those that were done before."""
        num_pairs = len(self.bench.banks.pool_N)
        lab, output = Lab(self.config, num_pairs, {}), self.project.config.output_folder
        checked = spark_check.check(self.project, self.bench, lab)
        if "store" in vars(self.project):  # its gigabyte is wanted by the processes that train
            self.project.store.spark.stop()
        with workers(self.bench, self.config, self.base, output) as pool:
            chosen = self._choose(pool, lab)
            lab = Lab(self.config, num_pairs, {name: found["fractions"] for name, found in chosen.items()})
            for experiment in experiments:
                for name in self.pools:
                    self._do(pool, f"{experiment} {name}", [cell.job for cell in cells(lab, experiment, name)])
                self._log(lab, experiment)
                found = self._write(lab, chosen, checked)
        return found

    def _choose(self, pool: Workers, lab: Lab) -> dict[str, Any]:
        """Pool -> {fractions: arm -> the one with the highest mean on the development set, dev: all of them}; of the
        pools that are run now, and those that were before."""
        chosen: dict[str, Any] = {}
        for name in self.config.pools:
            choices, dev = list(lab.choices(name)), dict[str, dict[str, list[float]]]()
            if name in self.pools:
                self._do(pool, f"choices {name}", [job for *_, job in choices])
            elif not all(self.bench.result(job) for *_, job in choices):
                continue
            for arm, fraction, job in choices:
                dev.setdefault(arm, {}).setdefault(f"{fraction:g}", []).append(self._result(job)["dev"])
            best = {arm: max(found, key=lambda f: float(np.mean(found[f]))) for arm, found in dev.items()}
            chosen[name] = {"fractions": {arm: float(f) for arm, f in best.items()}, "dev": dev}
        publish_json(self.project.config.output_folder / "chosen.json", chosen)
        return chosen

    def _do(self, pool: Workers, phase: str, jobs: Sequence[Job]) -> None:
        started, before = time.monotonic(), [0]
        name, _, of = phase.partition(" ")

        def on_done(done: int, wanted: int) -> None:
            before[0] += 1
            if before[0] % 10 == 0 or done == wanted:
                seconds = time.monotonic() - started
                self.project.on_progress(Progress(name, of, done, wanted, before[0], seconds))

        self.trained[phase] = pool.do(jobs, on_done)
        seconds = time.monotonic() - started
        done = f"{self.trained[phase]:,} runs in {seconds:.0f} s" if self.trained[phase] else "up to date"
        self.project.say(f"{name:<13} {of:<14} {done}")

    def _result(self, job: Job) -> dict[str, Any]:
        found = self.bench.result(job)
        if found is None:
            raise UserError("evidence: wanted every result on disk; found one that was removed; fix: run it again")
        return found

    def runs(self, lab: Lab, experiment: Experiment) -> dict[str, Runs]:
        """Pool -> what its cells found, of the pools whose cells are all done."""
        found = {}
        for name in lab.chosen:
            listed = cells(lab, experiment, name)
            if listed and all(self.bench.result(cell.job) for cell in listed):
                found[name] = self._runs(listed)
        return found

    def _runs(self, listed: Sequence[Cell]) -> Runs:
        arms: dict[str, list[Job]] = {}
        for cell in listed:
            arms.setdefault(cell.arm, []).append(cell.job)
        items = {arm: [self.bench.items(job) for job in jobs] for arm, jobs in arms.items()}
        parts = {arm: {part: np.stack([of_seed[part] for of_seed in of_seeds]) for part in self.config.parts}
                 for arm, of_seeds in items.items()}  # fmt: skip
        results = {arm: [self._result(job) for job in jobs] for arm, jobs in arms.items()}
        precision = {a: [r["precision"] for r in rs] for a, rs in results.items() if "precision" in rs[0]}
        dev = {arm: [r["dev"] for r in rs] for arm, rs in results.items()}
        return Runs(parts, dev, precision, self._chance())

    def _chance(self) -> float:
        """Of the headline: 5 of N at random, one of C classes."""
        levels = []
        for part in self.config.parts:
            name, _, metric = part.partition(".")
            levels.append(5 / len(self.bench.eval_sets[name]) if metric == "r5"
                          else 1 / len(set(self.base.labels[name].values())))  # fmt: skip
        return float(np.mean(levels))

    def _log(self, lab: Lab, experiment: Experiment) -> None:
        """One MLflow run per seed, with the metrics of all arms on all pools; once, when all of them are done."""
        if set(lab.chosen) != set(self.config.pools):
            return
        listed = [cell for name in self.config.pools for cell in cells(lab, experiment, name)]
        if not all(self.bench.result(cell.job) for cell in listed):
            return
        folder = self.project.config.output_folder / "mlflow"
        for seed in self.config.seeds:
            metrics: dict[str, float] = {}
            for cell in (c for c in listed if c.seed == seed):
                result, arm = self._result(cell.job), f"{cell.pool or 'filters'}/{cell.arm.replace(':', '_')}"
                metrics |= {f"{arm}/{name}": value for name, value in result.get("parts", {}).items()}
                metrics |= {f"{arm}/{n}": result[n] for n in ("avg", "dev", "precision", "num_pairs") if n in result}
            marker = folder / f"{experiment}-{seed}-{digest(metrics)[:12]}.json"
            if marker.exists():
                continue
            params = {"experiment": experiment, "seed": seed, "base": self.base.key, "pools": list(self.config.pools)}
            try:
                run_id = log_run(self.project.tracking_uri, self.project.config.name, f"{experiment} seed {seed}",
                                 params=params, metrics=metrics, tags={"kind": "evidence"})  # fmt: skip
            except TrackingDownError:
                self.project.say(f"{experiment:<13} MLflow does not answer: run it again to log what is done")
                return
            folder.mkdir(exist_ok=True)
            publish_json(marker, {"run_id": run_id})

    def _write(self, lab: Lab, chosen: dict[str, Any], checked: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, dict[str, Runs]] = {e: runs for e in self.config.experiments if (runs := self.runs(lab, e))}
        output = self.project.config.output_folder
        made = summary.made(self.project.config, self.base, found, chosen, checked)
        publish_json(output / "summary.json", made)
        from etl.evidence.report import write

        write(made, output / "report.html")
        return made
