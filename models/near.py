"""Near-duplicates among vectors: every pair whose cosine is at least a bound, found exactly, in blocks. torch, numpy.

First in few dimensions: the directions that hold most of the vectors, and the length of what is left of each as one
more. There a cosine is at least that in all dimensions (Cauchy and Schwarz), and where it is below the bound, which it
is for nearly all pairs, the rest need not be multiplied.

A block of vectors is rounded to what the device multiplies fastest, and what rounding took from them is measured: by
so much a product can be too small. Pairs above the bound less that are looked at again in float64: which are found
depends on no block, order, device or direction. (faiss' IndexFlatIP.range_search has float32 alone, all dimensions, and
both halves of a product that is symmetric.)

Dimensions: N, M vectors of the two sides, D features, K directions, W features of a shortened vector, A, B rows of a
block, P pairs, S sampled vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor

Vectors = NDArray[Any]
Indices = NDArray[np.int64]
Form = Literal["int8", "bf16", "fp32"]
"""What blocks are multiplied in. Only speed depends on it."""

PRODUCTS = {"int8": torch.int32, "bf16": torch.bfloat16, "fp32": torch.float32}
BLOCK_ROWS = 1024
"""Of both sides: 4 MB of products, which caches hold. With 4,096 int8 loses half of its pace."""
MANY = 50_000
"""Candidates of a block from which on a float32 product of the whole block is cheaper than a look at each."""
AT_ONCE = 4096
"""Pairs whose vectors are gathered together."""
SHORT = (64, 128, 256)
"""Features of shortened vectors, tried in this order."""
LEFT = 16
"""Of these for the length of what is left, in equal shares: one large feature would coarsen what int8 resolves."""
SAMPLED = 2048
"""Vectors whose directions are taken, or whose pairs tell whether a shortened form leaves few candidates."""
FEW = 1e-4
"""Candidates among pairs: 100 of a block, a look at which costs a twentieth of its product."""
MAX_PAIRS = 4_000_000
"""Of those that `forest` holds before it folds them: 100 MB."""


def good_form(device: str = "cpu") -> Form:
    """bf16 on GPUs that multiply it; int8 on CPUs that sum its products in one instruction (VNNI: those with bf16, and
    older ones): exact sums, three times as many a second as float32; else fp32. Reads /proc/cpuinfo."""
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return "int8" if flags & {"avx512_vnni", "avx_vnni", "amx_int8"} else "fp32"


@dataclass(frozen=True)
class _Block:
    """Some of the vectors, shortened or not, and rounded: unit vectors are `scale` times `values_BW`, but for at most
    `lost` in length."""

    start: int
    vectors_BD: Vectors
    """As they were given."""
    values_BW: Tensor
    scale: float
    lost: float

    @classmethod
    def of(cls, start: int, vectors_BD: Vectors, form: Form, device: str, basis_DK: Tensor | None) -> _Block:
        units_BD, scale = _shortened(_units(vectors_BD).to(device), basis_DK), 1.0
        if form == "int8":
            if units_BD.shape[1] == 1:  # of one column torch 2.10's _int_mm makes wrong products
                units_BD = torch.nn.functional.pad(units_BD, (0, 1))
            scale = float(units_BD.abs().max()) / 127
            values_BW = (units_BD / scale).round().to(torch.int8)
        else:
            values_BW = units_BD.to(torch.bfloat16 if form == "bf16" else torch.float32)
        lost = float((units_BD - values_BW.float() * scale).norm(dim=1).max())
        return cls(start, vectors_BD, values_BW, scale, lost)

    def candidates(self, other: _Block, min_cosine: float, into: Tensor) -> tuple[Indices, Indices]:
        """Rows here and there of all pairs whose cosine may be at least `min_cosine`. `into`: room for the products."""
        sizes = (len(self.values_BW), len(other.values_BW))
        products_AB = into[: sizes[0] * sizes[1]].view(sizes)
        multiply = torch._int_mm if into.dtype == torch.int32 else torch.mm
        multiply(self.values_BW, other.values_BW.T, out=products_AB)
        # |xy - x'y'| <= |x - x'| |y| + |x'| |y - y'|, and |x'| <= |x| + |x - x'|, |x| = |y| = 1.
        lost = self.lost + (1 + self.lost) * other.lost + _rounding(self.vectors_BD.shape[1])
        lost += 3 * _rounding(self.vectors_BD.shape[1])  # of the directions, where they are shortened
        lost += 2**-8 if into.dtype == torch.bfloat16 else 0.0  # of the products, which are bf16 too
        bound = (min_cosine - lost) / (self.scale * other.scale)
        rows_R = (products_AB.amax(dim=1) >= bound).nonzero()[:, 0]  # few rows have any: one fast look at all
        at_P2 = (products_AB[rows_R] >= bound).nonzero()
        return rows_R[at_P2[:, 0]].cpu().numpy(), at_P2[:, 1].cpu().numpy()


def _units(vectors_BD: Vectors) -> Tensor:
    """Vectors of length 1, float32. Raises ValueError for one that has no direction."""
    vectors = torch.from_numpy(np.ascontiguousarray(vectors_BD)).float()
    norms_B1 = vectors.norm(dim=1, keepdim=True)
    if not bool((torch.isfinite(norms_B1) & (norms_B1 > 0)).all()):
        raise ValueError("wanted finite vectors that are not zero; found others; fix: those with status ok")
    units_BD: Tensor = vectors / norms_B1
    return units_BD


def _basis(
    left_ND: Vectors, right_MD: Vectors | None, min_cosine: float, form: Form, device: str
) -> Tensor | None:  # fmt: skip
    """Directions, orthonormal, for the shortest form that leaves FEW candidates; None where none does, or the vectors
    are few or short. What is found does not depend on it."""
    sides = [left_ND] if right_MD is None else [left_ND, right_MD]
    if len(sides[0]) * len(sides[-1]) < 4 * SAMPLED**2:
        return None
    drawn_SD = np.concatenate([side[:: -(-len(side) * len(sides) // SAMPLED)] for side in sides])
    # Tried on others than they are taken from, which they fit too well.
    sample_DS = _units(drawn_SD[::2]).to(device).T.double()
    found_DD = torch.linalg.eigh(sample_DS @ sample_DS.T).eigenvectors.flip(1)
    for width in (width for width in SHORT if 2 * width <= drawn_SD.shape[1]):
        num = width - LEFT
        # Turned among themselves, so that none is large: a common direction of all vectors would be.
        turn_KK = torch.linalg.qr(torch.randn(num, num, generator=torch.Generator().manual_seed(0)).double()).Q
        basis_DK: Tensor = (found_DD[:, :num] @ turn_KK.to(device)).float()
        tried = _Block.of(0, drawn_SD[1::2], form, device, basis_DK)
        into = torch.empty(len(tried.values_BW) ** 2, dtype=PRODUCTS[form], device=device)
        rows_P, cols_P = tried.candidates(tried, min_cosine, into)
        if (rows_P != cols_P).sum() <= FEW * len(into):
            return basis_DK
    return None


def _shortened(units_BD: Tensor, basis_DK: Tensor | None) -> Tensor:
    """Unit vectors in few dimensions, whose products are at least those of the given ones; as they are without basis.

    x y = Qx Qy + (x - QQx) (y - QQy) <= Qx Qy + |x - QQx| |y - QQy|.
    """
    if basis_DK is None:
        return units_BD
    heads_BK = units_BD @ basis_DK
    more = 2 * _rounding(len(basis_DK))  # so that it is no less than what is left
    left_B1 = (1 + more - (heads_BK**2).sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([heads_BK, (left_B1 / LEFT**0.5).expand(-1, LEFT)], dim=1)


def _rounding(num_dims: int) -> float:
    """By how much a float32 sum of so many products of unit vectors can be off, the vectors' own rounding with it."""
    return (num_dims + 8) * 2.0**-24


