"""Semantic duplicates against faiss: rows of part `dedup`; alone, `python -m tests.bench.semantic`.

    semantic_vs_faiss       all pairs of unit vectors of 512 dimensions whose cosine is at least .95, by models/near.py
                            in the form that is good here; against faiss' IndexFlatIP.range_search. Both must find the
                            same pairs, once faiss' are looked at again in float64
    semantic_fp32_vs_faiss  the same with blocks in float32, for machines with neither VNNI nor bf16

One thread each. faiss comes with an OpenBLAS of its own, whose kernel OPENBLAS_CORETYPE decides: the notes name it.
Vectors are random, one in a hundred with a copy at a cosine near the bound: blocks without a pair are the usual case.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import numpy as np
import torch

from models.near import Form, cosines, good_form, near_pairs
from tests.bench.measure import MissingError, Ratio, Side, against, interleaved, report, say

DIMS = 512
MIN_COSINE = 0.95
Pairs = set[tuple[int, int]]


def planted(num_vectors: int) -> np.ndarray:
    """Unit vectors, float16; the last hundredth are copies of others with noise, so that cosines are .9 to 1."""
    random = np.random.default_rng(0)
    vectors_ND = random.standard_normal((num_vectors, DIMS), np.float32)
    copies = num_vectors // 100
    vectors_ND[-copies:] = vectors_ND[:copies]
    vectors_ND[-copies:] += random.uniform(0, 0.48, (copies, 1)) * random.standard_normal((copies, DIMS))
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float16)


def ours(vectors_ND: np.ndarray, form: Form, found: dict[str, Pairs]) -> Side:
    def run() -> float:
        blocks = near_pairs(vectors_ND, min_cosine=MIN_COSINE, form=form)
        found[form] = {pair for i, j in blocks for pair in zip(i.tolist(), j.tolist(), strict=True)}
        return len(vectors_ND) ** 2 / 2

    return run


def theirs(vectors_ND: np.ndarray, found: dict[str, Pairs]) -> Side:
    """All pairs within a bound a little lower, looked at again as ours are."""

    def run() -> float:
        try:
            import faiss
        except ImportError:
            raise MissingError("faiss-cpu is not installed") from None
        faiss.omp_set_num_threads(1)
        vectors = vectors_ND.astype(np.float32)
        index = faiss.IndexFlatIP(DIMS)
        index.add(vectors)
        starts, _, others = index.range_search(vectors, MIN_COSINE - 1e-3)
        rows = np.repeat(np.arange(len(vectors)), np.diff(starts.astype(np.int64)))
        is_once = rows < others
        rows, others = rows[is_once], others[is_once]
        is_near = cosines(vectors_ND, vectors_ND, rows, others) >= MIN_COSINE
        found["faiss"] = set(zip(rows[is_near].tolist(), others[is_near].tolist(), strict=True))
        return len(vectors) ** 2 / 2

    return run


def kernel() -> str:
    """What faiss' OpenBLAS says of itself."""
    try:
        import faiss

        libraries = sorted(Path(faiss.__file__).parent.parent.glob("faiss_cpu.libs/*openblas*"))
        name = ctypes.CDLL(str(libraries[0])).openblas_get_corename
    except (ImportError, IndexError, OSError, AttributeError):
        return "a BLAS that does not tell its kernel"
    name.restype = ctypes.c_char_p
    return f"OpenBLAS kernel {name().decode()}"


def rows(*, quick: bool = False) -> list[Ratio]:
    torch.set_num_threads(1)
    vectors_ND, found, form = planted(8_000 if quick else 40_000), dict[str, Pairs](), good_form()
    sides = {form: ours(vectors_ND, form, found), "fp32": ours(vectors_ND, "fp32", found)}
    sides["faiss"] = theirs(vectors_ND, found)
    measured = interleaved(sides, repetitions=2 if quick else 5)
    for name, pairs in found.items():
        say(f"{name}: {len(pairs):,} pairs")
    if different := [name for name, pairs in found.items() if pairs != found[form]]:
        raise AssertionError(f"wanted the same pairs of all; {form} and {', '.join(different)} differ")
    note = f"{form} blocks, {len(vectors_ND):,} vectors, {len(found[form]):,} pairs, the same of all; faiss: {kernel()}"
    unit = "pairs / CPU s"
    made = [against(*measured, form, "faiss", ("semantic_vs_faiss", unit, ">= 5.5"), note)]
    if form != "fp32":
        made.append(against(*measured, "fp32", "faiss", ("semantic_fp32_vs_faiss", unit, "-")))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.semantic", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="8,000 vectors, two turns")
    given = parser.parse_args()
    report("semantic-quick" if given.quick else "semantic", rows(quick=given.quick))


if __name__ == "__main__":
    main()
