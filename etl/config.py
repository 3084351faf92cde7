"""The whole configuration: pydantic models over the layers of `layers.py`. Touches nothing.

Each stage's part is beside the stage. An unknown key is an error that names the nearest known one; all checks run
before Spark starts.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from etl.dedup.evalsets import EvalSetsConfig
from etl.encode.encoder_config import EncoderConfig as EncoderConfig
from etl.evidence.config import EvidenceConfig
from etl.filters.specs import FilterSpec, problem
from etl.intake.lists import Columns
from etl.intake.table_lists import TABLE_NAME, is_table
from etl.layers import layered
from etl.loop.gate_config import BackfillConfig
from etl.loop.loop_config import LoopConfig
from etl.samples.corpora import CorpusSpec
from etl.selection.rule import COLUMNS
from etl.stage import StageConfig, UserError
from etl.stages import STAGES
from etl.stages.selection import DFN, DFN_BEFORE
from etl.storage import Files, NoSecret, Options, is_readable
from etl.storage import folder_of as folder_of

NEEDED_BY_DOWNLOAD = ("aiohttp", "fastwarc", "protego", "resiliparse")


def _is_source(name: str) -> str:
    if not is_table(name):
        return is_readable(name)
    if not TABLE_NAME.fullmatch(name):
        raise ValueError(f"wanted table:NAME, CATALOG.SCHEMA.NAME or a path; found {name[:80]}")
    return name


def _each_once(names: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(names))


Source = Annotated[NoSecret, pydantic.AfterValidator(_is_source)]
"""Files, or table:NAME."""
Kind = Literal["pool", "filter", "dev", "eval"]


class DatasetConfig(StageConfig):
    """A named collection of pairs: a public corpus, or shards, metadata, or both, of your own."""

    kind: Kind
    """pool: is selected from. filter: trains filters. dev: settings are chosen on it. eval: reported, not tuned on."""
    corpus: CorpusSpec | None = None
    """Made from public packages; its shards are kept in the cache."""
    shards: Files | None = None
    """Glob of WebDataset tars, a path or an fsspec URL."""
    images: Source | None = None
    """Pictures that lie in no tar, packed into tars in OUTPUT/packed/NAME: a glob of folders that ends with / (files
    KEY.jpg, KEY.txt, KEY.json), a glob of lists with their bytes or paths, or table:NAME with a BINARY column."""
    urls: Source | None = None
    """Glob of lists of URL and caption (parquet, CSV, TSV, JSON lines), or table:NAME: downloaded as a crawl is."""
    crawl: Files | None = None
    """Glob of WARC or WAT files: their images are downloaded into OUTPUT/web/NAME and ingested from there."""
    metadata: Files | None = None
    """Glob of lists, most often parquet: alone (pairs without pixels), or joined to shards or images by uid."""
    columns: Columns = pydantic.Field(default={})
    """Column of a list or table -> uid, url, text, sha256, width_px, height_px, image (bytes) or path (relative to the
    list), where its name does not say. A file without such a column is not read, and the ledger says so."""
    labels: Files | None = None
    """Parquet file with uid and label, for zero-shot classification of an eval or dev set."""

    @pydantic.model_validator(mode="after")
    def has_a_source(self) -> DatasetConfig:
        if self.is_downloaded and (
            lacking := [name for name in NEEDED_BY_DOWNLOAD if importlib.util.find_spec(name) is None]
        ):
            raise ValueError(f"wanted {lacking[0]}, for downloads; found none; fix: pip install 'dfn-etl[web]'")
        alone = (self.corpus, self.crawl, self.urls, is_table(self.images))
        beside = (self.shards or self.metadata) if not self.images or is_table(self.images) else self.images
        if sum(map(bool, (*alone, beside))) != 1 or (self.images and self.shards):
            raise ValueError("wanted one of: a corpus; a crawl; urls; shards or images, and/or metadata")
        return self

    @property
    def globs(self) -> list[str]:
        """What names its files, without tables."""
        named = (self.shards, self.metadata, self.crawl, self.images, self.urls)
        return [pattern for pattern in named if pattern and not is_table(pattern)]

    @property
    def is_downloaded(self) -> bool:
        """Whether its images have yet to be fetched."""
        return bool(self.crawl or self.urls)


class SparkConfig(StageConfig):
    master: str = "local[2,4]"
    """Two cores; a task may fail three times, as on a cluster."""
    conf: dict[str, str] = pydantic.Field(default={})
    """Spark settings over the defaults of `etl.store.session`."""


StagesConfig: type[StageConfig] = pydantic.create_model(  # type: ignore[call-overload]
    "StagesConfig", __base__=StageConfig, **{s.name: (s.config, s.config()) for s in STAGES}
)


class Config(StageConfig):
    name: str = pydantic.Field(default="local", pattern=r"^[\w-]+$")
    """Of the project; its tables, runs and reports are in `output`."""
    output: str = ""
    """Folder of everything written; build/NAME where empty."""
    tables: NoSecret = ""
    """Root of the tables: a folder, a URL, or catalog:NAME on Unity Catalog; OUTPUT/tables where empty."""
    tracking_uri: str = ""
    """MLflow; sqlite in `output` where empty."""
    registry: str = pydantic.Field(default="", pattern=r"^(\w+\.\w+)?$")
    """CATALOG.SCHEMA of registered models on Unity Catalog; empty: names of one level, dfn_filter and clip."""
    intro: str = ""
    """A sentence for the report: what this pool is."""
    spark: SparkConfig = SparkConfig()
    storage: Options = pydantic.Field(default={})
    """Protocol -> options of fsspec's file system, such as {s3: {endpoint_url: URL, anon: true}}. No credentials."""
    datasets: dict[Annotated[str, pydantic.Field(pattern=r"^\w+$")], DatasetConfig] = pydantic.Field(default={})
    evalsets: EvalSetsConfig = EvalSetsConfig()
    encoder: EncoderConfig = EncoderConfig()
    """Whose vectors filters and models are trained on."""
    more_encoders: dict[str, EncoderConfig] = pydantic.Field(default={})
    """Their vectors are stored too; all encoders share one pass over the pixels."""
    image_models: Annotated[tuple[Literal["open_nsfw", "centerface"], ...], pydantic.AfterValidator(_each_once)] = ()
    """Look at every picture of a pool in that pass: unsafe for work, faces. What they say goes to image_signals."""
    filters: dict[Annotated[str, pydantic.Field(pattern=r"^[a-zA-Z]\w*$")], FilterSpec] = pydantic.Field(default={})
    """Name -> how it is made. A rule ranks and tests by these names."""
    stages: StagesConfig = StagesConfig()  # type: ignore[valid-type]
    loop: LoopConfig = LoopConfig()
    backfill: BackfillConfig = BackfillConfig()
    evidence: EvidenceConfig = EvidenceConfig()

    @property
    def output_folder(self) -> Path:
        return Path(self.output or f"build/{self.name}").absolute()

    @property
    def tables_root(self) -> str:
        root = self.tables or str(self.output_folder / "tables")
        return root if "://" in root or root.startswith("catalog:") else str(Path(root).absolute())

    @pydantic.model_validator(mode="after")
    def writes_beside_its_inputs(self) -> Config:
        written = {Path(place).resolve() for place in (self.output_folder, self.tables_root) if "://" not in str(place)}
        for name, dataset in self.datasets.items():
            for pattern in dataset.globs:
                folder = folder_of(pattern)
                if "://" not in folder and Path(folder).resolve() in written:
                    raise ValueError(f"wanted output and tables outside the inputs; found datasets.{name} in {folder}")
        return self

    @pydantic.model_validator(mode="after")
    def published_vectors_have_files(self) -> Config:
        lacking = [name for name in self.of_kind("pool") if not self.datasets[name].metadata]
        if self.encoder.published and lacking:
            raise ValueError(
                f"encoder.published: wanted pools with metadata, beside which the vectors are; found {lacking[0]}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def headline_is_evaluated(self) -> Config:
        sets = self.of_kind("eval")
        if strange := [m for m in self.loop.gate.guards if m.partition(".")[0] not in self.of_kind("eval", "dev")]:
            raise ValueError(f"loop.gate.guards: wanted DATASET.METRIC of a set that is evaluated; found {strange[0]}")
        if unknown := [part for part in self.loop.headline_parts if part.partition(".")[0] not in sets]:
            raise ValueError(
                f"loop.headline_parts: wanted DATASET.METRIC, of {', '.join(sets) or 'evaluation sets'}; "
                f"found {', '.join(unknown)}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def search_looks_at_development_sets(self) -> Config:
        search, sets = self.loop.search, self.of_kind("dev")
        if search and (strange := [part for part in search.headline_parts if part.partition(".")[0] not in sets]):
            raise ValueError(
                f"loop.search.headline_parts: wanted DATASET.METRIC of kind dev ({', '.join(sets) or 'none there'}), "
                f"so that evaluation sets stay unseen; found {', '.join(strange)}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def filters_have_datasets(self) -> Config:
        sets = self.of_kind("filter")
        for loop in (self.loop, *map(self.loop.chosen, self.loop.candidates)):
            named = {"filter_dataset": loop.filter_dataset, "finetune.dataset": loop.finetune and loop.finetune.dataset}
            for key, name in named.items():
                if name and name not in sets:
                    raise ValueError(f"loop.{key}: wanted a dataset of kind filter ({', '.join(sets)}); found {name}")
            if loop.finetune and loop.filter_dataset == loop.finetune.dataset:
                raise ValueError("loop.finetune.dataset: wanted another one than loop.filter_dataset; found the same")
        return self

    @pydantic.model_validator(mode="after")
    def rules_name_what_there_is(self) -> Config:
        if found := problem(self.filters, self.datasets):
            raise ValueError(found)
        if taken := sorted(self.filters.keys() & COLUMNS.keys()):
            raise ValueError(f"filters: wanted names that no column has; found {', '.join(taken)}")
        lacking = [n for n in self.of_kind("pool") if not (self.datasets[n].metadata or self.datasets[n].urls)]
        if lacking and any(spec.column for spec in self.filters.values()):
            raise ValueError(f"filters: wanted pools with metadata, for a published column; found {lacking[0]}")
        known = {*self.filters, DFN, *([DFN_BEFORE] if self.loop.finetune else [])}
        arms = [arm.of for arm in self.loop.arms.values()]
        if unknown := sorted({*self.stages.selection.filters(), *arms} - known):  # type: ignore[attr-defined]
            near = difflib.get_close_matches(unknown[0], [*known, *COLUMNS], n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"columns: {', '.join(COLUMNS)}"
            raise ValueError(
                f"rule: wanted a filter ({', '.join(sorted(known))}) or a column; found {unknown[0]}; {hint}"
            )
        return self

    def of_kind(self, *kinds: Kind) -> list[str]:
        return [name for name, dataset in self.datasets.items() if dataset.kind in kinds]


def load(names: Sequence[str], overrides: Sequence[str] = ()) -> Config:
    """Layers of YAML, later ones over earlier ones, then `a.b=c` overrides.

    Args:
        names: paths, or names of files in `conf/` (of the working folder, else of the installation).

    Raises:
        UserError: a file is missing or is not YAML; a key is unknown; a value is out of range.
    """
    try:
        config = Config.model_validate(layered(names, overrides))
    except pydantic.ValidationError as error:
        raise UserError("\n".join(_explain(e) for e in error.errors())) from None
    if not config.datasets:
        raise UserError(
            f"datasets: wanted at least one; found none in {', '.join(names)}; fix: --conf tiny, or your own"
        )
    return config


def _explain(error: Any) -> str:
    """One line of a validation error: where, what was wanted, what was found, the nearest key for an unknown one."""
    place = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] == "value_error":  # our own, which says what was found
        return f"{place}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg']}; found {str(error['input'])[:80]!r}"
    known = _fields_at(error["loc"][:-1])
    nearest = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(sorted(known))}"
    return f"{place}: unknown key; {hint}"


def _fields_at(path: Sequence[Any]) -> list[str]:
    model: Any = Config
    for part in path:
        annotation = model.model_fields[part].annotation if part in getattr(model, "model_fields", {}) else model
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")]
        model = inner[0] if inner else annotation
    return list(getattr(model, "model_fields", {}))
