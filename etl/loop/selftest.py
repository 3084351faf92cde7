"""The pipeline's self-test: what was planted in a pool (`samples/planted.py`) must come out. Run it before a cluster is
trusted.

The stages are the real ones, through a project of its own in one folder; the filter is a given one, or one that is
trained on the config's filter dataset. Touches that folder, and the cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from etl.config import DatasetConfig
from etl.dedup.evalsets import EvalSetsConfig
from etl.encode.vectors import vectors_folder
from etl.filters.recipe import datasets
from etl.project import Project
from etl.samples import planted
from etl.shard_writer import publish_json
from etl.stage import UserError
from etl.stages import score
from etl.tables import CONTAMINATED, DUPLICATES, PAIRS, SCORES
from models.records import RECORD

MARK = "selftest.json"
"""In a folder that a self-test made: no other is written to, or removed."""
LEAST_JPEG = 0.5
"""Of JPEGs that must be found. Perceptual hashes find 93 to 95 of 100 pictures again, but of symmetric icons, whose
hashes turn over, 27 of 40, and of emoji 35 (see `stages/decontaminate.py`); where they are broken, none."""
SIGMAS = 5
"""How far above chance the filter must be: a chance filter gets there once in 3.5 million runs."""


@dataclass(frozen=True)
class Check:
    """One line of the table: shares and areas are in [0, 1]."""

    name: str
    num: int
    wanted: float
    found: float

    @property
    def is_passed(self) -> bool:
        return self.num > 0 and self.found >= self.wanted


def prepared(project: Project, out: Path) -> Project:
    """A project of its own in `out`, with its pool planted there: the same encoder, stages and Spark.

    Raises:
        UserError: the config has no pool made of a corpus, or `out` holds something else.
    """
    config = project.config
    pools, sets = config.of_kind("pool"), config.of_kind("eval")
    corpus = config.datasets[pools[0]].corpus if len(pools) == 1 else None
    if corpus is None or not sets or not config.datasets[sets[0]].corpus:
        raise UserError("selftest: wanted a pool and an evaluation set made of corpora, whose captions are known; "
                        "found none; fix: --conf selftest")  # fmt: skip
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(f"selftest: wanted a folder of its own; found {out} with something else; fix: --out")
    out.mkdir(parents=True, exist_ok=True)
    publish_json(out / MARK, {"config": config.name})
    true = corpus.model_copy(update={"permute_fraction": 0.0})
    known = {**config.datasets, pools[0]: config.datasets[pools[0]].model_copy(update={"corpus": true})}
    source = replace(project, config=config.model_copy(update={"datasets": known}))
    folder = out / "planted"
    if not (folder / planted.PLANTED).exists():
        folders = [source.corpus_folder(name) for name in (pools[0], sets[0])]
        pool, evaluation = (planted.samples(at) for at in folders if at)
        try:
            known_set = planted.plant(pool, evaluation)
        except ValueError as error:
            raise UserError(f"selftest: {error}; fix: --conf selftest, or a smaller corpus.limit") from None
        planted.write(folder, pool, known_set)
    shards = DatasetConfig(kind="pool", shards=f"{folder}/*.tar")
    update: dict[str, Any] = {
        "output": str(out), "tables": "", "tracking_uri": "", "datasets": {**known, pools[0]: shards},
        "evalsets": EvalSetsConfig(use=()), "more_encoders": {}, "image_models": (),
    }  # fmt: skip
    return replace(project, config=config.model_copy(update=update), runs=[])


def run(project: Project, filter: Path | None = None) -> list[Check]:
    """Stages, filter and scores of a `prepared` project, and what they found."""
    (pool,) = project.config.of_kind("pool")
    known = json.loads((project.config.output_folder / "planted" / planted.PLANTED).read_text())
    learnt = "" if filter else datasets(project)[0]
    project.run_all()
    folder = filter or _trained(project, learnt, pool)
    scored = project.run(score.STAGE, pool, project.with_filter(score.STAGE, folder))
    store = project.store
    num_ok = store.read(pool, PAIRS).where("status = 'ok'").count()
    checks = [Check("pairs read whole", known["num_pairs"], 1.0, num_ok / known["num_pairs"])]
    flagged = {row[0] for row in store.read(pool, CONTAMINATED).select("uid").distinct().collect()}
    checks.append(_share("contaminated flagged", set(known["contaminated"]), flagged))
    together = _together(store.read(pool, DUPLICATES))
    for kind, wanted in {"same_bytes": 1.0, "same_pixels": 1.0, "jpeg": LEAST_JPEG}.items():
        found = {made for made, of in known[kind].items() if together.get(made, set()) & together.get(of, set())}
        checks.append(_share(f"{kind} found as duplicates", set(known[kind]), found, wanted))
    scores = store.read(pool, SCORES, where=scored.slice).where("score IS NOT NULL").select("uid", "score")
    return [*checks, _bottom({row[0]: row[1] for row in scores.collect()}, known["mismatched"])]


def _trained(project: Project, dataset: str, pool: str) -> Path:
    """A filter trained on a dataset, as a round would: in OUTPUT/filter."""
    from models.data import Vectors
    from models.train import ImageStats, TrainConfig, train

    folder, (record, _) = project.config.output_folder / "filter", project.encoder
    if not (folder / RECORD).exists():
        naming = {"encoder": record.name, "encoder_version": record.version}
        at = project.config.output_folder / "vectors"
        learnt, of_pool = (Vectors.open(vectors_folder(project.store, name, naming, at)) for name in (dataset, pool))
        config = TrainConfig(**project.config.loop.filter.model_dump(), seed=0)
        done = train(learnt, config, folder, encoder_record=record, stats=ImageStats.of(of_pool))
        project.say(f"filter on {len(learnt):,} pairs: {len(done.losses)} steps in {done.seconds:.1f} s")
    return folder


def _share(name: str, planted_uids: set[str], found: set[str], wanted: float = 1.0) -> Check:
    return Check(name, len(planted_uids), wanted, len(planted_uids & found) / max(len(planted_uids), 1))


def _together(duplicates: DataFrame) -> dict[str, set[tuple[str, str]]]:
    """uid -> (method, group) of the groups that it is in."""
    rows = duplicates.groupBy("uid").agg(F.collect_set(F.struct("method", "group_uid"))).collect()
    return {row[0]: {(method, group) for method, group in row[1]} for row in rows}


def _bottom(scores: Mapping[str, float], mismatched: Mapping[str, str]) -> Check:
    """The chance that a true pair scores above a mismatched one (ROC area, Mann & Whitney 1947), over all of both.

    Under chance its standard deviation is sqrt((2 n + 1) / (12 n^2)) for n of each.
    """
    pairs = [(made, of) for made, of in mismatched.items() if made in scores and of in scores]
    bad_N, true_N = (np.array([scores[pair[side]] for pair in pairs]) for side in (0, 1))
    num = len(pairs)
    above = (true_N[:, None] > bad_N[None, :]).mean() + (true_N[:, None] == bad_N[None, :]).mean() / 2 if num else 0.0
    limit = 0.5 + SIGMAS * sqrt((2 * num + 1) / (12 * num**2)) if num else 1.0
    return Check("mismatched below true pairs (area)", len(mismatched), round(limit, 3), float(above))
