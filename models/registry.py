"""MLflow's registry: two models, `dfn_filter` (image, text -> score) and `clip` (embeddings, zero-shot), and aliases.

Both are models from code: safetensors, JSON records and this package; nothing in them is pickled. A version holds its
heads (2 MB) beside code and records; the towers (100 MB) are named by path and held by encoder_version, because one
encoder carries many filters. `with_towers` copies them in, for whoever has no such path.
"""

import io
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from PIL import Image

from models.filters import Filter, check_encoder
from models.records import EncoderRecord, RegistryError, whole_folder

CHAMPION = "champion"  # the alias that the gate moves
SERVING = "serving"  # the alias that a backfill moves: its scores cover the pool
# What the registered models import.
PACKAGES = "mlflow numpy open-clip-torch pandas pillow pydantic safetensors timm torch torchvision transformers"
FILTER_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("binary", "image"), ColSpec("string", "text")]), outputs=Schema([ColSpec("float", "score")])
)
CLIP_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("binary", "image", required=False), ColSpec("string", "text", required=False)]),
    outputs=Schema(
        [
            ColSpec(Array(DataType.float), "image_embedding", required=False),
            ColSpec(Array(DataType.float), "text_embedding", required=False),
            ColSpec("string", "label", required=False),
            ColSpec("float", "cosine", required=False),
        ]
    ),
    params=ParamSchema(
        [ParamSpec("classes", DataType.string, [], (-1,)), ParamSpec("templates", DataType.string, ["{}"], (-1,))]
    ),
)


def register_filter(
    run_id: str, heads_folder: Path, encoder_folder: Path, *, name: str = "dfn_filter", with_towers: bool = False
) -> str:
    """Registers heads as the next version of a model that scores DataFrame(image, text).

    Args:
        encoder_folder: the towers that the heads were trained on.
        with_towers: copy them into the model; else it loads them from encoder_folder, or from where its user says:
            `mlflow.pyfunc.load_model(uri, model_config={"encoder_folder": ...})`.

    Returns:
        The version, a decimal number.

    Raises:
        WeightsError: heads of another encoder.
    """
    return _register("filter", run_id, heads_folder, encoder_folder, name, with_towers, {})


def register_clip(
    run_id: str, heads_folder: Path | None, encoder_folder: Path, *, receipt: Mapping[str, Any] | None = None,
    name: str = "clip", with_towers: bool = False,
) -> str:  # fmt: skip
    """Registers an induced model, or an encoder whose towers share a space, as the next version of a CLIP.

    Args:
        receipt: of the selection that it was trained on: its id, hash, count and rule become tags of the version.

    Returns, raises, and other arguments: as `register_filter`.
    """
    tags = {}
    if receipt:
        told = {"selection_id": "selection_id", "selection_hash": "hash", "selection_num_pairs": "num_rows",
                "selection_rule": "rule"}  # fmt: skip
        tags = {
            tag: value if isinstance(value := receipt[key], str) else json.dumps(value) for tag, key in told.items()
        }
    return _register("clip", run_id, heads_folder, encoder_folder, name, with_towers, tags)


def _register(kind: str, run_id: str, heads_folder: Path | None, encoder_folder: Path, name: str, with_towers: bool,
              tags: Mapping[str, str]) -> str:  # fmt: skip
    encoder, package = EncoderRecord.read(encoder_folder), Path(__file__).parent
    versions = {"encoder_version": encoder.version}
    if heads_folder:
        filter = Filter.load(heads_folder)
        check_encoder(filter.record, encoder)
        versions["filter_version"] = filter.version
    artifacts = {"heads": str(heads_folder)} if heads_folder else {}
    artifacts |= {"encoder": str(encoder_folder)} if with_towers else {}
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # MLflow warns of a column that may be missing, as one of image and text may here.
        warnings.filterwarnings("ignore", message="(?s).*required")
        info = mlflow.pyfunc.log_model(
            name=kind,
            python_model=str(package / f"pyfunc_{kind}.py"),
            artifacts=artifacts or None,
            model_config={} if with_towers else {"encoder_folder": str(encoder_folder.resolve())},
            code_paths=[str(package)],
            # Given, because MLflow would otherwise load the model in a new process to watch its imports.
            pip_requirements=[f"{needed}=={version(needed)}" for needed in PACKAGES.split()],
            signature=FILTER_SIGNATURE if kind == "filter" else CLIP_SIGNATURE,
            input_example=_example(),
            registered_model_name=name,
        )
    number = str(info.registered_model_version)
    set_tags(name, number, {**versions, **tags})
    return number


def _example() -> pd.DataFrame:
    Image.new("RGB", (8, 8), "red").save(buffer := io.BytesIO(), "PNG")
    return pd.DataFrame({"image": [buffer.getvalue()], "text": ["a red square"]})


def registered(name: str, heads_folder: Path) -> str | None:
    """The version that holds these heads; None where none does."""
    return version_of(name, Filter.load(heads_folder).version)


def version_of(name: str, filter_version: str) -> str | None:
    """The version whose heads have this content; None where none has."""
    found = versions(name).get(filter_version)
    return found[0] if found else None


def versions(name: str) -> dict[str, tuple[str, dict[str, str]]]:
    """filter_version -> (version, its tags), of all that are registered; of equal heads the newest."""
    found = mlflow.MlflowClient().search_model_versions(f"name='{name}'")
    by_number = sorted(found, key=lambda v: int(v.version))
    return {v.tags["filter_version"]: (str(v.version), dict(v.tags)) for v in by_number if "filter_version" in v.tags}


