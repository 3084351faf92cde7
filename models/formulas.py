"""Formulas: unit vectors of a pair -> its score, and what a formula is computed against. numpy only.

A formula is a dataclass: arrays are its tensors, kept as safetensors; the rest are its parameters, kept in the record.

Dimensions: B rows of a block, E embedding, K reference batches, M pairs of a batch, T targets, C clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.exact import products

Float32 = NDArray[np.float32]


class Formula(Protocol):
    """Scores a block of pairs; higher is kept."""

    name: ClassVar[str]

    def __call__(self, images_BE: Float32, texts_BE: Float32, keys_B: NDArray[np.uint64]) -> NDArray[Any]:
        """float, shape B, from unit vectors and, of each pair, `pair_keys`. NaN in gives NaN out."""
        ...


@dataclass(frozen=True)
class DfnCosine:
    """Cosine of image and text under a small CLIP (Fang et al. 2023, arXiv 2309.17425, section 3), in [-1, 1]."""

    name: ClassVar[str] = "dfn_cosine"

    def __call__(self, images_BE: Float32, texts_BE: Float32, keys_B: NDArray[np.uint64]) -> Float32:
        scores_B: Float32 = np.clip((images_BE * texts_BE).sum(axis=1), -1, 1)
        return scores_B


@dataclass(frozen=True)
class SClipLoss:
    """Cosine less what the pair's image and text have in common with everything (Wang et al. 2024, arXiv 2405.19547).

    There (negCLIPLoss, equation 2): the mean over K random batches that hold the pair of
    cos - temperature / 2 * (LSE over the batch's texts + LSE over its images), each of cosine / temperature. Here the
    batches are drawn once and kept, and each pair joins each of them as one more: so the score is pointwise, and a pool
    that grows changes none. A pair that is in a batch already does not join it twice.
    """

    name: ClassVar[str] = "s_clip_loss"
    images_KME: Float32
    texts_KME: Float32
    keys_KM: NDArray[np.uint64]
    temperature: float

    def __call__(self, images_BE: Float32, texts_BE: Float32, keys_B: NDArray[np.uint64]) -> Float32:
        cosines_B = (images_BE * texts_BE).sum(axis=1)
        penalties_B = np.zeros_like(cosines_B)
        for images_ME, texts_ME, keys_M in zip(self.images_KME, self.texts_KME, self.keys_KM, strict=True):
            own_B = np.where(np.isin(keys_B, keys_M), np.float32(-np.inf), cosines_B / np.float32(self.temperature))
            for side_BE, other_ME in ((images_BE, texts_ME), (texts_BE, images_ME)):
                penalties_B += self._log_sum_exp(products(side_BE, other_ME), own_B)
        scores_B: Float32 = cosines_B - np.float32(self.temperature / 2 / len(self.keys_KM)) * penalties_B
        return scores_B

    def _log_sum_exp(self, cosines_BM: Float32, own_B: Float32) -> Float32:
        logits_BM = cosines_BM / np.float32(self.temperature)
        top_B = np.maximum(logits_BM.max(axis=1), own_B)
        sums_B = np.exp(logits_BM - top_B[:, None]).sum(axis=1) + np.exp(own_B - top_B)
        logs_B: Float32 = top_B + np.log(sums_B)
        return logs_B


@dataclass(frozen=True)
class NormSim2:
    """Similarity of the image to a target set, p = 2: sqrt(sum over targets of cosine^2) (arXiv 2405.19547, eq. 4).

    `moment_EE`, the sum of the targets' outer products, is all of the set that it needs: exact at any size.
    """

    name: ClassVar[str] = "norm_sim_2"
    moment_EE: Float32

    def __call__(self, images_BE: Float32, texts_BE: Float32, keys_B: NDArray[np.uint64]) -> Float32:
        squares_B = (products(images_BE, self.moment_EE) * images_BE).sum(axis=1)
        scores_B: Float32 = np.sqrt(np.maximum(squares_B, 0))
        return scores_B


@dataclass(frozen=True)
class NormSimInf:
    """As `NormSim2`, p = infinity: the largest absolute cosine to a target."""

    name: ClassVar[str] = "norm_sim_inf"
    targets_TE: Float32

    def __call__(self, images_BE: Float32, texts_BE: Float32, keys_B: NDArray[np.uint64]) -> Float32:
        scores_B: Float32 = np.abs(products(images_BE, self.targets_TE)).max(axis=1)
        return scores_B


@dataclass(frozen=True)
class Binary:
    """Logit of a linear probe: good pairs against pool (arXiv 2309.17425, section 4.1, binary filters)."""

    name: ClassVar[str] = "binary"
    weight_D: Float32
    """Of the image's dimensions, and after them, where it reads both, of the text's."""
    bias: float
    reads: Literal["image", "image_text"]

    def __call__(self, images_BE: Float32, texts_BE: Float32, keys_B: NDArray[np.uint64]) -> Float32:
        features_BD = images_BE if self.reads == "image" else np.concatenate([images_BE, texts_BE], axis=1)
        scores_B: Float32 = products(features_BD, self.weight_D[None])[:, 0] + np.float32(self.bias)
        return scores_B


@dataclass(frozen=True)
class Clusters:
    """1 where the cluster centre nearest to the image is also nearest to some target, else 0: DataComp's image_based.

    (Gadre et al. 2023, arXiv 2304.14108, section 3.2 and appendix; nearest by dot product, the first of equals.)
    """

    name: ClassVar[str] = "clusters"
    centres_CE: Float32
    is_target_C: NDArray[np.uint8]

    def __call__(self, images_BE: Float32, texts_BE: Float32, keys_B: NDArray[np.uint64]) -> Float32:
        nearest_B = products(images_BE, self.centres_CE).argmax(axis=1)
        is_bad_B = np.isnan(images_BE).any(axis=1)
        scores_B: Float32 = np.where(is_bad_B, np.float32(np.nan), self.is_target_C[nearest_B].astype(np.float32))
        return scores_B


FORMULAS: dict[str, type[Any]] = {
    kind.name: kind for kind in (DfnCosine, SClipLoss, NormSim2, NormSimInf, Binary, Clusters)
}


def parts_of(formula: Formula) -> tuple[dict[str, NDArray[Any]], dict[str, float | str]]:
    """(tensors, parameters) of a formula."""
    values = {field.name: getattr(formula, field.name) for field in fields(formula)}  # type: ignore[arg-type]
    tensors = {name: np.ascontiguousarray(v) for name, v in values.items() if isinstance(v, np.ndarray)}
    return tensors, {name: value for name, value in values.items() if name not in tensors}


def made(name: str, tensors: Mapping[str, NDArray[Any]], parameters: Mapping[str, float | str]) -> Formula:
    """The formula of that name, from its parts."""
    formula: Formula = FORMULAS[name](**tensors, **parameters)
    return formula


def pair_keys(images_NI: NDArray[np.float16], texts_NT: NDArray[np.float16]) -> NDArray[np.uint64]:
    """A number for each pair of stored vectors: by it a pair is known again in a reference batch. uint64, shape N.

    A multilinear hash of the float16 bits modulo 2^64, with fixed odd multipliers.
    """
    bits_ND = np.concatenate([np.asarray(side).astype("<f2").view("<u2") for side in (images_NI, texts_NT)], axis=1)
    multipliers_D = np.random.default_rng(0).integers(0, 1 << 63, bits_ND.shape[1], dtype=np.uint64) * 2 + 1
    keys_N: NDArray[np.uint64] = np.einsum("nd,d->n", bits_ND.astype(np.uint64), multipliers_D)
    return keys_N
