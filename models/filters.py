"""Filters: two stored vectors of a pair -> its score. numpy only, so that any CPU executor scores without torch.

A filter is heads, where it has any, and a formula (`models.formulas`) over the unit vectors that come out of them. The
DFN: with frozen towers its small CLIP is stored vectors, a linear head on each side, and the cosine.

Dimensions: N pairs, B rows of a block, I image vector, T text vector, E embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from models.exact import products
from models.formulas import DfnCosine, Formula, SClipLoss, made, pair_keys, parts_of
from models.records import FilterRecord, VectorsRecord, WeightsError, check_files, sha256_file, whole_folder

HEADS = "heads.safetensors"
TENSORS = "tensors.safetensors"
"""Those of the formula."""
BLOCK_ROWS = 256
"""Rows that are projected and scored together: what is in between stays in caches."""

Float32 = NDArray[np.float32]
Vectors16 = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Heads:
    """The trained projections. float32."""

    visual_weight: Float32
    """Shape EI."""
    visual_bias: Float32
    """Shape E."""
    text_weight: Float32
    """Shape ET."""
    log_scale: float
    """Log of the inverse temperature that the heads were trained to; no score uses it."""

    def tensors(self) -> dict[str, Float32]:
        """The names are those of the state dict of open_clip's `CustomTextCLIP`."""
        return {
            "visual.head.proj.weight": self.visual_weight,
            "visual.head.proj.bias": self.visual_bias,
            "text.proj.weight": self.text_weight,
            "logit_scale": np.array(self.log_scale, np.float32),
        }

    @classmethod
    def load(cls, path: Path) -> Self:
        tensors = load_file(path)
        return cls(
            visual_weight=tensors["visual.head.proj.weight"],
            visual_bias=tensors["visual.head.proj.bias"],
            text_weight=tensors["text.proj.weight"],
            log_scale=float(tensors["logit_scale"]),
        )


