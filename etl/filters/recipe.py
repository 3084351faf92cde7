"""How a round's filters are made: trained on the filter dataset, fine-tuned on a cleaner one, the weights before and
after averaged. Each step is a training run of its own, so that what it changes is seen.

Reads stored vectors of datasets of kind filter; trains through `etl.loop.training`; touches OUTPUT/vectors and
OUTPUT/filters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from etl.filters.filters import filter_folder
from etl.loop.loop_config import FinetuneConfig
from etl.loop.training import Data, Trained, Trainer, labels_of
from etl.project import Project
from etl.shard_writer import write_manifest
from etl.stage import UserError, digest
from etl.stages.selection import DFN, DFN_BEFORE

DataOf = Callable[[str], Data]
"""Dataset -> its stored vectors, up to date."""


def datasets(project: Project) -> tuple[str, ...]:
    """That filters learn from: first the one that they are trained on, then the one that fine-tunes them, if any.

    Raises:
        UserError: several could be the first, and none is named.
    """
    loop = project.config.loop
    tuned = (loop.finetune.dataset,) if loop.finetune else ()
    first = [name for name in project.config.of_kind("filter") if name not in tuned]
    if loop.filter_dataset:
        first = [loop.filter_dataset]
    if len(first) != 1:
        raise UserError(f"loop.filter_dataset: wanted one dataset of kind filter to train on; "
                        f"found {len(first)} ({', '.join(first) or 'none'}); fix: name one")  # fmt: skip
    return (*first, *tuned)


@dataclass(frozen=True)
class Filtered:
    """One seed's filter."""

    before: Trained
    """Trained on the filter dataset."""
    after: Trained | None
    """Fine-tuned, where the recipe does that."""
    final: Trained
    """What the round judges; `before` where nothing fine-tunes it."""

    def folders(self) -> dict[str, Path]:
        """By the names that a rule ranks by."""
        return {DFN: self.final.folder, DFN_BEFORE: self.before.folder}


@dataclass(frozen=True)
class FilterRecipe:
    project: Project
    trainer: Trainer
    data_of: DataOf

    @cached_property
    def _init(self) -> Path | None:
        """Once for all seeds of a round, whatever an alias does meanwhile."""
        uri = self.project.config.loop.init
        return filter_folder(self.project, uri) if uri else None

    def make(self, seed: int) -> Filtered:
        """Trained now, or up to date."""
        loop = self.project.config.loop
        data = self.data_of(datasets(self.project)[0])
        before = self.trainer.run("filter", DFN, loop.filter, seed, data, init=self._init)
        if loop.finetune is None:
            return Filtered(before, None, before)
        data = self._finetuning_data(loop.finetune, seed)
        after = self.trainer.run("filter", "dfn_after", loop.finetune.training, seed, data, init=before.folder)
        final = self.trainer.average("filter", "dfn_averaged", loop.finetune.alpha, seed, before, after, data)
        return Filtered(before, after, final)

    def _finetuning_data(self, finetune: FinetuneConfig, seed: int) -> Data:
        data = self.data_of(finetune.dataset)
        if not finetune.templates:
            return data
        labels = labels_of(self.project.sources[finetune.dataset].labels)
        if labels is None:
            raise UserError(f"loop.finetune.templates: wanted labels of {finetune.dataset}, for the class names; "
                            f"found none; fix: datasets.{finetune.dataset}.labels, or no templates")  # fmt: skip
        return self._in_templates(data, labels, finetune.templates, seed)

    def _in_templates(self, data: Data, labels: Mapping[str, str], templates: tuple[str, ...], seed: int) -> Data:
        """The labelled pairs with their class in a template as caption, in a folder of vectors of their own."""
        from models.data import Vectors, uid_to_u8, write_part
        from models.prompts import class_captions

        content = digest(data.content, sorted(labels.items()), templates, seed, self.project.encoder[0].version)
        folder = self.project.config.output_folder / "vectors" / f"templates-{content[:12]}"
        if not (folder / "manifest.json").exists():
            there = set(Vectors.open(data.vectors).uids)
            captions = class_captions({u: name for u, name in labels.items() if u in there}, templates, seed)
            rows = Vectors.open(data.vectors, uid_to_u8(list(captions)))
            texts = [captions[uid] for uid in rows.uids]
            texts_NT = self.trainer.encode_texts(texts).astype("float16")
            folder.mkdir(parents=True, exist_ok=True)
            write_part(folder / "part-00000.arrow", rows.uids, rows.image_NI, texts_NT, texts)
            write_manifest(str(folder), [], {"num_rows": len(texts), "templates": list(templates), "seed": seed})
        return Data(folder, content, data.inputs)
