"""Weights files that others wrote, read into a model: tensors alone, whatever else they hold. Touches no other file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from torch import Tensor, nn

from models.records import WeightsError


def load_checkpoint(model: nn.Module, checkpoint: Path, name: str) -> None:
    """Reads safetensors or a torch file into an open_clip model.

    Raises:
        WeightsError: tensors that do not fit `name`, another kind of file, or a pickle of something else than tensors,
            which is refused and not run.
    """
    if checkpoint.suffix in (".npy", ".npz"):  # which open_clip takes for weights of another framework
        raise WeightsError(wanted="a checkpoint of torch or safetensors", found=str(checkpoint), fix="convert it")
    with must_fit(f"the tensors of {name}"), _plain(checkpoint):
        open_clip.load_checkpoint(model, str(checkpoint), strict=True, weights_only=True)


def load_in_order(trunk: nn.Module, path: Path, name: str) -> None:
    """Maps a torch file's tensors by position, each checked by its shape; what is behind the last one is left out.

    Raises:
        WeightsError: as `load_checkpoint`.
    """
    with _plain(path):
        given: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    wanted = trunk.state_dict()
    tensors = list(given.values())[: len(wanted)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if shapes != (expected := [tuple(tensor.shape) for tensor in wanted.values()]):
        at = next((i for i, pair in enumerate(zip(expected, shapes, strict=False)) if pair[0] != pair[1]), len(shapes))
        raise WeightsError(
            wanted=f"tensor {at} like {list(wanted)[at]}, shape {expected[at]}",
            found=f"shape {shapes[at]}" if at < len(shapes) else "no more tensors",
            fix=f"give the weights of {name}",
        )
    trunk.load_state_dict(dict(zip(wanted, tensors, strict=True)))


@contextmanager
def _plain(path: Path) -> Iterator[None]:
    """torch reads a pickle of tensors without running anything, and refuses a pickle of anything else."""
    try:
        yield
    except (RuntimeError, OSError, WeightsError):
        raise
    except Exception as error:  # pickle's own errors, and whatever a damaged pickle leads to
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise WeightsError(
            wanted=f"plain tensors (weights only) in {path}",
            found=f"something else, which was not run: {reason}",
            fix="do not use this file; take the weights as safetensors from a source that you trust",
        ) from None


@contextmanager
def must_fit(wanted: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise WeightsError(wanted=wanted, found=str(error), fix="give the weights of this architecture") from None
