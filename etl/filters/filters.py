"""The filters that a config names: made once into folders, and their scores brought up to date.

What a formula is computed against (reference pairs, targets, good pairs, centres) is drawn once from stored vectors by
a hash of seed and uid, and kept in the filter's folder: a pool that grows changes no filter, and so no old score.
Touches OUTPUT/filters, and tables through the project's stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from etl.filters.specs import BinarySpec, ClustersSpec, FilterSpec, NormSimSpec, SClipLossSpec, Target
from etl.history import data_version
from etl.project import Project
from etl.samples.packages import default_cache, fetch_package
from etl.selection import judging, wordnet
from etl.selection.pinned import pins
from etl.stage import StageConfig, UserError, digest
from etl.stages import fusion, published_scores, score, selection
from etl.stages.score import float16
from etl.tables import EMBEDDINGS, PAIRS
from models import formulas
from models.data import open_npy
from models.filters import Filter, save_filter
from models.fit import clusters, linear_probe, mark_targets
from models.formulas import Formula
from models.records import RECORD, FilterRecord, RegistryError, sha256_file

MAX_DRAWN_BYTES = 256 << 20
"""Of vectors that the driver takes to make a filter."""


@dataclass(frozen=True)
class Filters:
    """`given`: name -> folder, or the name of one in the config: what a command was given, or training made."""

    project: Project
    pool: str
    given: Mapping[str, Path | str] = field(default_factory=dict)

    def scored_by(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Name -> (filter, version) in `scores`, with the pool's scores up to date."""
        return {name: self._scored(name) for name in names}

    def scoring(self, settings: StageConfig) -> StageConfig:
        """A selection's settings with what its rule names resolved, and scored."""
        rule: selection.Config = settings  # type: ignore[assignment]
        lines = judging.blocklist(rule.exclude.blocklists)
        if rule.lists() and not rule.wordnet:
            unpacked = fetch_package(wordnet.PACKAGE, cache=default_cache(), say=self.project.say)
            rule = rule.model_copy(update={"wordnet": unpacked / wordnet.FOLDER})
        known = {"scored_by": self.scored_by(rule.filters()), "files_sha256": pins(rule.files()),
                 "blocklist_sha256": digest(lines) if lines else ""}  # fmt: skip
        return rule.model_copy(update=known)

    def _scored(self, name: str) -> tuple[str, str]:
        name, spec = self._own_name(name), self._spec(name)
        if spec.column:
            version = digest("published column", spec.column)[:16]
            self._run(published_scores, filter=name, filter_version=version, column=spec.column)
            return name, version
        if spec.fusion:
            named = {part: self._scored(part) for part in spec.fusion.of}
            parts = [(*named[part], weight) for part, weight in sorted(spec.fusion.of.items())]
            version = digest("fusion", fusion.STAGE.version, spec.fusion.by, parts)[:16]
            rows = tuple(fusion.Part(filter=f, filter_version=v, weight=w) for f, v, w in parts)
            self._run(fusion, filter=name, filter_version=version, by=spec.fusion.by, parts=rows)
            return name, version
        folder = self.folder(name)
        self._run(score, self.project.with_filter(score.STAGE, folder))
        record = FilterRecord.read(folder)
        return record.name, record.version

    def _run(self, module: Any, settings: StageConfig | None = None, **known: Any) -> None:
        base = settings or getattr(self.project.config.stages, module.STAGE.name)
        check_ingested(self.project, self.pool)
        self.project.run(module.STAGE, self.pool, base.model_copy(update=known))

    def _own_name(self, name: str) -> str:
        """In the config, of one that was given by that name."""
        given = self.given.get(name)
        return given if isinstance(given, str) else name

    def _spec(self, name: str) -> FilterSpec:
        name = self._own_name(name)
        if isinstance(folder := self.given.get(name), Path):
            return FilterSpec(folder=str(folder))
        known = self.project.config.filters
        if name not in known:
            there = ", ".join((*self.given, *known)) or "none"
            raise UserError(f"filter {name}: wanted one that is configured or given; found {there}; fix: --filter, "
                            f"or filters.{name} in the config")  # fmt: skip
        return known[name]

    def folder(self, name: str) -> Path:
        """Of a filter that reads vectors; made where it is not there yet."""
        name, spec = self._own_name(name), self._spec(name)
        if spec.folder:
            return filter_folder(self.project, spec.folder)
        if spec.cosine:
            return self.project.cosine_filter()
        base = spec.needs()[0] if spec.needs() else None
        under = Filter.load(self.folder(base)) if base else None
        versions = [(n, self._data_version(n)) for n in spec.datasets() if n != self.pool]
        files = [_sha256(path) for path in _files(spec)]
        record, _ = self.project.encoder
        key = digest(
            1, name, spec.model_dump(mode="json"), under.version if under else None, record.version, versions, files
        )
        folder = self.project.config.output_folder / "filters" / f"{name}-{key[:12]}"
        if not (folder / RECORD).exists():
            self.project.say(f"making filter {name}")
            space = under or Filter(_own_space(record, name), None)
            try:
                formula, provenance = self._formula(spec, space)
                provenance["version_of_pool"] = str(self._data_version(self.pool))
                save_filter(
                    folder, space.heads, encoder_record=record, name=name, formula=formula, provenance=provenance
                )
            except ValueError as error:  # too few pairs, towers that share no space, numbers that are none
                raise UserError(f"filter {name}: {error}") from None
        return folder

    def _formula(self, spec: FilterSpec, space: Filter) -> tuple[Formula, dict[str, str]]:
        """The formula, and in words what it was made from."""
        made = {SClipLossSpec: self._s_clip_loss, NormSimSpec: self._norm_sim, BinarySpec: self._binary,
                ClustersSpec: self._clusters}  # fmt: skip
        found = next(s for s in (spec.s_clip_loss, spec.norm_sim, spec.binary, spec.clusters) if s)
        return made[type(found)](found, space)  # type: ignore[operator,no-any-return]

    def _s_clip_loss(self, spec: SClipLossSpec, space: Filter) -> tuple[Formula, dict[str, str]]:
        source, wanted = spec.dataset or self.pool, spec.num_batches * spec.batch_size
        images_NI, texts_NT = self._drawn(source, wanted, spec.seed)
        size = min(spec.batch_size, len(images_NI) // spec.num_batches)
        if not size:
            raise UserError(f"s_clip_loss: wanted {wanted:,} reference pairs; found {len(images_NI)} in {source}")
        # Whole batches: smaller ones than asked for, where the pool is small.
        num_rows, shape = size * spec.num_batches, (spec.num_batches, size)
        images_KME = space.project_images(images_NI)[:num_rows].reshape(*shape, -1)
        texts_KME = space.project_texts(texts_NT)[:num_rows].reshape(*shape, -1)
        keys_KM = formulas.pair_keys(images_NI, texts_NT)[:num_rows].reshape(shape)
        words = f"{spec.num_batches} batches of {size} pairs of {source}, seed {spec.seed}"
        return formulas.SClipLoss(images_KME, texts_KME, keys_KM, spec.temperature), {"references": words}

    def _norm_sim(self, spec: NormSimSpec, space: Filter) -> tuple[Formula, dict[str, str]]:
        targets_TE, words = self._targets(spec.target, space)
        if spec.p == "inf":
            return formulas.NormSimInf(targets_TE), {"targets": words}
        moment_EE = (targets_TE.astype(np.float64).T @ targets_TE).astype(np.float32)
        return formulas.NormSim2(moment_EE), {"targets": words}

    def _binary(self, spec: BinarySpec, space: Filter) -> tuple[Formula, dict[str, str]]:
        good = self._drawn(spec.good, None, spec.seed)
        other = self._drawn(self.pool, len(good[0]), spec.seed)
        sides = [[space.project_images(images), space.project_texts(texts)] for images, texts in (good, other)]
        features = [s[0] if spec.reads == "image" else np.concatenate(s, axis=1) for s in sides]
        weight_D, bias = linear_probe(*features)
        right = [
            float(((side_ND @ weight_D + bias > 0) == is_good).mean())
            for side_ND, is_good in zip(features, (True, False), strict=True)
        ]
        self.project.say(
            f"binary filter: right on {right[0]:.1%} of {spec.good}, {right[1]:.1%} of the pool (no measure of it)"
        )
        words = f"{len(good[0])} pairs of {spec.good} against {len(other[0])} of {self.pool}, seed {spec.seed}"
        return formulas.Binary(weight_D, bias, spec.reads), {"trained_on": words}

    def _clusters(self, spec: ClustersSpec, space: Filter) -> tuple[Formula, dict[str, str]]:
        targets_TE, words = self._targets(spec.target, space)
        if spec.centres:
            centres_CE = _npy(spec.centres, space.record.image_dim).astype(np.float32)
            made = formulas.Clusters(centres_CE, mark_targets(centres_CE, targets_TE))
            return made, {"targets": words, "centres": spec.centres.name}
        images_NE = space.project_images(self._drawn(self.pool, spec.num_images, spec.seed)[0])
        made = clusters(images_NE, targets_TE, spec.num_clusters, spec.seed)
        return made, {
            "targets": words,
            "centres": f"k-means on {len(images_NE)} images of {self.pool}, seed {spec.seed}",
        }

    def _targets(self, target: Target, space: Filter) -> tuple[Any, str]:
        """Unit vectors of the target set, and what it is."""
        if target.npy:
            found = _npy(target.npy, space.record.image_dim)
            return space.project_images(found.astype(np.float16)), f"{len(found)} of {target.npy.name}"
        images_NI, _ = self._drawn(str(target.dataset), None, 0)
        return space.project_images(images_NI), f"{len(images_NI)} of {target.dataset}"

    def _drawn(self, dataset: str, num_pairs: int | None, seed: int) -> tuple[Any, Any]:
        """(images_NI, texts_NT), float16: the pairs with the smallest hash of seed and uid; None: as many as fit."""
        record, _ = self.project.encoder
        fitting = MAX_DRAWN_BYTES // (2 * (record.image_dim + record.text_dim))
        if num_pairs and num_pairs > fitting:
            raise UserError(f"wanted at most {fitting:,} pairs to make a filter from; found {num_pairs:,}; fix: fewer")
        where = {"encoder": record.name, "encoder_version": record.version}
        rows = self.project.store.read(dataset, EMBEDDINGS, where=where).where("status = 'ok'")
        order = F.md5(F.concat(F.lit(f"{seed}:"), F.col("uid")))
        drawn = rows.orderBy(order, "uid").limit(num_pairs or fitting)
        rows_drawn = drawn.select("image_embedding", "text_embedding").toPandas()
        found: pd.DataFrame = rows_drawn
        if found.empty:
            raise UserError(f"wanted vectors of {dataset}; found none of {record.name} {record.version}; fix: dfn run")
        return float16(found["image_embedding"]), float16(found["text_embedding"])

    def _data_version(self, dataset: str) -> int:
        """Of the stored vectors of the project's encoder."""
        record, _ = self.project.encoder
        where = {"encoder": record.name, "encoder_version": record.version}
        store = self.project.store
        return data_version(store.history(dataset, EMBEDDINGS), where) if store.exists(dataset, EMBEDDINGS) else -1


def _own_space(record: Any, name: str) -> FilterRecord:
    """Of the encoder's own vectors, without heads."""
    return FilterRecord(
        name=name, encoder_name=record.name, encoder_version=record.version, image_dim=record.image_dim,
        text_dim=record.text_dim, embed_dim=None, weights_sha256=None,
    )  # fmt: skip


def _files(spec: FilterSpec) -> list[Path]:
    named = [s.target.npy for s in (spec.norm_sim, spec.clusters) if s] + [
        spec.clusters.centres if spec.clusters else None
    ]
    return [path for path in named if path]


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(f"filters: wanted an .npy file; found: {error}") from None


def _npy(path: Path, width: int) -> Any:
    """Rows of an `.npy`. Raises ValueError for what is none, or of another width."""
    found = open_npy(path)
    if found.ndim != 2 or found.shape[1] != width or found.dtype.kind != "f":
        raise ValueError(f"{path}: wanted floats of shape (rows, {width}); found {found.dtype} of shape {found.shape}")
    return found


def check_ingested(project: Project, pool: str) -> None:
    """Raises UserError where no stage has made pairs of the pool: what was never ingested is not an empty pool."""
    if not project.store.exists(pool, PAIRS):
        raise UserError(f"wanted pairs to select from; found nothing ingested of {pool}; fix: dfn run, same --conf")


def filter_folder(project: Project, name: str) -> Path:
    """A filter by folder, or by registry URI such as models:/dfn_filter@champion, fetched into OUTPUT/filters."""
    if not name:
        raise UserError("--filter: wanted a folder or models:/NAME@ALIAS, since the rule ranks by score; found none")
    if not name.startswith("models:/"):
        return Path(name)
    from models import registry
    from models.tracking import answering

    try:
        with answering(project.tracking_uri):
            return registry.resolve(name, project.config.output_folder / "filters" / digest(name)[:12])
    except RegistryError as error:
        raise UserError(f"--filter: {error}") from None
