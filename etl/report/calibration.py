"""The page of `dfn evalset calibrate`: what thresholds for leaks find, what they flag, and the pictures to judge by.

Plain data in, one HTML page out. `calibration.html.j2` holds the page; `calibration_facts.py` gathers its pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etl.report import page
from etl.report.page import percent

if TYPE_CHECKING:
    from etl.dedup.calibrate import Calibration, Nearest

SECTIONS = [("summary", "Summary"), ("found", "Copies found"), ("pool", "The pool"), ("thresholds", "Other thresholds"),
            ("limits", "Limits")]  # fmt: skip
NAMES = {"phash": "hash", "semantic": "vector", "semantic_phash": "hash and vector", "any": "any of them"}
LIMITS = (
    "Edits are made one at a time; what is copied on the web has often been through several.",
    "Evaluation pictures are looked for as edited, too, in some of the ways in which copies were made to be counted, "
    "though not as strongly: of what is done to pictures in other ways nothing is known.",
    "A picture of the pool that is flagged may be a true copy: the pictures are for that.",
    "Pictures that are unsafe, show a face, opted out or are on a blocklist are not shown.",
)


@dataclass(frozen=True)
class Beside:
    """A picture of the pool and the evaluation picture that is nearest to it by hash and vector."""

    pool_png: bytes | None
    evaluation_png: bytes | None
    eval_set: str
    flagged_by: str
    nearest: Nearest


def render(found: Calibration, groups: Mapping[str, Sequence[Beside]]) -> str:
    mean, methods = found.mean, [*found.limits, "any"]
    tiles = [
        (percent(mean["any"]), "of edited copies are found, over all edits"),
        (percent(found.flags["any"]), "of the pool's pictures are flagged"),
        (f"{found.num_originals:,}", "evaluation pictures were edited"),
        (f"{len(found.pool.rows):,}", f"pictures of {found.pool.name} were held against {found.num_references:,}"),
    ]
    return page.render(
        "calibration.html.j2",
        kind="Thresholds for leaks",
        title=f"{found.pool.name}: what is found",
        intro="Evaluation pictures edited in known ways, and pictures of the pool, by the thresholds of the config.",
        sections=SECTIONS,
        lede=f"{tiles[0][0]} of edited copies are found; {tiles[1][0]} of the pool is flagged.",
        tiles=tiles,
        names=NAMES,
        methods=methods,
        heads=[NAMES[method] for method in methods],
        c=found,
        mean=mean,
        groups=groups,
        limits=LIMITS,
    )
