"""The datasets of the evidence suite, encoded once by the project's own stages, as files that need no Spark.

Near-copies of evaluation and development images are dropped from the pool and the filter datasets by the stages'
verdicts. Touches tables through the stages; writes OUTPUT/vectors, OUTPUT/stock and OUTPUT/base.json, which says where
everything is and comes last: with it, no later run starts Spark.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from etl.encode.vectors import vectors_folder
from etl.evidence.config import EvidenceConfig
from etl.loop.training import labels_of
from etl.project import Project
from etl.shard_writer import publish_json
from etl.stage import UserError, digest
from etl.tables import PAIRS

STAGES = ("ingest", "decontaminate", "embed", "decontaminate_semantic")
VERSION = 1
FILE, CLASSES = "base.json", "classes.safetensors"


@dataclass(frozen=True)
class Base:
    """Where everything is. What every process of the suite opens."""

    key: str
    """Of datasets, encoder and stages: part of every job's name."""
    stock: str
    """Folder of the vectors of the pool, the noise and the filter datasets together, with facts.parquet: uid, dataset,
    text, source, language, language_confidence, width_px, height_px."""
    eval_sets: dict[str, str]
    """Evaluation and development set -> folder of vectors."""
    labels: dict[str, dict[str, str]]
    """Set -> uid -> class, of sets with classes."""
    encoder: str
    """The encoder's folder."""
    flagged: dict[str, int]
    """Dataset -> near-copies of evaluation images that were dropped."""

    @staticmethod
    def read(output: Path) -> Base | None:
        path = output / FILE
        return Base(**json.loads(path.read_text())) if path.exists() else None


def prepare(project: Project) -> Base:
    """The base, made now or as it was.

    Raises:
        UserError: too few evaluation items.
    """
    config, output = project.config.evidence, project.config.output_folder
    (record, encoder), key = project.encoder, key_of(project)
    if (found := Base.read(output)) and found.key == key:
        project.say("base          up to date")
        return found
    project.run_all(STAGES)
    where = {"encoder": record.name, "encoder_version": record.version}
    folders = {name: vectors_folder(project.store, name, where, output / "vectors") for name in project.config.datasets}
    stocked = [config.base, *([config.noise] if config.noise else []), *config.clean]
    stock = output / "stock" / key[:12]
    _link([folders[name] for name in stocked], stock)
    _facts(project, {name: folders[name] for name in stocked}).to_parquet(stock / "facts.parquet")
    sets = project.config.of_kind("eval", "dev")
    labels = {n: dict(of_set) for n in sets if (of_set := labels_of(project.sources[n].labels))}
    _encode_classes(sorted({label for found in labels.values() for label in found.values()}), encoder, stock)
    flagged = {name: _num_pairs(project, name) - _num_vectors(folders[name]) for name in (config.base, *config.clean)}
    base = Base(key, str(stock), {n: str(folders[n]) for n in sets}, labels, str(encoder), flagged)
    _check_items(config, base)
    publish_json(output / FILE, asdict(base))
    return base


def key_of(project: Project) -> str:
    """Of the base that the config asks for."""
    datasets = {name: dataset.model_dump(mode="json") for name, dataset in project.config.datasets.items()}
    stages = {name: getattr(project.config.stages, name).model_dump(mode="json") for name in STAGES}
    return digest(VERSION, datasets, project.encoder[0].version, stages)


def _link(folders: list[Path], stock: Path) -> None:
    """The parts of all folders in one: the same files, not copies."""
    stock.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(path for folder in folders for path in sorted(folder.glob("part-*.arrow"))):
        new = stock / f"part-{number:05d}.arrow"
        new.unlink(missing_ok=True)
        os.link(part, new)


def _facts(project: Project, folders: dict[str, Path]) -> pd.DataFrame:
    """What heuristics look at, of every stocked pair: a few tens of thousands, on the driver."""
    from etl.selection.lexicon import read_lexicon
    from etl.stages.signals import detector
    from models.data import Vectors

    frames = []
    for name, folder in folders.items():
        rows = project.store.read(name, PAIRS).select("uid", "text", "source", "width_px", "height_px")
        pairs: pd.DataFrame = rows.toPandas()
        kept = pairs.set_index("uid").loc[Vectors.open(folder).uids].reset_index()
        frames.append(kept.assign(dataset=name, text=kept["text"].fillna("")))
    facts = pd.concat(frames, ignore_index=True)
    lexicon = read_lexicon(project.config.stages.signals.lexicon)  # type: ignore[attr-defined]
    return pd.concat([facts, next(detector(lexicon)(iter([facts["text"]])))], axis=1)


def _encode_classes(names: list[str], encoder: Path, stock: Path) -> None:
    """Text vectors of class names, for processes that load no encoder; the names as JSON beside them."""
    from models.encoder import Encoder

    vectors_CT = Encoder.load(encoder).encode_texts(names) if names else np.empty((0, 0), np.float32)
    save_file({"vectors": vectors_CT}, stock / CLASSES)
    publish_json(stock / "classes.json", names)


def _num_pairs(project: Project, name: str) -> int:
    return int(project.store.read(name, PAIRS).where("status = 'ok'").count())


def _num_vectors(folder: Path) -> int:
    return int(json.loads((folder / "manifest.json").read_text())["num_rows"])


def _check_items(config: EvidenceConfig, base: Base) -> None:
    counts = {name: _num_vectors(Path(base.eval_sets[name])) for name in {p.partition(".")[0] for p in config.parts}}
    if sum(counts.values()) < config.min_items:
        raise UserError(f"evidence.parts: wanted at least {config.min_items:,} evaluation items; found {counts}")
