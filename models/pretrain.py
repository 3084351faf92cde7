"""A training run on pixels: `python -m models.train JOB.yaml`, alone or under torchrun; `dfn train` runs it.

OUT holds init-* (the first weights, where they were drawn), checkpoints, and at the end clip (an encoder folder, as
`models.clip` loads it) and result.json. The same command again goes on where the run was, or says what it found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from models import clip
from models.checkpoint import CheckpointError, Checkpoints
from models.encoder import Encoder
from models.exported import index_folder
from models.images import ImageError
from models.job import TrainJob
from models.metrics import retrieval
from models.pairs import DataError, Pairs
from models.pixel_source import PixelSource
from models.recipe import TrainingError
from models.records import RECORD, EncoderRecord, WeightsError, sha256_file, whole_folder, write_whole
from models.scales import register_laptop
from models.train import fit

RESULT, ERROR = "result.json", "error.txt"
REFUSALS = (TrainingError, DataError, CheckpointError, WeightsError)
"""What a run ends with that trying again would not mend."""
VERSION = 1
"""Raise it when the same job would train otherwise: its checkpoints are then those of another run."""

Result = dict[str, Any]
Say = Callable[[str], None]


def run(job: TrainJob, *, on_step: Callable[[int, float], None] | None = None, say: Say = lambda _: None) -> Result:
    """Trains, or goes on, or says that all is done; as one rank, where torchrun's variables say that there are several.

    Returns:
        What rank 0 writes to OUT/result.json: run, folder, losses, num_pairs, samples_seen, seconds, wait_seconds and
        bad (uid -> why) of this rank.

    Raises:
        TrainingError, DataError, CheckpointError, WeightsError: see `fit`, `models.pairs` and `models.clip`.
    """
    rank, num_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    has_gpu = job.device == "auto" and torch.cuda.is_available()
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if has_gpu else "cpu"
    torch.set_num_threads(job.num_threads)
    _prepare(job, rank, say)
    if num_ranks > 1:
        if device != "cpu":
            torch.cuda.set_device(device)
        dist.init_process_group("gloo" if device == "cpu" else "nccl", init_method="env://")
    try:
        return _run(job, rank, device, on_step, say if rank == 0 else lambda _: None)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _prepare(job: TrainJob, rank: int, say: Say) -> None:
    """Pointers to the data, verified, and the first weights: rank 0 makes them once.

    The others wait for a file and not at a barrier: to verify a pool takes longer than any collective may.
    """
    prepared = job.out / "prepared"
    while rank and not prepared.exists():
        time.sleep(0.2)
    if rank:
        return
    _pointers(job, say)
    folder = _first(job)
    if job.init is None and not (folder / RECORD).exists():
        register_laptop()
        clip.build_open_clip(job.dial.architecture, None, folder, seed=job.seed)
    job.out.mkdir(parents=True, exist_ok=True)
    prepared.touch()


def _first(job: TrainJob) -> Path:
    """The encoder folder with the first weights."""
    return job.init or job.out / f"init-{job.dial.architecture}-{job.seed}"


def _pointers(job: TrainJob, say: Say) -> Path:
    local = Path(job.data)
    if local.is_file() or any(local.glob("part-*.arrow")):
        return local
    return index_folder(job.data, job.out / "pairs", say=say)


def _run(job: TrainJob, rank: int, device: str, on_step: Callable[[int, float], None] | None, say: Say) -> Result:
    started = time.monotonic()
    pairs, first = Pairs.open(_pointers(job, say)), _first(job)
    record = EncoderRecord.read(first)
    run_id = _run_id(job, pairs, record)
    if (found := _finished(job.out, run_id)) is not None:
        say("up to date")
        return found
    model, _ = clip.load(first)
    if job.grad_checkpointing:
        model.set_grad_checkpointing()
    recipe = job.recipe
    source = PixelSource(
        pairs, record, clip.load_tokenizer(first, record), seed=job.seed, augmentation=job.augmentation,
        num_threads=job.decode_threads,
    )  # fmt: skip
    checkpoints = Checkpoints(job.out / "checkpoints", run_id, job.checkpoint_steps, job.keep_checkpoints, say)
    repeats = recipe.steps * recipe.batch_size / len(pairs)
    say(f"{recipe.steps} steps of {recipe.batch_size} on {len(pairs):,} pairs: each is seen {repeats:.1f} times")
    torch.manual_seed(job.seed + rank)  # of dropout, where there is any
    losses = fit(model, source, recipe, checkpoints=checkpoints, on_step=on_step, device=device)
    result: Result = {
        "run": run_id, "folder": str(job.out / "clip"), "losses": losses, "num_pairs": len(pairs),
        "samples_seen": recipe.steps * recipe.batch_size, "seconds": time.monotonic() - started,
        "wait_seconds": source.wait_seconds, "bad": source.bad,
    }  # fmt: skip
    if rank == 0:
        _write(job, model, first, record, result)
    return result


def _run_id(job: TrainJob, pairs: Pairs, record: EncoderRecord) -> str:
    """What a run is: everything that its weights follow from on one machine."""
    augmentation = job.augmentation.model_dump() if job.augmentation else None
    facts = [VERSION, job.recipe.model_dump(), augmentation, pairs.content, record.version]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _finished(out: Path, run_id: str) -> Result | None:
    if not (out / RESULT).exists():
        return None
    found: Result = json.loads((out / RESULT).read_text())
    if found["run"] != run_id:
        raise CheckpointError(
            f"wanted a folder of this run ({run_id}); found {out} with the result of {found['run']}, of other "
            "data, recipe or first weights; fix: name another folder to write to"
        )
    return found


def _write(job: TrainJob, model: Any, first: Path, record: EncoderRecord, result: Result) -> None:
    """The encoder folder, with the tokeniser's files and preprocessing of the first weights; last, the result."""
    with whole_folder(job.out / "clip") as folder:
        for name in record.tokenizer.files:
            shutil.copyfile(first / name, folder / name)
        save_file({name: t.cpu().contiguous() for name, t in model.state_dict().items()}, folder / clip.WEIGHTS)
        sha256 = sha256_file(folder / clip.WEIGHTS)
        record.model_copy(update={"name": job.name, "weights_sha256": sha256}).write(folder)
    write_whole(job.out / RESULT, json.dumps(result, indent=1))


