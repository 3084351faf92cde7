"""Checkpoints that are whole or not there: safetensors and JSON, fsynced, renamed, checked by sha256 when read.

    FOLDER/step-00000120/    model.safetensors, state.safetensors, checkpoint.json (written last)

No pickle, so a checkpoint from elsewhere runs nothing. What a kill left half-written has another name, is ignored with
a line and removed by the next save.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.records import WeightsError, check_files, fsync, sha256_file

MODEL, STATE, FACTS = "model.safetensors", "state.safetensors", "checkpoint.json"

Tensors = Mapping[str, Tensor]


class CheckpointError(Exception):
    """A checkpoint that is whole and does not belong here; says how to go on."""


class Saved(NamedTuple):
    """A checkpoint as it was read, on the CPU."""

    step: int
    """Steps done."""
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    """Optimiser, random numbers and losses, by the names that the loop gave them."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    run: str
    """What must be equal for a run to be gone on with: a digest of recipe, data and initial weights."""
    every_steps: int
    keep: int = 2
    """The last so many stay; one would be lost with a disk error while the next is written."""
    say: Callable[[str], None] = lambda _: None

    def save(self, step: int, model: Tensors, state: Tensors) -> Path:
        """Writes the checkpoint after `step` steps, and removes what is older than the last `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".step-{step:08d}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        for name, tensors in ((MODEL, model), (STATE, state)):
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary / name)
        facts = {"step": step, "run": self.run, "files": {n: sha256_file(temporary / n) for n in (MODEL, STATE)}}
        (temporary / FACTS).write_text(json.dumps(facts | {"sha256": _digest(facts)}, indent=1))
        for path in (*temporary.iterdir(), temporary):
            fsync(path)
        final = self.folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)  # one that was refused when it was read
        temporary.replace(final)
        fsync(self.folder)
        self._clean()
        return final

    def newest(self) -> Saved | None:
        """The last whole checkpoint; what is not whole is said and passed over. None: start from the beginning.

        Raises:
            CheckpointError: it is whole, and of another run.
        """
        for left_over in sorted(self.folder.glob(".step-*.tmp")):
            self.say(f"checkpoint {left_over.name} was not finished: ignored")
        for folder in self._finished():
            try:
                return self._read(folder)
            except (WeightsError, SafetensorError, OSError, ValueError, KeyError) as error:
                self.say(f"checkpoint {folder.name} is not whole: ignored ({error})")
        return None

    def _read(self, folder: Path) -> Saved:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_bytes())
        if facts.pop("sha256") != _digest(facts):
            raise ValueError(f"the sha256 of {FACTS} is another")
        check_files(folder, {name: facts["files"][name] for name in (MODEL, STATE)})
        if facts["run"] != self.run:
            raise CheckpointError(
                f"wanted checkpoints of run {self.run} in {self.folder}; found one of {facts['run']}, with other data, "
                "recipe or first weights; fix: name another folder to write to, or remove that one"
            )
        return Saved(int(facts["step"]), load_file(folder / MODEL), load_file(folder / STATE))

    def _finished(self) -> Iterator[Path]:
        """Newest first."""
        return iter(sorted(self.folder.glob("step-*"), reverse=True))

    def _clean(self) -> None:
        for folder in [*list(self._finished())[self.keep :], *self.folder.glob(".step-*.tmp")]:
            shutil.rmtree(folder, ignore_errors=True)


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