def describe(name: str, number: str, text: str) -> None:
    """What a person reads on a version's page."""
    mlflow.MlflowClient().update_model_version(name, number, text)


def tags_of(name: str, number: str) -> dict[str, str]:
    """Tags of a version, such as filter_version."""
    return dict(mlflow.MlflowClient().get_model_version(name, number).tags)


def metrics_of(run_ids: Mapping[int, str]) -> dict[int, dict[str, float]]:
    """seed -> metrics of its run."""
    client = mlflow.MlflowClient()
    return {seed: dict(client.get_run(run_id).data.metrics) for seed, run_id in run_ids.items()}


def set_tags(name: str, number: str, tags: Mapping[str, str]) -> None:
    """Of a version."""
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)


def name_of(uri: str) -> str:
    """NAME of models:/NAME@ALIAS or models:/NAME/VERSION."""
    return re.split("[@/]", uri.removeprefix("models:/"))[0]


def run_params(name: str, number: str) -> dict[str, str]:
    """Parameters of the run that a version was registered from."""
    client = mlflow.MlflowClient()
    return dict(client.get_run(client.get_model_version(name, number).run_id).data.params)


def number_of(uri: str) -> str:
    """The version of models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        RegistryError: no such model, alias or version.
    """
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias:
        if alias in (known := aliases(name)):
            return known[alias]
        raise RegistryError(f"wanted {uri}; found aliases of {name}: {', '.join(known) or 'none'}; fix: promote one")
    name, _, number = name.partition("/")
    try:
        return str(mlflow.MlflowClient().get_model_version(name, number).version)
    except MlflowException as error:
        raise RegistryError(f"wanted {uri}; found: {error.message}; fix: see the registered versions") from error


def copy(name: str, number: str, to: str) -> str:
    """The version of `to` that a version of another model becomes."""
    return str(mlflow.MlflowClient().copy_model_version(f"models:/{name}/{number}", to).version)


def champion_tags(name: str) -> dict[str, str] | None:
    """Tags of the champion's version, such as filter_version; None before the first promotion."""
    number = champion(name)
    return tags_of(name, number) if number else None


def set_alias(name: str, alias: str, model_version: str) -> None:
    """Points an alias at a version: promotion, and rolling back too."""
    mlflow.MlflowClient().set_registered_model_alias(name, alias, model_version)


def champion(name: str = "dfn_filter") -> str | None:
    """The version that `@champion` points to; None before the first promotion."""
    return aliases(name).get(CHAMPION)


def resolve(uri: str, out: Path) -> Path:
    """Fetches a registered filter's heads into `out`: a folder for `Filter.load` and `clip.assemble`.

    Nothing of what was fetched is executed.

    Args:
        uri: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Raises:
        RegistryError: no such model, version or alias (says which there are), or not a model of ours.
    """
    with _fetched(uri) as (parts, _), whole_folder(out) as folder:
        if "heads" not in parts:
            raise RegistryError(f"wanted a model with heads; found {uri}, which has none; fix: name a dfn_filter")
        shutil.copytree(parts["heads"], folder, dirs_exist_ok=True)
    return out


def resolve_model(uri: str, out: Path, *, encoder: Path | None = None) -> tuple[Path, Path | None]:
    """A registered filter or CLIP as folders: (encoder, heads or None), as `Embedder.load` takes them.

    What the model holds is fetched into `out`; towers that it names by path are where they are.

    Args:
        encoder: where the towers are, whatever the model says.

    Raises:
        RegistryError: as `resolve`, or the towers are neither in the model nor at their path.
    """
    with _fetched(uri) as (parts, config), whole_folder(out) as folder:
        for name in parts.keys() & {"heads", "encoder"}:
            shutil.copytree(parts[name], folder / name)
        named = str(encoder or config.get("encoder_folder", ""))
        is_inside = "encoder" in parts and encoder is None
        if not is_inside and not (named and Path(named).is_dir()):
            raise RegistryError(f"wanted the towers of {uri} at {named or 'a path'}; found no such folder; "
                                "fix: give --encoder, or register with its towers")  # fmt: skip
    return out / "encoder" if is_inside else Path(named), out / "heads" if "heads" in parts else None


@contextmanager
def _fetched(uri: str) -> Iterator[tuple[dict[str, Path], dict[str, Any]]]:
    """(artefact name -> folder, model config) of a registered model, in a temporary folder."""
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias and alias not in (found := aliases(name)):
        known = ", ".join(f"@{known} -> {known_version}" for known, known_version in sorted(found.items())) or "none"
        raise RegistryError(f"wanted {uri}; found aliases of {name}: {known}; fix: promote one, or name a version")
    with TemporaryDirectory() as temporary:
        try:
            local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary))
            flavor = mlflow.models.Model.load(str(local)).flavors.get("python_function", {})
        except MlflowException as error:
            raise RegistryError(f"wanted {uri}; found: {error.message}; fix: see the registered versions") from error
        if "model_code_path" not in flavor:
            raise RegistryError(f"wanted a model from code, as dfn makes them; found {uri}, which may hold pickles; "
                                "fix: name another version")  # fmt: skip
        parts = {part: local / facts["path"] for part, facts in flavor.get("artifacts", {}).items()}
        yield parts, flavor.get("config") or {}


def aliases(name: str) -> dict[str, str]:
    """Alias -> the version that it points to; none of a model that is not registered."""
    try:
        found = mlflow.MlflowClient().get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: str(model_version) for alias, model_version in found.items()}