def near_pairs(
    left_ND: Vectors, right_MD: Vectors | None = None, *, min_cosine: float, block_rows: int = BLOCK_ROWS,
    form: Form | None = None, device: str = "cpu",
) -> Iterator[tuple[Indices, Indices]]:  # fmt: skip
    """All pairs of a left and a right vector whose cosine is at least `min_cosine`, a block at a time.

    Args:
        left_ND, right_MD: floats, of any length but zero. No right side: pairs among the left one, each once, i < j.
        min_cosine: as `cosines` has it.
        form: None: `good_form`.

    Returns:
        (i_P, j_P) of each pair of blocks that has any. Beside the vectors and one copy of them in `form`, memory holds
        block_rows^2 products and the pairs of that block.

    Raises:
        ValueError: a vector of zeros, or of what is no number; sides of different widths.
    """
    form = form or good_form(device)
    if right_MD is not None and right_MD.shape[1:] != left_ND.shape[1:]:
        raise ValueError(f"wanted vectors of one width; found {left_ND.shape[1]} and {right_MD.shape[1]}")
    basis_DK = _basis(left_ND, right_MD, min_cosine, form, device)
    lefts = _blocks(left_ND, block_rows, form, device, basis_DK)
    rights = lefts if right_MD is None else _blocks(right_MD, block_rows, form, device, basis_DK)
    # One room for the products of all blocks: fresh memory costs as much as the product.
    into = torch.empty(block_rows**2, dtype=PRODUCTS[form], device=device)
    for number, a in enumerate(lefts):
        for b in rights[number:] if right_MD is None else rights:
            rows_P, cols_P = a.candidates(b, min_cosine, into)
            if a is b and right_MD is None:
                is_once_P = rows_P < cols_P
                rows_P, cols_P = rows_P[is_once_P], cols_P[is_once_P]
            is_near_P = _are_near(a, b, rows_P, cols_P, min_cosine)
            if is_near_P.any():
                yield a.start + rows_P[is_near_P], b.start + cols_P[is_near_P]


