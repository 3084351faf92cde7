"""Pretrained weights -> an encoder's folder, with what they want pinned: activation, preprocessing, sha256.

Weights trained with another activation or preprocessing load without an error and score badly: dfn2b at B/16 and L/14
and dfn5b at H/14 want QuickGELU, dfn2b_s39b at L/14 does not, and dfn5b squashes. open_clip's own table of pretrained
weights says so by name and tag, a folder of open_clip's on the hub says so in open_clip_config.json; what contradicts
them is refused. Touches the folder that it writes, and reads a local cache of the hub.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import download_pretrained
from pydantic import ValidationError

from models.clip import build_from_config
from models.records import EncoderRecord, Precision, Preprocessing, WeightsError, sha256_file

HUB_CONFIG = "open_clip_config.json"
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
QUICK = "-quickgelu"  # how open_clip names the same architecture with the other activation


@dataclass(frozen=True)
class Pretrained:
    """Weights and what they want."""

    name: str
    """The architecture, in open_clip's words."""
    architecture: Mapping[str, Any]
    """As open_clip's JSON files have it."""
    quick_gelu: bool
    preprocessing: Preprocessing
    checkpoint: Path | None
    """None: not found locally."""


def by_tag(name: str, tag: str, *, checkpoint: Path | None = None, cache: Path | None = None) -> Pretrained:
    """By open_clip's name and tag, such as ViT-B-16 and dfn2b.

    Args:
        checkpoint: the weights. None: those in `cache`, a local cache of the hub; nothing is downloaded while
            HF_HUB_OFFLINE is 1, which `models` sets.

    Raises:
        ValueError: a name or tag that open_clip does not know.
    """
    plain = name.removesuffix(QUICK)
    facts, architecture = open_clip.get_pretrained_cfg(plain, tag), open_clip.get_model_config(plain)
    if not facts or architecture is None:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(plain)) or "none"
        raise ValueError(f"wanted weights that open_clip knows for {plain}; found {tag!r}; fix: one of {known}")
    return Pretrained(
        plain, architecture, bool(facts.get("quick_gelu", False)), _preprocessing(facts, architecture),
        checkpoint or _cached(facts, cache),
    )  # fmt: skip


def by_hub_folder(folder: Path) -> Pretrained:
    """By a local copy of a repository of open_clip's on the hub: open_clip_config.json beside the weights.

    Raises:
        WeightsError: either is missing.
    """
    weights = next((folder / name for name in HUB_WEIGHTS if (folder / name).is_file()), None)
    if not (folder / HUB_CONFIG).is_file() or weights is None:
        raise WeightsError(wanted=f"{HUB_CONFIG} and one of {', '.join(HUB_WEIGHTS)} in {folder}",
                           found=", ".join(sorted(p.name for p in folder.glob("*"))) or "nothing",
                           fix="copy the whole repository")  # fmt: skip
    facts = json.loads((folder / HUB_CONFIG).read_text())
    architecture = facts["model_cfg"]
    quick_gelu = bool(architecture.get("quick_gelu", False))
    preprocessing = _preprocessing(facts.get("preprocess_cfg", {}), architecture)
    return Pretrained(folder.name, architecture, quick_gelu, preprocessing, weights)


def build(
    source: Pretrained,
    out: Path,
    *,
    quick_gelu: bool | None = None,
    sha256: str | None = None,
    batch_size: int = 16,
    precision: Precision = "fp32",
) -> EncoderRecord:
    """Writes the encoder's folder. Its record holds all that decides a vector, the sha256 of the weights included.

    Args:
        quick_gelu: the activation that the caller expects; another one than the weights want is refused.
        sha256: of the checkpoint file, where it is known.

    Raises:
        WeightsError: no weights, other ones than expected, tensors that do not fit, or a file that holds code.
    """
    if quick_gelu is not None and quick_gelu != source.quick_gelu:
        raise WeightsError(wanted=f"quick_gelu={source.quick_gelu}, as the weights of {source.name} want",
                           found=f"quick_gelu={quick_gelu}", fix="leave it out")  # fmt: skip
    if source.checkpoint is None or not source.checkpoint.is_file():
        raise WeightsError(wanted=f"the weights of {source.name} as a file or in a cache of the hub",
                           found=str(source.checkpoint or "none"), fix="fetch them, then name the file")  # fmt: skip
    if sha256 is not None and (found := sha256_file(source.checkpoint)) != sha256:
        raise WeightsError(wanted=f"{source.checkpoint} with sha256 {sha256}", found=found, fix="fetch it again")
    return build_from_config(
        dict(source.architecture), source.name, source.checkpoint, out, quick_gelu=source.quick_gelu,
        preprocessing=source.preprocessing, batch_size=batch_size, precision=precision,
    )  # fmt: skip


def _preprocessing(facts: Mapping[str, Any], architecture: Mapping[str, Any]) -> Preprocessing:
    size = facts.get("size") or architecture["vision_cfg"]["image_size"]
    try:
        return Preprocessing(
            size_px=size[0] if isinstance(size, list | tuple) else size,
            resize=facts.get("resize_mode") or "shortest",
            interpolation=facts.get("interpolation") or "bicubic",
            mean=facts.get("mean") or open_clip.OPENAI_DATASET_MEAN,
            std=facts.get("std") or open_clip.OPENAI_DATASET_STD,
        )
    except ValidationError as error:
        fields = ", ".join(str(e["loc"][0]) for e in error.errors())
        raise WeightsError(wanted="squash or shortest, bicubic or bilinear, three channels",
                           found=f"other preprocessing: {fields}", fix="take another encoder") from None  # fmt: skip


def _cached(facts: Mapping[str, Any], cache: Path | None) -> Path | None:
    """The weights in a local cache of the hub; None where they are not there and may not be downloaded."""
    try:
        return Path(download_pretrained(dict(facts), cache_dir=os.fspath(cache) if cache else None))
    except Exception:  # the hub's client has an error for each way of not finding a file
        return None
