"""The selection stage's cut and draw on arrays: the same pairs, without Spark. Touches nothing.

`tests/test_evidence.py` holds both against the stage; the suite does too, on one arm of its Table 1.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import Indices, Uids, u8_to_uid


def num_kept(fraction: float, num_eligible: int) -> int:
    """`etl.stages.selection.Keep.num_kept`: rounded down, once binary fractions are mended."""
    return int(np.floor(round(fraction * num_eligible, 6)))


def top(ranks_N: NDArray[np.floating[Any]], uids_N: Uids, fraction: float, is_eligible_N: NDArray[np.bool_]) -> Indices:
    """Positions, rising, of the share of the eligible pairs ranked first: by rank descending, then uid ascending.

    A pair whose rank is not finite is not eligible, as in the stage.
    """
    eligible = np.flatnonzero(is_eligible_N & np.isfinite(ranks_N))
    wanted = num_kept(fraction, len(eligible))
    order = np.lexsort((uids_N["f1"][eligible], uids_N["f0"][eligible], -ranks_N[eligible].astype(np.float64)))
    return np.sort(eligible[order[:wanted]])


def draw(uids_N: Uids, seed: int) -> NDArray[np.float64]:
    """`etl.selection.judging.draw`: a number in [0, 1) that follows from seed and uid alone, shape N."""
    digits = [hashlib.md5(f"{seed}:{uid}".encode()).hexdigest()[:13] for uid in u8_to_uid(uids_N)]  # noqa: S324
    return np.array([int(digit, 16) for digit in digits], np.float64) / 16.0**13
