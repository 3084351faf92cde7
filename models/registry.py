"""MLflow: training runs, registered filters, and the gate in front of the alias `champion`.

A registered filter is its heads (2 MB) beside code and records; the towers (100 MB) are named by path and held by
encoder_version, because one encoder carries many filters. `with_towers` copies them in, for whoever has no such path.
"""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from scipy import stats  # type: ignore[import-untyped]

from models.filters import Filter, check_encoder
from models.records import EncoderRecord, RegistryError, whole_folder

CHAMPION = "champion"  # the alias that the gate moves
MIN_SEEDS = 3  # fewer differences give no idea of the noise
METRICS_AT_ONCE = 1000  # MLflow's limit for one call
# What the registered model imports.
PACKAGES = "imagehash mlflow numpy open-clip-torch pandas pillow pydantic safetensors timm torch transformers"


def connect(tracking_uri: str) -> None:
    """Sets the store for this process: `sqlite:///PATH` (made on first use), a server, or `databricks`.

    Raises:
        ValueError: a folder: MLflow's file store has no registry.
    """
    if "://" not in tracking_uri and not tracking_uri.startswith("databricks"):
        raise ValueError(f"wanted a tracking URI; found {tracking_uri!r}; fix: sqlite:///{tracking_uri}/mlflow.db")
    if path := _sqlite_path(tracking_uri):
        path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # the lock file of whoever stands in the working directory
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # each migration of a new sqlite file
    mlflow.set_tracking_uri(tracking_uri)


def log_training_run(
    tracking_uri: str,
    experiment: str,
    run_name: str,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    step_losses: Sequence[float],
    inputs: Mapping[str, int],
    heads_folder: Path,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Logs a finished run: its recipe, its losses, its metrics, and its heads as artefacts.

    Args:
        inputs: path of each Delta table that was read -> the version read. Named, never hashed.

    Returns:
        The run's id.
    """
    connect(tracking_uri)
    client = mlflow.MlflowClient()
    record = Filter.load(heads_folder).record
    versions = {"filter_version": record.version, "encoder_version": record.encoder_version}
    experiment_id = _experiment(client, experiment, tracking_uri)
    with mlflow.start_run(experiment_id=experiment_id, run_name=run_name, tags={**versions, **(tags or {})}) as run:
        mlflow.log_params(dict(params))
        now = int(time.time() * 1000)
        points = [Metric("loss", loss, now, step) for step, loss in enumerate(step_losses)]
        points += [Metric(name, value, now, len(step_losses)) for name, value in metrics.items()]
        for start in range(0, len(points), METRICS_AT_ONCE):
            client.log_batch(run.info.run_id, metrics=points[start : start + METRICS_AT_ONCE])
        for path, table_version in inputs.items():
            source = DeltaDatasetSource(path=path, delta_table_version=table_version)
            mlflow.log_input(MetaDataset(source, name=path, digest=f"v{table_version}"), context="training")
        mlflow.log_artifacts(str(heads_folder), "heads")
    return str(run.info.run_id)


def finished_runs(tracking_uri: str, experiment: str, *, kind: str) -> list[tuple[dict[str, str], dict[str, float]]]:
    """(params, metrics) of the experiment's finished runs with the tag `kind`."""
    if (path := _sqlite_path(tracking_uri)) and not path.exists():
        return []
    connect(tracking_uri)
    client = mlflow.MlflowClient()
    if (found := client.get_experiment_by_name(experiment)) is None:
        return []
    wanted, runs, token = f"attributes.status = 'FINISHED' AND tags.kind = '{kind}'", [], ""
    while token is not None:
        page = client.search_runs([found.experiment_id], wanted, max_results=1000, page_token=token or None)
        runs += [(run.data.params, run.data.metrics) for run in page]
        token = page.token
    return runs


def register_filter(
    run_id: str, heads_folder: Path, encoder_folder: Path, *, name: str = "dfn_filter", with_towers: bool = False
) -> str:
    """Registers heads as the next version of a model that scores DataFrame(image, text). Nothing in it is pickled.

    Args:
        encoder_folder: the towers that the heads were trained on.
        with_towers: copy them into the model; else it loads them from encoder_folder, or from where its user says:
            `mlflow.pyfunc.load_model(uri, model_config={"encoder_folder": ...})`.

    Returns:
        The version, a decimal number.

    Raises:
        WeightsError: heads of another encoder.
    """
    filter = Filter.load(heads_folder)
    check_encoder(filter.record, EncoderRecord.read(encoder_folder))
    package = Path(__file__).parent
    artifacts = {"heads": str(heads_folder)} | ({"encoder": str(encoder_folder)} if with_towers else {})
    inputs, outputs = [ColSpec("binary", "image"), ColSpec("string", "text")], [ColSpec("float", "score")]
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # The signature is given: an example would run the model to guess it.
        warnings.filterwarnings("ignore", message="(?s).*input example was not provided")
        info = mlflow.pyfunc.log_model(
            name="filter",
            python_model=str(package / "pyfunc_filter.py"),
            artifacts=artifacts,
            model_config={} if with_towers else {"encoder_folder": str(encoder_folder.resolve())},
            code_paths=[str(package)],
            # Given, because MLflow would otherwise load the model in a new process to watch its imports.
            pip_requirements=[f"{needed}=={version(needed)}" for needed in PACKAGES.split()],
            signature=ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs)),
            registered_model_name=name,
        )
    registered = str(info.registered_model_version)
    client = mlflow.MlflowClient()
    for key, value in {"filter_version": filter.version, "encoder_version": filter.record.encoder_version}.items():
        client.set_model_version_tag(name, registered, key, value)
    return registered


