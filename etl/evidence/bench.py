"""Does the jobs of the evidence suite in a process without Spark: stored vectors in, results on disk out, each once.

Touches OUTPUT/{filters,results,scores,truth}. Training, scoring and evaluation are the functions that the loop and the
stages call; this file decides only which rows they get.

Dimensions: N pairs of the pool.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray
from safetensors.numpy import load_file

from etl.evidence import scoring
from etl.evidence.base import CLASSES, Base
from etl.evidence.config import EvidenceConfig
from etl.evidence.jobs import ArmJob, FilterJob, Job, Learned, Scorer, key_of
from etl.evidence.pools import Banks, Pool, noise, truth
from etl.evidence.selecting import draw, top
from etl.stage import UserError
from models.average import average_heads
from models.data import Indices, Vectors
from models.evaluate import evaluate_items
from models.filters import HEADS, Filter, Heads
from models.records import EncoderRecord, FilterRecord, write_whole
from models.train import ImageStats, TrainConfig, train

RESERVE_SEED = 31337
Said = Callable[[Job], None]


class Bench:
    """`on_trained` is called with each job for which something was trained, not found."""

    def __init__(self, config: EvidenceConfig, base: Base, output: Path, on_trained: Said = lambda job: None) -> None:
        self.config, self.base, self.output, self._on_trained = config, base, output, on_trained
        self.encoder, self.stock = EncoderRecord.read(Path(base.encoder)), Vectors.open(Path(base.stock))
        facts = pd.read_parquet(Path(base.stock) / "facts.parquet").set_index("uid")
        self.facts = facts.loc[self.stock.uids].reset_index()
        self.captions = self.facts["text"].to_numpy()
        self.banks = Banks.of(self.facts, config.base)
        self.pool = lru_cache(maxsize=3)(self._pool)

    # What there is.

    @cached_property
    def stats(self) -> ImageStats:
        """Of the base pool: every run is standardised alike."""
        return ImageStats.of(self.stock.take(self.banks.pool_N))

    @cached_property
    def eval_sets(self) -> dict[str, Vectors]:
        return {name: Vectors.open(Path(folder)) for name, folder in self.base.eval_sets.items()}

    @cached_property
    def _class_vectors(self) -> dict[str, Any]:
        folder = Path(self.base.stock)
        names = json.loads((folder / "classes.json").read_text())
        return dict(zip(names, load_file(folder / CLASSES)["vectors"], strict=True))

    @cached_property
    def is_reserved(self) -> NDArray[np.bool_]:
        """The part of the pool that figure 4 does not select from, by a hash of the uid. Shape N."""
        return draw(self.stock.uids_u8[self.banks.pool_N], RESERVE_SEED) < self.config.reserve

    def _pool(self, name: str, seed: int) -> tuple[Pool, Vectors]:
        """The pool under a seed; its truth goes into a file beside."""
        pool, kinds_N = noise(self.config.pools[name], self.banks, seed)
        path = self.output / "truth" / f"{name}-{seed}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with _whole(path) as file:
            np.save(file, truth(pool, kinds_N, self.captions), allow_pickle=False)
        return pool, self.stock.re_paired(pool.rows_N, pool.images_N, pool.texts_N)

    def rows_of(self, sets: tuple[str, ...]) -> Indices:
        return np.flatnonzero(self.facts["dataset"].isin(sets))

    # Jobs.

    def key(self, job: Job | Scorer, *more: Any) -> str:
        pools = {name: self.config.pools[name].shares for name in sorted(_pools_in(asdict(job)))}
        world = self.config.model_dump(include={"base", "noise", "dev", "parts", "reserve"}, mode="json")
        return key_of(job, self.base.key, world, pools, *more)

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a job found, where it is done: `avg`, `dev`, `parts`, and of an arm `num_pairs` and `precision`."""
        path = self._path(job)
        return json.loads(path.read_text()) if path.exists() else None

    def items(self, job: Job) -> dict[str, NDArray[np.float64]]:
        """Part -> what its model got on every evaluation item."""
        stored = load_file(self._path(job).with_suffix(".safetensors"))
        return {part: stored[part].astype(np.float64) for part in self.config.parts}

    def do(self, job: Job) -> None:
        """Trains and evaluates what the job names, and what it needs, unless that was done."""
        if not self._path(job).exists():
            with self._alone(job):
                if not self._path(job).exists():
                    self._filter(job) if isinstance(job, FilterJob) else self._arm(job)

    def _path(self, job: Job) -> Path:
        return self.output / "results" / f"{self.key(job)}.json"

    @contextmanager
    def _alone(self, job: Job | Scorer, *more: Any) -> Iterator[None]:
        path = self.output / "locks" / self.key(job, *more)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    def folder(self, job: FilterJob) -> Path:
        """Of the trained filter."""
        self.do(job)
        return self.output / "filters" / self.key(job)

    def _filter(self, job: FilterJob) -> None:
        folder = self.output / "filters" / self.key(job)
        if job.tuned:
            before = replace(job, tuned=())
            init = Heads.load(self.folder(before) / HEADS)
            recipe = replace(job.recipe, steps=job.tuned_steps, lr=job.tuned_lr)
            with TemporaryDirectory() as temporary:
                rows = self.stock.take(self.rows_of(job.tuned))
                self._train(rows, recipe, job.seed, Path(temporary) / "after", init=init)
                average_heads(self.folder(before), Path(temporary) / "after", folder, alpha=job.alpha,
                              encoder_folder=Path(self.base.encoder))  # fmt: skip
        else:
            self._train(self.learned(job.learned, job.seed)[0], job.recipe, job.seed, folder)
        self._publish(job, folder, {}, on_dev=False)

    def learned(self, learned: Learned, seed: int) -> tuple[Vectors, Indices]:
        """The pairs that a filter learns from, and the positions in the pool of those that are its dirt."""
        generator, rows = np.random.default_rng([seed, 2]), self.rows_of(learned.sets)
        images = texts = rows = np.sort(generator.permutation(rows)[: learned.limit or None])
        dirt = np.empty(0, np.int64)
        if learned.dirt:
            pool, _ = self.pool(learned.dirt_pool, seed)
            number = round(learned.dirt * len(rows))
            places = np.flatnonzero(self.is_reserved != learned.is_dirt_scored)
            if len(places) < number:
                raise UserError(f"evidence.reserve: wanted {number} pairs to take dirt from; found {len(places)}")
            dirt = np.sort(generator.permutation(places)[:number])
            kept = np.sort(generator.permutation(rows)[number:])
            rows, images, texts = (
                np.concatenate([kept, of_N[dirt]]) for of_N in (pool.rows_N, pool.images_N, pool.texts_N)
            )
        if learned.top:
            pool, _ = self.pool(learned.top.pool, seed)
            best = self._top(learned.top.pool, seed, Scorer("dfn", (learned.top.filter,)), learned.top.fraction)
            rows, images, texts = (
                np.concatenate([side, of_N[best]])
                for side, of_N in ((rows, pool.rows_N), (images, pool.images_N), (texts, pool.texts_N))
            )
        order = np.argsort(rows)
        return self.stock.re_paired(rows[order], images[order], texts[order]), dirt

    def _arm(self, job: ArmJob) -> None:
        kept = self.kept(job)
        _, vectors = self.pool(job.pool, job.seed)
        is_true_N = np.load(self.output / "truth" / f"{job.pool}-{job.seed}.npy", allow_pickle=False)
        facts: dict[str, Any] = {"num_pairs": len(kept)}
        if self.config.pools[job.pool].shares:
            facts["precision"] = float(is_true_N[kept].mean())
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self._train(vectors.take(kept), job.recipe, job.seed, folder)
            self._publish(job, folder, facts, on_dev=job.on_dev)

    def kept(self, job: ArmJob) -> Indices:
        """Positions in the pool, rising, of the pairs that an arm keeps."""
        _, vectors = self.pool(job.pool, job.seed)
        is_eligible_N = np.ones(len(vectors), np.bool_)
        if job.leaves_reserve:
            is_eligible_N &= ~self.is_reserved
        if job.leaves_dirt:
            is_eligible_N[self.learned(job.leaves_dirt.learned, job.seed)[1]] = False
        if job.keep == "all":
            return np.flatnonzero(is_eligible_N)
        if job.scorer is not None:
            ranks_N: NDArray[Any] = self.scores(job.pool, job.seed, job.scorer)
        else:
            ranks_N = draw(vectors.uids_u8, job.seed)
        if job.keep == "true":
            is_eligible_N &= np.load(self.output / "truth" / f"{job.pool}-{job.seed}.npy", allow_pickle=False)
            return top(ranks_N, vectors.uids_u8, min(1.0, job.fraction * len(vectors) / is_eligible_N.sum()),
                       is_eligible_N)  # fmt: skip
        return top(ranks_N, vectors.uids_u8, job.fraction, is_eligible_N)

    def _top(self, pool: str, seed: int, scorer: Scorer, fraction: float) -> Indices:
        _, vectors = self.pool(pool, seed)
        return top(self.scores(pool, seed, scorer), vectors.uids_u8, fraction, np.ones(len(vectors), np.bool_))

    def scores(self, pool: str, seed: int, scorer: Scorer) -> NDArray[np.float32]:
        """Of every pair of the pool under a seed, computed once and kept."""
        path = self.output / "scores" / f"{self.key(scorer, pool, seed, self.config.pools[pool].shares)}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone(scorer, pool, seed):
            if not path.exists():
                scores_N = self._scores(pool, seed, scorer)
                with _whole(path) as file:
                    np.save(file, scores_N, allow_pickle=False)
        found: NDArray[np.float32] = np.load(path, allow_pickle=False)
        return found

    def _scores(self, pool: str, seed: int, scorer: Scorer) -> NDArray[np.float32]:
        noisy, vectors = self.pool(pool, seed)
        if scorer.kind == "heuristics":
            return scoring.heuristics(self.facts, noisy)
        good = self.stock.take(self.rows_of(scorer.good)) if scorer.good else None
        if scorer.kind in ("binary_image", "binary_image_text") and good:
            return scoring.binary(self.encoder, good, vectors, scorer.kind.removeprefix("binary_"), seed)
        filters = [Filter.load(self.folder(job)) for job in scorer.filters]
        if scorer.kind == "norm_sim" and good:
            return scoring.norm_sim(filters[0], good, vectors)
        if scorer.kind == "s_clip_loss":
            return scoring.s_clip_loss(filters[0], vectors, seed)
        if scorer.kind == "fused":
            parts = [self.scores(pool, seed, replace(scorer, kind=kind)) for kind in ("dfn", "s_clip_loss")]
            return scoring.fused(*parts)
        means: NDArray[np.float32] = np.mean([scoring.by_filter(f, vectors) for f in filters], axis=0)
        return means

    def _train(self, rows: Vectors, recipe: Any, seed: int, out: Path, *, init: Heads | None = None) -> None:
        config = TrainConfig(**asdict(recipe), seed=seed)
        train(rows, config, out, encoder_record=self.encoder, stats=self.stats, init=init)

    def _publish(self, job: Job, folder: Path, facts: dict[str, Any], *, on_dev: bool) -> None:
        """Evaluates a model; its result is there when its JSON is."""
        from safetensors.numpy import save_file

        model, config, path = Filter.load(folder), self.config, self._path(job)
        values = self._evaluated(model, (config.dev, *(() if on_dev else config.parts)))
        found = {"dev": float(values[config.dev].mean()), **facts, "job": asdict(job), "record": _version(folder)}
        if not on_dev:
            found["parts"] = {part: float(values[part].mean()) for part in config.parts}
            found["avg"] = float(np.mean(list(found["parts"].values())))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({part: v.astype(np.float32) for part, v in values.items()}, path.with_suffix(".safetensors"))
        write_whole(path, json.dumps(found))
        self._on_trained(job)

    def _evaluated(self, model: Filter, parts: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
        def encode(texts: Sequence[str]) -> Any:
            return np.stack([self._class_vectors[text] for text in texts])

        found: dict[str, NDArray[np.float64]] = {}
        for name in dict.fromkeys(part.partition(".")[0] for part in parts):
            labels = self.base.labels.get(name)
            values = evaluate_items(model, self.eval_sets[name], labels=labels, encode_texts=encode if labels else None)
            found |= {f"{name}.{metric}": items for metric, items in values.items()}
        return {part: found[part] for part in parts}


def _pools_in(value: Any) -> set[str]:
    """Names of pools in a job's fields, at any depth."""
    if isinstance(value, dict):
        own = {value[name] for name in ("pool", "dirt_pool") if value.get(name)}
        return own.union(*(_pools_in(inner) for inner in value.values()))
    return set().union(*(_pools_in(inner) for inner in value)) if isinstance(value, list | tuple) else set()


def _version(folder: Path) -> str | None:
    return FilterRecord.read(folder).weights_sha256


@contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{np.random.default_rng().integers(1 << 62):x}")
    with temporary.open("wb") as file:
        yield file
    temporary.replace(path)