def _blocks(
    vectors_ND: Vectors, block_rows: int, form: Form, device: str, basis_DK: Tensor | None
) -> list[_Block]:  # fmt: skip
    starts = range(0, len(vectors_ND), block_rows)
    return [_Block.of(start, vectors_ND[start : start + block_rows], form, device, basis_DK) for start in starts]


def _are_near(a: _Block, b: _Block, rows_P: Indices, cols_P: Indices, min_cosine: float) -> NDArray[np.bool_]:
    is_near_P, is_unsure_P = np.zeros(len(rows_P), bool), np.ones(len(rows_P), bool)
    if len(rows_P) > MANY:
        products_P = (_units(a.vectors_BD) @ _units(b.vectors_BD).T).numpy()[rows_P, cols_P]
        off = _rounding(a.vectors_BD.shape[1])
        is_near_P = products_P >= min_cosine + off
        is_unsure_P = ~is_near_P & (products_P >= min_cosine - off)
    unsure = np.flatnonzero(is_unsure_P)
    is_near_P[unsure] = cosines(a.vectors_BD, b.vectors_BD, rows_P[unsure], cols_P[unsure]) >= min_cosine
    return is_near_P


def have_direction(vectors_ND: Vectors) -> NDArray[np.bool_]:
    """Which vectors are finite and not zero: of others nothing is near."""
    return np.asarray(np.isfinite(vectors_ND).all(axis=1) & vectors_ND.any(axis=1))


def cosines(left_ND: Vectors, right_MD: Vectors, i_P: Indices, j_P: Indices) -> NDArray[np.float64]:
    """Of pairs of rows, in [-1, 1]. In float64: of float16 vectors good to 1e-13, and the same from both sides."""
    found_P = np.empty(len(i_P))
    for start in range(0, len(i_P), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        left, right = left_ND[i_P[some]].astype(np.float64), right_MD[j_P[some]].astype(np.float64)
        squares = np.einsum("pd,pd->p", left, left) * np.einsum("pd,pd->p", right, right)
        found_P[some] = np.einsum("pd,pd->p", left, right) / np.sqrt(squares)
    return np.clip(found_P, -1, 1)


def distances(left_ND: Vectors, right_MD: Vectors, i_P: Indices, j_P: Indices) -> NDArray[np.float64]:
    """1 - cosine of pairs of rows, in [0, 2], to seven decimals: of equal vectors exactly 0."""
    found_P: NDArray[np.float64] = np.round(1 - cosines(left_ND, right_MD, i_P, j_P), 7)
    return found_P


def forest(pairs: Iterable[tuple[Indices, Indices]], num_vectors: int) -> tuple[Indices, Indices]:
    """At most `num_vectors` pairs that connect what `pairs` connect: each vector with the first one of its group.

    A third of all vectors in one group is 10^11 pairs in two million: these are never all held.
    """
    held: list[tuple[Indices, Indices]] = []
    for found in pairs:
        held.append(found)
        if sum(len(i) for i, _ in held) > MAX_PAIRS:
            held = [_folded(held, num_vectors)]
    return _folded(held, num_vectors)


def _folded(held: list[tuple[Indices, Indices]], num_vectors: int) -> tuple[Indices, Indices]:
    if not held:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    i_P, j_P = (np.concatenate(side) for side in zip(*held, strict=True))
    graph = coo_array((np.ones(len(i_P), np.bool_), (i_P, j_P)), shape=(num_vectors, num_vectors))
    groups_N = connected_components(graph, directed=False)[1]
    first_G = np.full(groups_N.max() + 1, num_vectors)
    np.minimum.at(first_G, groups_N, np.arange(num_vectors))
    others = np.flatnonzero(first_G[groups_N] != np.arange(num_vectors))
    return first_G[groups_N[others]], others
