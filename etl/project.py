"""A configured project: datasets resolved to files, the encoder to a folder, stages run on them in order.

Resolves every name once (corpora, encoder, filter), so that stages see versions only. Touches the cache (corpora,
encoder) and, through `run.py`, the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from etl.config import Config, DatasetConfig, folder_of
from etl.dedup import evalsets
from etl.encode import image_models
from etl.encode.encoders import encoder_folder, naming
from etl.encode.lanes import TIMINGS
from etl.forget.kept_out import read_stay_out
from etl.intake.table_lists import is_table, pin_table
from etl.job import Progress, StageRun
from etl.loop.loop_config import LoopConfig
from etl.recipe import BEFORE_FILTERS, edits_of, idle_stages
from etl.run import Runner
from etl.samples import corpora
from etl.selection.lexicon import read_lexicon
from etl.session import session
from etl.stage import Slice, Stage, StageConfig, Table, UserError
from etl.stages import STAGES, collect, decontaminate_semantic, download, embed, image_signals, ingest, variants
from etl.stages.features import without_npz
from etl.storage import use
from etl.store import Store
from etl.tables import CRAWL_FILES, FEATURE_FILES, INPUTS
from models.filters import check_encoder, save_filter
from models.records import RECORD, FilterRecord, VectorsRecord

Say = Callable[[str], None]


@dataclass(frozen=True)
class Project:
    """`say` gets a line for everything that starts or ends, `on_progress` a call per chunk."""

    config: Config
    say: Say = lambda _: None
    on_progress: Callable[[Progress], None] = lambda _: None
    on_session: Callable[[], None] = lambda: None
    """Called when Spark has started, and has set its own handler for Ctrl-C."""
    runs: list[StageRun] = field(default_factory=list)
    """Every stage run of this process, in order."""

    def __post_init__(self) -> None:
        use(self.config.storage)

    @cached_property
    def store(self) -> Store:
        self.say(f"starting Spark ({self.config.spark.master})")
        spark = session(master=self.config.spark.master, conf=self.config.spark.conf)
        self.on_session()
        return Store(spark, self.config.tables_root)

    @cached_property
    def runner(self) -> Runner:
        kinds = {name: dataset.kind for name, dataset in self.config.datasets.items()}
        return Runner(self.store, kinds, self.on_progress, evalsets.registered(self))

    @cached_property
    def encoder(self) -> tuple[VectorsRecord, Path]:
        return encoder_folder(self.config.encoder, self.say)

    def with_loop(self, loop: LoopConfig) -> Project:
        """The same project, with its session and all that it has resolved, and another loop."""
        made = replace(self, config=self.config.model_copy(update={"loop": loop}))
        vars(made).update({name: found for name, found in vars(self).items() if name not in vars(made)})
        return made

    def cosine_filter(self) -> Path:
        """The folder of the filter without heads: the cosine of the encoder's own vectors, known as the CLIP score."""
        record, _ = self.encoder
        folder = self.config.output_folder / "filters" / f"cosine-{record.name}-{record.version}"
        if not record.shares_space:
            raise UserError(f"--filter cosine: wanted towers that share a space; found {record.name}; fix: train one")
        if not (folder / RECORD).exists():
            save_filter(folder, None, encoder_record=record, name=f"cosine_{record.name}")
        return folder

    @property
    def tracking_uri(self) -> str:
        return self.config.tracking_uri or f"sqlite:///{self.config.output_folder}/mlflow.db"

    def registered(self, model: str) -> str:
        """The name in MLflow's registry of dfn_filter or clip."""
        return f"{self.config.registry}.{model}" if self.config.registry else model

    @cached_property
    def sources(self) -> dict[str, DatasetConfig]:
        """The datasets with their corpora built, tables at the version that is read, and shards where they will be."""
        return {name: self._built(name, dataset) for name, dataset in self.config.datasets.items()}

    def corpus_folder(self, dataset: str) -> Path | None:
        """Where the corpus of a dataset is, with its truth and labels beside the shards; None where it has none."""
        if self.config.datasets[dataset].corpus is None:
            return None
        return Path(folder_of(self.sources[dataset].shards or ""))

    def truth(self, dataset: str) -> dict[str, bool]:
        """uid -> whether a pair's caption is the true one; empty where no noise was planted. Read by no stage."""
        folder = self.corpus_folder(dataset)
        if folder is None:
            return {}
        truth = pd.read_parquet(folder / "truth.parquet")
        return dict(zip(truth["uid"], truth["is_true"], strict=True))

    def web_folder(self, dataset: str) -> Path:
        """Where what a dataset downloads goes: shards in a folder for each way of downloading."""
        return self.config.output_folder / "web" / dataset

    def _built(self, name: str, dataset: DatasetConfig) -> DatasetConfig:
        tables = {key: table for key in ("images", "urls") if is_table(table := getattr(dataset, key))}
        dataset = dataset.model_copy(update={key: pin_table(self.store.spark, table) for key, table in tables.items()})
        if dataset.is_downloaded:
            return dataset.model_copy(update={"shards": f"{self.web_folder(name)}/*/*.tar"})
        if dataset.images:
            return dataset.model_copy(update={"shards": f"{self.config.output_folder}/packed/{name}/*.tar"})
        if dataset.corpus is None:
            return dataset
        folder = corpora.build(name, dataset.corpus, say=self.say)
        labels = folder / "labels.parquet"
        return dataset.model_copy(
            update={"corpus": None, "shards": f"{folder}/*.tar", "labels": str(labels) if labels.exists() else None}
        )

    def run(self, stage: Stage, dataset: str, settings: StageConfig | None = None) -> StageRun:
        """One stage on one dataset: done, or said to be up to date. Every encoder is served by one pass over pixels.

        Raises UserError for a stage of another kind of encoder, or of another kind of source.
        """
        if not self._has_source(stage, dataset):
            raise UserError(
                f"stage {stage.name}: wanted datasets.{dataset}.crawl or .urls; found none; "
                "fix: name WARC or WAT files, or lists of URLs"
            )
        if wanted := self._idle_stages.get(stage.name):
            raise UserError(f"stage {stage.name}: wanted {wanted}; found other; fix: configure it, or leave it out")
        if stage is decontaminate_semantic.STAGE:
            evalsets.embed_used(self)
        source = self.sources[dataset] if stage.listing else None
        done = self.runner.run_together(self.parts(stage, dataset, settings), dataset, source=source)
        self.runs.extend(done)
        for run in done:
            self.say(_sentence(run))
        return done[0]

    def parts(self, stage: Stage, dataset: str, settings: StageConfig | None = None) -> list[tuple[Stage, StageConfig]]:
        """A stage with its settings resolved, and what makes the same pass."""
        if stage is image_signals.STAGE:
            return self._image_models(dataset)
        config = self._resolved(stage, dataset, settings or getattr(self.config.stages, stage.name))
        return [(stage, config), *(self._same_pass(config, dataset) if stage is embed.STAGE else [])]

    def _same_pass(self, config: StageConfig, dataset: str) -> list[tuple[Stage, StageConfig]]:
        """What else looks at the pixels that `embed` decodes."""
        found = [encoder_folder(encoder, self.say) for encoder in self.config.more_encoders.values()]
        parts = [(embed.STAGE, config.model_copy(update=naming(*encoder))) for encoder in found]
        kind = self.config.datasets[dataset].kind
        if kind in image_signals.STAGE.kinds:
            parts += self._image_models(dataset)
        if kind in variants.STAGE.kinds and edits_of(self.config):
            own = self.config.stages.variants  # type: ignore[attr-defined]
            parts.append((variants.STAGE, self._resolved(variants.STAGE, dataset, own)))
        return parts

    def _image_models(self, dataset: str) -> list[tuple[Stage, StageConfig]]:
        settings = [image_signals.Config(model=name) for name in self.config.image_models]
        return [(image_signals.STAGE, self._resolved(image_signals.STAGE, dataset, each)) for each in settings]

    def run_all(self, stages: Sequence[str] = (), datasets: Sequence[str] = ()) -> list[StageRun]:
        """Stage by stage, each on all datasets of its kinds: decontamination needs every evaluation set ingested.

        `stages`: none named are all that need no filter.
        """
        return [self.run(stage, name) for stage, name in self.wanted(stages, datasets)]

    def wanted(self, stages: Sequence[str] = (), datasets: Sequence[str] = ()) -> list[tuple[Stage, str]]:
        """(stage, dataset) of what `run_all` runs, in its order."""
        return [
            (stage, name)
            for stage in STAGES
            if stage.name in (stages or (name for name in BEFORE_FILTERS if name not in self._idle_stages))
            for name, dataset in self.config.datasets.items()
            if dataset.kind in stage.kinds and (not datasets or name in datasets) and self._has_source(stage, name)
        ]

    def _has_source(self, stage: Stage, dataset: str) -> bool:
        """Whether a dataset has what the stages of the web read."""
        return stage not in (collect.STAGE, download.STAGE) or self.config.datasets[dataset].is_downloaded

    @cached_property
    def _idle_stages(self) -> dict[str, str]:
        return idle_stages(self.config)

    def _resolved(self, stage: Stage, dataset: str, settings: StageConfig) -> StageConfig:
        """`settings` with the fields that only a run can know."""
        wanted = type(settings).model_fields
        known: dict[str, Any] = {"source": dataset, "storage": self.config.storage}
        if "shards_root" in wanted:
            source = self.sources[dataset]
            known |= {"shards_root": folder_of(source.shards) if source.shards else "", "metadata": source.metadata}
        if "web_folder" in wanted:
            known["web_folder"] = str(self.web_folder(dataset))
        if isinstance(settings, image_signals.Config | variants.Config):
            same = self.config.stages.embed  # type: ignore[attr-defined]
            known |= {name: getattr(same, name) for name in embed.PassConfig.model_fields if name not in known}
        if isinstance(settings, embed.PassConfig) and self.config.datasets[dataset].kind in variants.STAGE.kinds:
            rows = self.config.stages.embed.chunk_rows  # type: ignore[attr-defined]
            known["chunk_rows"] = max(1, rows // (1 + len(edits_of(self.config))))  # as much work in a commit
        if isinstance(settings, image_signals.Config):
            known |= image_models.fetched(settings.model, self.say)
        if isinstance(settings, decontaminate_semantic.Config):
            known["edits"] = edits_of(self.config)
        if "lexicon_name" in wanted:
            known["lexicon_name"] = read_lexicon(self.config.stages.signals.lexicon).name  # type: ignore[attr-defined]
        if "encoder_version" in wanted:
            known |= naming(*self.encoder)
        if "stay_out" in wanted:
            known["stay_out"] = read_stay_out(self.store)
        if "columns" in wanted:
            known["columns"] = self.config.datasets[dataset].columns
        if stage in (collect.STAGE, ingest.STAGE):
            known |= {key: getattr(self.sources[dataset], key) or "" for key in ("urls", "images")}
        if "without_npz" in wanted and self.config.encoder.published:
            known["without_npz"] = without_npz(self.sources[dataset])
        return settings.model_copy(update={key: value for key, value in known.items() if key in wanted})

    def with_filter(self, stage: Stage, folder: Path, settings: StageConfig | None = None) -> StageConfig:
        """The settings of the stage that scores by the filter in `folder`: one of the project's encoder."""
        record = FilterRecord.read(folder)
        check_encoder(record, self.encoder[0])
        update: dict[str, Any] = {"filter": record.name, "filter_version": record.version, "filter_folder": folder}
        base = settings or getattr(self.config.stages, stage.name)
        return base.model_copy(update={k: v for k, v in update.items() if k in type(base).model_fields})

    def has_partial_inputs(self, datasets: Sequence[str] = ()) -> list[str]:
        """Files that could not be read whole, as `dataset: uri: reason`: then the exit code says partial.

        `datasets`: none named are all.
        """
        lines = []
        version = {"encoder_version": self.encoder[0].version} if self.config.encoder.published else None
        ledgers: list[tuple[Table, Slice | None]] = [
            (CRAWL_FILES, None),
            (INPUTS, None),
            *([(FEATURE_FILES, version)] if version else []),
        ]
        for name, (table, where) in product(datasets or self.config.datasets, ledgers):
            if self.store.exists(name, table):
                ledger = self.store.read(name, table, where=where)
                bad = ledger.where("status != 'ok'").select("uri", "status", "status_reason")
                lines += [
                    f"{name}: {r['uri']}: {r['status']}: {r['status_reason'] or ''}" for r in bad.limit(20).collect()
                ]
        return lines


def _sentence(run: StageRun) -> str:
    place = f"{run.stage:<14} {run.dataset:<14}"
    if run.num_files == 0:
        return f"{place} no file: nothing matches what the dataset's config names"
    if run.is_up_to_date:
        return f"{place} up to date"
    counts = ", ".join(
        f"{count:,} {status}" for status, count in sorted(run.num_rows_by_status.items(), key=lambda i: -i[1])
    )
    part = f"{run.num_rows_written:,} of " if run.num_rows_written else ""
    return f"{place} {part}{run.num_rows_in:,} rows in {run.seconds:.1f} s ({counts}){_pace(run)}"


def _pace(run: StageRun) -> str:
    """Of a pass over pixels: pairs per second, what the time went into, and how idle the model was."""
    if not run.timings or not run.num_rows_written:
        return ""
    read, decode, model, wait, halvings = (run.timings.get(name, 0.0) for name in TIMINGS)
    idle = wait / (model + wait) if model + wait else 0.0
    parts = f"read {read:.1f} s, decode {decode:.1f} s, model {model:.1f} s, model idle {idle:.0%}"
    warning = f"; {halvings:.0f} batches did not fit and were halved: a smaller encoder.batch_size is faster"
    pace = f"; {run.num_rows_written / run.seconds:,.0f} pairs/s; of all tasks: {parts}"
    return pace + (warning if halvings else "")
