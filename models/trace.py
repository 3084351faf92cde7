"""What MLflow knows of a training run's origin: Delta versions, selection, code, what it began with. Reads MLflow."""

from collections.abc import Mapping
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

PAGE = 1000
STARTS = ("init", "before", "after")
"""Params that name a filter version which a run began with, or averaged."""


@dataclass(frozen=True)
class Traced:
    """One run."""

    run_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    inputs: Mapping[str, int]
    """Path of each Delta table that was read -> the version read."""
    registered: tuple[str, ...]
    """NAME/VERSION of the models that it became."""

    @property
    def commit(self) -> str | None:
        """Of the code that trained it."""
        return self.tags.get("git_commit") or self.tags.get("mlflow.source.git.commit")

    @property
    def round(self) -> str | None:
        """The run of the round that trained it."""
        return self.tags.get(MLFLOW_PARENT_RUN_ID)

    @property
    def starts(self) -> dict[str, str]:
        """How -> the filter version that it began with."""
        return {name: self.params[name] for name in STARTS if name in self.params}


def traced(run_id: str) -> Traced | None:
    """One run; None where MLflow has none of that id."""
    try:
        return _of(mlflow.MlflowClient().get_run(run_id))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def runs_with(tags: Mapping[str, str]) -> list[Traced]:
    """Finished runs of any experiment with these tags, oldest first."""
    client, found, token = mlflow.MlflowClient(), list[Run](), ""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = " AND ".join(["attributes.status = 'FINISHED'", *(f"tags.`{k}` = '{v}'" for k, v in tags.items())])
    while token is not None:
        page = client.search_runs(
            experiments, wanted, max_results=PAGE, page_token=token or None, order_by=["attributes.start_time ASC"]
        )
        found += page
        token = page.token
    return [_of(run) for run in found]


def run_of_version(name: str, number: str) -> str | None:
    """The run that a registered version came from; None where there is no such version."""
    try:
        return str(mlflow.MlflowClient().get_model_version(name, number).run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _of(run: Run) -> Traced:
    versions = mlflow.MlflowClient().search_model_versions(f"run_id='{run.info.run_id}'")
    inputs = {each.dataset.name: int(each.dataset.digest.removeprefix("v")) for each in run.inputs.dataset_inputs}
    registered = tuple(sorted(f"{version.name}/{version.version}" for version in versions))
    return Traced(run.info.run_id, dict(run.data.tags), dict(run.data.params), inputs, registered)