def ensure_registered(
    name: str, run_id: str, heads_folder: Path, encoder_folder: Path, *, tags: Mapping[str, str]
) -> tuple[str, bool]:
    """The version that holds these heads, registered unless one does, with `tags`; and whether it is the champion."""
    client = mlflow.MlflowClient()
    wanted = Filter.load(heads_folder).version
    found = [v for v in client.search_model_versions(f"name='{name}'") if v.tags.get("filter_version") == wanted]
    number = str(found[0].version) if found else register_filter(run_id, heads_folder, encoder_folder, name=name)
    is_champion = champion(name) == number
    if not is_champion:  # what the champion was judged by stays as it was judged
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
    return number, is_champion


def champion_tags(name: str) -> dict[str, str] | None:
    """Tags of the champion's version, such as filter_version; None before the first promotion."""
    number = champion(name)
    return dict(mlflow.MlflowClient().get_model_version(name, number).tags) if number else None


def set_alias(name: str, alias: str, model_version: str) -> None:
    """Points an alias at a version: promotion, and rolling back too."""
    mlflow.MlflowClient().set_registered_model_alias(name, alias, model_version)


def champion(name: str = "dfn_filter") -> str | None:
    """The version that `@champion` points to; None before the first promotion."""
    return _aliases(name).get(CHAMPION)


def resolve(uri: str, out: Path) -> Path:
    """Fetches a registered filter's heads into `out`: a folder for `Filter.load` and `clip.assemble`.

    Args:
        uri: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Raises:
        RegistryError: no such model, version or alias; says which there are.
    """
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias and alias not in (found := _aliases(name)):
        known = ", ".join(f"@{known} -> {known_version}" for known, known_version in sorted(found.items())) or "none"
        raise RegistryError(f"wanted {uri}; found aliases of {name}: {known}; fix: promote one, or name a version")
    with TemporaryDirectory() as temporary, whole_folder(out) as folder:
        try:
            local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary))
        except MlflowException as error:
            raise RegistryError(f"wanted {uri}; found: {error.message}; fix: see the registered versions") from error
        artifacts = mlflow.models.Model.load(str(local)).flavors["python_function"]["artifacts"]
        shutil.copytree(local / artifacts["heads"]["path"], folder, dirs_exist_ok=True)
    return out


@dataclass(frozen=True)
class GateDecision:
    """What the gate found. The numbers are of the induced models, in the metric's unit."""

    is_better: bool
    mean_difference: float
    p_value: float | None
    num_seeds: int
    level: float
    reason: str


def gate(challenger: Sequence[float], baseline: Sequence[float], *, level: float = 0.05) -> GateDecision:
    """Whether the challenger's induced models are better than the baseline's beyond noise.

    One-sided paired t-test (Student 1908) over seeds: entry i of both sides shares seed i. What is compared are the
    models that the filters induce; a filter's own accuracy is never an input (arXiv 2309.17425, figure 3).

    Args:
        level: the p value below which the difference counts.

    Raises:
        ValueError: unpaired values, or values that are not finite.
    """
    if len(challenger) != len(baseline) or not np.isfinite([*challenger, *baseline]).all():
        raise ValueError(f"wanted a finite value of both for every seed; found {list(challenger)} and {list(baseline)}")
    # Rounded, so that what is equal but for the last bits of a float has no spread.
    difference_N = np.round(np.subtract(challenger, baseline, dtype=np.float64), 12)
    num_seeds = len(difference_N)
    mean = float(difference_N.mean()) if num_seeds else 0.0
    if num_seeds < MIN_SEEDS:
        reason = f"{num_seeds} seeds: wanted at least {MIN_SEEDS} to tell a difference from noise"
        return GateDecision(False, mean, None, num_seeds, level, reason)
    p_value = 0.0 if mean > 0 else 1.0  # without any spread, by which the t-test divides
    if np.ptp(difference_N) > 0:
        p_value = float(stats.ttest_1samp(difference_N, 0, alternative="greater").pvalue)
    is_better = p_value < level
    verdict = "better beyond noise" if is_better else f"not better at the level of {level:g}"
    reason = f"mean difference {mean:+.4f} over {num_seeds} seeds, p = {p_value:.2g}: {verdict}"
    return GateDecision(is_better, mean, p_value, num_seeds, level, reason)


def _aliases(name: str) -> dict[str, str]:
    try:
        aliases = mlflow.MlflowClient().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: str(model_version) for alias, model_version in aliases.items()}


def _sqlite_path(tracking_uri: str) -> Path | None:
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None


def _experiment(client: mlflow.MlflowClient, name: str, tracking_uri: str) -> str:
    """The experiment's id. Beside a sqlite file its artefacts lie in `artifacts`, not in the working directory."""
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    location = (path.resolve().parent / "artifacts" / name).as_uri() if (path := _sqlite_path(tracking_uri)) else None
    return str(client.create_experiment(name, artifact_location=location))