def check_vectors(vectors_ND: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which rows can be stored and scored: finite after rounding to float16, and not all zero. bool, shape N."""
    with np.errstate(over="ignore"):
        bits_ND = np.asarray(vectors_ND).astype(np.float16).view(np.uint16) & 0x7FFF  # without the sign
    largest_N = bits_ND.max(axis=1, initial=0)
    is_good_N: NDArray[np.bool_] = (largest_N > 0) & (largest_N < 0x7C00)  # infinity; NaN lies above
    return is_good_N


def by_block(project: Callable[[Float32], Float32], vectors_ND: Vectors16) -> Float32:
    """`project` over blocks of rows. A row's bits do not depend on who came with it, if those of `project` do not.

    Args:
        vectors_ND: any float; rounded to float16, which is what tables hold and heads are trained on.

    Returns:
        Unit vectors, float32; NaN where a vector is not finite or zero, before or after projecting.
    """
    blocks = []
    is_good_N = check_vectors(vectors_ND)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, max(len(vectors_ND), 1), BLOCK_ROWS):
            rows = np.asarray(vectors_ND[start : start + BLOCK_ROWS]).astype(np.float16)
            block_BE = project(rows.astype(np.float32))
            blocks.append(block_BE / np.linalg.norm(block_BE, axis=1, keepdims=True))
    units_NE = np.concatenate(blocks)
    units_NE[~is_good_N] = np.nan
    return units_NE


class Filter:
    """A scorer of stored vectors. `record` says whose vectors: scores of another encoder's mean nothing."""

    def __init__(self, record: FilterRecord, heads: Heads | None, formula: Formula | None = None) -> None:
        self.record, self.heads, self.formula = record, heads, formula or DfnCosine()

    @property
    def version(self) -> str:
        return self.record.version

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads a folder of `save_filter`.

        Raises:
            WeightsError: heads or tensors are missing, cut or altered.
        """
        record = FilterRecord.read(folder)
        wanted = {HEADS: record.weights_sha256, TENSORS: record.tensors_sha256}
        check_files(folder, {name: sha256 for name, sha256 in wanted.items() if sha256})
        heads = Heads.load(folder / HEADS) if record.weights_sha256 else None
        tensors = load_file(folder / TENSORS) if record.tensors_sha256 else {}
        return cls(record, heads, made(record.formula, tensors, record.parameters))

    def project_images(self, image_vectors_NI: Vectors16) -> Float32:
        """Unit vectors in the filter's space: float32, shape NE (NI without heads); NaN rows for unusable vectors.

        Raises:
            ValueError: another width than the record's image_dim.
        """
        self._check_width("image", image_vectors_NI, self.record.image_dim)
        heads = self.heads
        if heads is None:
            return by_block(lambda block_BI: block_BI, image_vectors_NI)
        return by_block(lambda block_BI: products(block_BI, heads.visual_weight) + heads.visual_bias, image_vectors_NI)

    def project_texts(self, text_vectors_NT: Vectors16) -> Float32:
        """As `project_images`, for text_dim."""
        self._check_width("text", text_vectors_NT, self.record.text_dim)
        heads = self.heads
        if heads is None:
            return by_block(lambda block_BT: block_BT, text_vectors_NT)
        return by_block(lambda block_BT: products(block_BT, heads.text_weight), text_vectors_NT)

    def score(self, image_vectors_NI: Vectors16, text_vectors_NT: Vectors16) -> Float32:
        """The formula's score of each pair: float32, shape N. NaN where a vector is unusable.

        Raises:
            ValueError: other widths than the record's, or another number of images than of texts.
        """
        if len(image_vectors_NI) != len(text_vectors_NT):
            raise ValueError(f"wanted a text for every image; found {len(image_vectors_NI)} and {len(text_vectors_NT)}")
        images_NE, texts_NE = self.project_images(image_vectors_NI), self.project_texts(text_vectors_NT)
        with np.errstate(over="ignore"):
            keys_N = pair_keys(np.asarray(image_vectors_NI, np.float16), np.asarray(text_vectors_NT, np.float16))
        scores_N = np.empty(len(images_NE), np.float32)
        for start in range(0, len(scores_N), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            with np.errstate(invalid="ignore", over="ignore"):
                scores_N[rows] = self.formula(images_NE[rows], texts_NE[rows], keys_N[rows])
        return scores_N

    def _check_width(self, side: str, vectors_ND: Vectors16, wanted: int) -> None:
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != wanted:
            raise ValueError(
                f"wanted {side} vectors of {wanted} dimensions, of encoder {self.record.encoder_name} "
                f"{self.record.encoder_version}; found shape {vectors_ND.shape}"
            )


def save_filter(
    out: Path,
    heads: Heads | None,
    *,
    encoder_record: VectorsRecord,
    name: str = "dfn",
    formula: Formula | None = None,
    provenance: dict[str, str] | None = None,
) -> FilterRecord:
    """Writes a filter's folder: `record.json`, `heads.safetensors` unless it has no heads, and the formula's tensors.

    Args:
        formula: default the DFN cosine.

    Raises:
        ValueError: a cosine without heads over towers that share no space, heads of other dimensions than the
            encoder's, or weights that are not finite.
    """
    formula = formula or DfnCosine()
    if heads is not None:
        _check_heads(heads, encoder_record)
    elif isinstance(formula, DfnCosine | SClipLoss) and not encoder_record.shares_space:
        raise ValueError(f"wanted heads: the towers of {encoder_record.name} share no space; fix: train a filter")
    tensors, parameters = parts_of(formula)
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError(f"wanted finite tensors for {formula.name}; found NaN or infinity")
    with whole_folder(out) as folder:
        if heads is not None:
            save_file({key: np.array(value, order="C") for key, value in heads.tensors().items()}, folder / HEADS)
        if tensors:
            save_file(tensors, folder / TENSORS)
        record = FilterRecord(
            name=name,
            formula=formula.name,
            parameters=parameters,
            provenance=provenance or {},
            encoder_name=encoder_record.name,
            encoder_version=encoder_record.version,
            image_dim=encoder_record.image_dim,
            text_dim=encoder_record.text_dim,
            embed_dim=None if heads is None else len(heads.visual_bias),
            weights_sha256=None if heads is None else sha256_file(folder / HEADS),
            tensors_sha256=sha256_file(folder / TENSORS) if tensors else None,
        )
        record.write(folder)
    return record


def _check_heads(heads: Heads, encoder_record: VectorsRecord) -> None:
    embed_dim = len(heads.visual_bias)
    wanted = ((embed_dim, encoder_record.image_dim), (embed_dim, encoder_record.text_dim))
    found = (heads.visual_weight.shape, heads.text_weight.shape)
    if wanted != found:
        raise ValueError(f"wanted heads of shapes {wanted}, for encoder {encoder_record.name}; found {found}")
    if not all(np.isfinite(tensor).all() for tensor in heads.tensors().values()):
        raise ValueError("wanted finite weights; found NaN or infinity; fix: train with a lower learning rate")


def check_encoder(filter_record: FilterRecord, encoder_record: VectorsRecord) -> None:
    """Refuses to pair a filter with towers that it was not trained on.

    Raises:
        WeightsError: the encoder versions differ.
    """
    if filter_record.encoder_version != encoder_record.version:
        raise WeightsError(
            wanted=f"encoder {filter_record.encoder_name} {filter_record.encoder_version}",
            found=f"{encoder_record.name} {encoder_record.version}",
            fix="give the encoder that the filter was trained on, or train a filter on this one",
        )