def retrieval_of(encoder_folder: Path, data: str, cache: Path) -> dict[str, float]:
    """Recall of the trained model on the pairs of a folder of shards, read as they are: what `retrieval` gives.

    Raises:
        DataError: shards that are not their manifest's.
    """
    pairs, encoder = Pairs.open(index_folder(data, cache)), Encoder.load(encoder_folder)
    images, captions = [], []
    for number in range(len(pairs)):
        with suppress(ImageError):  # it was counted when it was ingested, and is no candidate
            images.append(encoder.preprocess(pairs[number].read()))
            captions.append(pairs[number].text)
    return retrieval(encoder.encode_images(images), encoder.encode_texts(captions), captions)


def run_rank(text: str) -> Result:
    """`run` of a job in JSON, as a process whose standard error people read. A refusal is kept in OUT/error.txt.

    Raises:
        SystemExit: with code 2, when the run was refused.
    """
    job, is_first = TrainJob.model_validate_json(text), os.environ.get("RANK", "0") == "0"

    def say(line: str) -> None:
        if is_first:
            sys.stderr.write(f"{line}\n")

    def on_step(step: int, loss: float) -> None:
        if (step + 1) % max(1, job.recipe.steps // 20) == 0:
            say(f"step {step + 1} of {job.recipe.steps}, loss {loss:.4f}")

    try:
        return run(job, on_step=on_step, say=say)
    except REFUSALS as error:
        job.out.mkdir(parents=True, exist_ok=True)
        (job.out / ERROR).write_text(str(error))
        say(f"error: {error}")
        raise SystemExit(2) from None


def main() -> None:
    """Exit code 2 and one line for what the user can mend."""
    try:
        if len(sys.argv) != 2:
            raise TrainingError("wanted python -m models.train JOB.yaml; see models/job.py, for its fields")
        text = TrainJob.read(Path(sys.argv[1])).model_dump_json()
    except TrainingError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    run_rank(text)
