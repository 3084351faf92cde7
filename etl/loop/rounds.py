"""A round as a run in MLflow: the parent of the runs that it trains, with its config, its verdict and its table.

It is opened before the first training run and closed after the gate; a round that is run again is the same run. By way
of `models.spool`, so that an outage of MLflow costs nothing. Touches OUTPUT/models/round-* and MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from etl.loop.arms import ArmResult, spread
from etl.loop.loop_config import LoopConfig
from etl.loop.search import Searched
from etl.loop.training import Data, EvalSet
from etl.project import Project
from etl.stage import digest

KIND = "round"
"""The tag `kind` of such a run."""
MAX_PARAM_CHARACTERS = 6000
"""MLflow's limit."""


@dataclass(frozen=True)
class RoundRun:
    project: Project
    folder: Path
    """Whose name the run's spool has."""
    inputs: Mapping[str, int]
    """Path of each Delta table of vectors -> its version."""

    @staticmethod
    def begin(
        project: Project, data: Sequence[Data], eval_sets: Sequence[EvalSet], inputs: Mapping[str, int]
    ) -> RoundRun:
        """The run of a round over these vectors, opened or found. `inputs`: of evaluation and all other sets."""
        from models import spool

        loop, config = project.config.loop, project.config
        key = digest(loop.model_dump(mode="json"), [d.content for d in data], [s.vectors.name for s in eval_sets])
        folder = config.output_folder / "models" / f"{KIND}-{key[:12]}"
        spool.begin(folder, project.tracking_uri, config.name, f"{KIND} {key[:6]}", {"kind": KIND})
        return RoundRun(project, folder, inputs)

    def end(self, results: Mapping[str, ArmResult], verdict: str, is_promoted: bool, searched: Searched | None) -> None:
        """Says what the round has found, in place of what it said before."""
        from models import spool

        config = self.project.config
        lines = table(results, config.loop)
        told = {"verdict": verdict, "is_promoted": str(is_promoted).lower()}
        told |= {"search.winner": searched.winner} if searched else {}
        metrics = {f"{arm.name}.{config.loop.headline}": mean(arm.metrics[config.loop.headline].values())
                   for arm in results.values()}  # fmt: skip
        found = {"arms.json": arms(results)}
        found |= {"search.json": searched.summary()} if searched else {}
        spool.end(
            self.folder, self.project.tracking_uri, params=_flat(config.loop.model_dump(mode="json")),
            metrics=metrics, step=max((len(arm.models) for arm in results.values()), default=0),
            tags={**told, "mlflow.note.content": f"{verdict}\n\n{markdown(lines)}"}, inputs=self.inputs,
            files={"config.yaml": config.model_dump(mode="json", exclude={"tracking_uri"}), **found},
            texts={"table.csv": "".join(",".join(line) + "\n" for line in lines)},
        )  # fmt: skip


def table(results: Mapping[str, ArmResult], loop: LoopConfig) -> list[list[str]]:
    """The arms side by side, a header first: mean and standard deviation over seeds."""
    names = [loop.headline, *loop.headline_parts]
    lines = [["arm", "seeds", "pairs", "precision", *names]]
    for arm in results.values():
        found = {name: spread(list(arm.metrics[name].values())) for name in names}
        pairs = mean(int(receipt["num_rows"]) for receipt in arm.receipts.values())
        precision = f"{mean(arm.precision.values()):.3f}" if arm.precision else ""
        cells = [f"{found[name]['mean']:.3f} ± {found[name]['std']:.3f}" for name in names]
        lines.append([arm.name, str(len(arm.models)), f"{pairs:.0f}", precision, *cells])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, for MLflow's description of the run. Numbers stay with their spread on one line."""
    head, *rows = ["| " + " | ".join(line).replace(" ± ", "&nbsp;±&nbsp;") + " |" for line in lines]
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *rows])


def arms(results: Mapping[str, ArmResult]) -> dict[str, Any]:
    """Arm -> seed -> the selection, its Delta versions, and the training run: also of those that an earlier round
    trained, whose child they are."""
    from models import spool

    return {
        name: {
            str(seed): {
                **{key: receipt[key] for key in ("selection_id", "hash", "num_rows", "inputs")},
                "run": spool.run_id_of(arm.models[seed].folder) or arm.models[seed].mlflow_run_id,
                "metrics": dict(arm.models[seed].metrics),
            }
            for seed, receipt in arm.receipts.items()
        }
        for name, arm in results.items()
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested fields as `a.b`, without what is not set."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value not in (None, ""):
            found[prefix + name] = str(value)[:MAX_PARAM_CHARACTERS]
    return found
