"""Weights of before and after fine-tuning, averaged: what keeps a fine-tuned filter robust (WiSE-FT, Wortsman et al.
2022, arXiv 2109.01903, equation 1; the DFN recipe averages its fine-tuned filter with the one before).

Writes a folder of the same kind: heads, or a whole CLIP.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models import clip
from models.filters import HEADS, Filter, Heads, save_filter
from models.records import EncoderRecord, FilterRecord, WeightsError


def average_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) before + alpha after, in float64, rounded once; what is no float is taken from `after`.

    Raises:
        ValueError: alpha is not in 0 to 1.
        WeightsError: other names or shapes on one side.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"wanted alpha from 0 (before) to 1 (after); found {alpha}")
    shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (before, after)]
    if shapes[0] != shapes[1]:
        differ = sorted(name for name in before.keys() | after.keys() if shapes[0].get(name) != shapes[1].get(name))
        raise WeightsError(wanted="tensors of the same names and shapes", found=f"others: {', '.join(differ[:5])}",
                           fix="average a model with one that was fine-tuned from it")  # fmt: skip
    return {
        name: (tensor.double() * (1 - alpha) + after[name].double() * alpha).to(tensor.dtype)
        if tensor.is_floating_point()
        else after[name]
        for name, tensor in before.items()
    }


def average_heads(before: Path, after: Path, out: Path, *, alpha: float, encoder_folder: Path) -> FilterRecord:
    """Two heads on one encoder; the record says whose they are.

    Raises:
        WeightsError: heads of different encoders, or of another shape, or a filter without heads.
    """
    filters, encoder = [Filter.load(folder) for folder in (before, after)], EncoderRecord.read(encoder_folder)
    if any(f.heads is None or f.record.encoder_version != encoder.version for f in filters):
        found = ", ".join(f"{f.record.encoder_name} {f.record.encoder_version}" for f in filters)
        raise WeightsError(wanted=f"heads on {encoder.name} {encoder.version}", found=found, fix="name others")
    tensors = average_tensors(load_file(before / HEADS), load_file(after / HEADS), alpha)
    heads = Heads(
        visual_weight=tensors["visual.head.proj.weight"].numpy(),
        visual_bias=tensors["visual.head.proj.bias"].numpy(),
        text_weight=tensors["text.proj.weight"].numpy(),
        log_scale=float(tensors["logit_scale"]),
    )
    told = {"averaged": f"{1 - alpha:g} of {filters[0].version} and {alpha:g} of {filters[1].version}"}
    return save_filter(out, heads, encoder_record=encoder, name=filters[1].record.name,
                       formula=filters[1].formula, provenance=told)  # fmt: skip


def average_clips(before: Path, after: Path, out: Path, *, alpha: float) -> EncoderRecord:
    """Two whole CLIPs of one architecture, preprocessing and tokeniser.

    Raises:
        WeightsError: records that differ in more than their weights, altered weights, other tensors.
    """
    (model, first), (other, second) = clip.load(before), clip.load(after)
    differ = [name for name, value in first if name != "weights_sha256" and value != getattr(second, name)]
    if differ:
        raise WeightsError(wanted="encoders that differ in their weights alone", found=f"others: {', '.join(differ)}",
                           fix="average a model with one that was fine-tuned from it")  # fmt: skip
    with torch.no_grad():
        model.load_state_dict(average_tensors(model.state_dict(), other.state_dict(), alpha), strict=True)
    return clip.write_like(first, model, before, out)
