"""What the thresholds for leaks find with this project's encoder, and what others would: `dfn evalset calibrate`.

Evaluation pictures are edited in known ways (`models/edits.py`) and looked at as pictures of a pool are; pictures drawn
from the pool are held against all evaluation pictures by what their tables say. On the driver. Reads tables and shards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as F

from etl.dedup import evalsets
from etl.project import Project
from etl.recipe import edits_of
from etl.selection.judging import draw
from etl.shards import RangeReader, ShardError
from etl.stage import UserError
from etl.storage import folder_of
from etl.store import Store
from etl.tables import EMBEDDINGS, PAIRS, VARIANTS

if TYPE_CHECKING:  # torch
    from models.calibration import Cost, Distances, Looks

SIDE_PX = 512
"""Larger evaluation pictures are made smaller before they are edited."""
MAX_LOOKS = 50_000
"""Of a set that the pool is held against, its pictures drawn, each with its edited copies: 50 MB of vectors of 512."""


@dataclass(frozen=True)
class Drawn:
    """Pictures of a dataset, in the order in which they are drawn, and after them their edited copies."""

    name: str
    root: str
    """What `shard` is relative to."""
    rows: pa.Table
    """uid, shard, offset_bytes, size_bytes, phash, image_embedding, edit: '' of a picture as it is."""
    num_pictures: int

    @cached_property
    def looks(self) -> Looks:
        from models.calibration import Looks

        vectors = np.frombuffer(b"".join(self.rows.column("image_embedding").to_pylist()), "<f2")
        hashes_N = self.rows.column("phash").to_numpy().view(np.uint64)
        return Looks(vectors.reshape(len(self.rows), -1), hashes_N)

    def read(self, number: int) -> bytes | None:
        """The file of a row's picture, not edited; None where it cannot be read."""
        (row,) = self.rows.select(["shard", "offset_bytes", "size_bytes"]).slice(number, 1).to_pylist()
        with RangeReader() as reader:
            try:
                return reader.read(f"{self.root}/{row['shard']}", row["offset_bytes"], row["size_bytes"])
            except ShardError:
                return None


class Nearest(NamedTuple):
    """A picture of the pool, and the evaluation picture that is nearest to it, itself or as edited, by vector and hash
    together."""

    number: int
    """Of the pool's drawn pictures."""
    of: int
    """Of `sets`."""
    of_number: int
    """Of the set's rows."""
    edit: str
    """Of that evaluation picture; '' where it is as it is."""
    bits: int
    apart: float
    """1 - cosine."""
    joint: float
    flagged_by: tuple[str, ...]
    """By whatever evaluation picture."""


@dataclass(frozen=True)
class Calibration:
    limits: Mapping[str, float]
    """Method -> its threshold in the config; only of those that are on."""
    recall: Mapping[str, Mapping[str, float]]
    """Edit -> method, or `any` of those that are on -> the share of edited pictures that it finds."""
    flags: Mapping[str, float]
    """Method or `any` -> the share of the pool's pictures that it flags."""
    costs: Sequence[Cost]
    nearest: Sequence[Nearest]
    """All of the pool's pictures, the nearest first."""
    pool: Drawn
    sets: Sequence[Drawn]
    num_originals: int
    edits: tuple[str, ...]
    """As which evaluation pictures are looked for, beside as they are."""

    @property
    def mean(self) -> dict[str, float]:
        """Method or `any` -> recall over all edits."""
        return {method: float(np.mean([found[method] for found in self.recall.values()])) for method in self.flags}

    @property
    def num_references(self) -> int:
        return sum(one.num_pictures for one in self.sets)

    def told(self) -> dict[str, Any]:
        """For the terminal, or as JSON."""
        return {
            "pictures": {"edited": self.num_originals, "evaluation": self.num_references, "pool": len(self.pool.rows)},
            "looked_for_as": list(self.edits),
            "thresholds": dict(self.limits),
            "found": {edit: _rounded(found) for edit, found in (*self.recall.items(), ("all", self.mean))},
            "flagged_of_pool": _rounded(self.flags),
            "other_thresholds": [_rounded(cost._asdict()) for cost in self.costs],
        }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def calibrate(project: Project, pool: str, num_originals: int, num_pool: int, device: str = "cpu") -> Calibration:
    """Of `num_originals` evaluation pictures and `num_pool` pictures of the pool, both drawn by their uids.

    Raises:
        UserError: vectors that a release came with; no evaluation set, or no vectors; no such device; no picture that
            can be read.
    """
    from models.calibration import look, of_copies
    from models.edits import EDITS, VARIANTS, png
    from models.encoder import Encoder

    if project.config.encoder.published:
        published = project.config.encoder.published
        raise UserError("evalset calibrate: wanted an encoder that can look at edited pictures; "
                        f"found encoder.published: {published}; fix: one by name or folder")  # fmt: skip
    ours = _drawn(project, pool, project.store, num_pool)
    sets = [one for one in references(project) if len(one.rows)]
    if not len(ours.rows) or not sets:
        lacks = f"{len(ours.rows)} of {pool}, and {len(sets)} evaluation sets with any"
        raise UserError(f"evalset calibrate: wanted pictures with vectors by this encoder; found {lacks}; "
                        "fix: dfn run, with an evaluation set in the config or registered")  # fmt: skip
    _check_device(device)
    encoder = Encoder.load(project.encoder[1], device=device, num_threads=os.cpu_count() or 1)
    originals = _originals(sets, num_originals)
    known, found = look([png(picture) for picture in originals], encoder), {}
    copies = [look([VARIANTS[name](picture) for picture in originals], encoder) for name in edits_of(project.config)]
    edits = {f"{kind} {strength}": edit for kind, some in EDITS.items() for strength, edit in some.items()}
    for name, edit in edits.items():
        made = look([edit(picture) for picture in originals], encoder)
        found[name] = of_copies(made, known, copies)
        project.say(f"calibrate: {len(found)} of {len(edits)} edits of {len(originals)} pictures, {name}")
    return study(found, ours, sets, limits_of(project), edits_of(project.config))


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).split(". ")[0]
        raise UserError(f"--device: wanted cpu, or a GPU that torch can use; found {device}: {why}") from None


def limits_of(project: Project) -> dict[str, float]:
    """Method -> its threshold, of those that are on."""
    by_hash, by_vector = project.config.stages.decontaminate, project.config.stages.decontaminate_semantic  # type: ignore[attr-defined]
    found = {"phash": float(by_hash.max_distance_bits)} if "phash" in by_hash.methods else {}
    if by_vector.is_on:
        found["semantic"] = by_vector.max_distance
        found |= {"semantic_phash": by_vector.max_joint_distance} if by_vector.max_joint_distance else {}
    return found


def references(project: Project) -> list[Drawn]:
    """Of the project's evaluation and development sets, and of the registered ones that it uses."""
    own = project.config.of_kind("eval", "dev")
    shared, registered = evalsets.store_of(project), evalsets.used(project).items()
    number = MAX_LOOKS // (1 + len(edits_of(project.config)))
    return [
        *(_drawn(project, name, project.store, number) for name in own),
        *(_drawn(project, name, shared, number, source) for name, source in registered),
    ]


def _drawn(project: Project, name: str, store: Store, number: int, source: str | None = None) -> Drawn:
    record, _ = project.encoder
    shards = source or project.sources[name].shards
    if not shards or not store.exists(name, PAIRS) or not store.exists(name, EMBEDDINGS):
        return Drawn(name, "", pa.table({}), 0)
    where = {"encoder": record.name, "encoder_version": record.version}
    vectors = store.read(name, EMBEDDINGS, where=where).where("status = 'ok' AND image_embedding IS NOT NULL")
    pairs = store.read(name, PAIRS).where("status = 'ok' AND phash IS NOT NULL")
    pairs = pairs.select("uid", "shard", "offset_bytes", "size_bytes", "phash")
    pairs = pairs.orderBy(draw(0), "uid").limit(number)
    found = vectors.select("uid", "image_embedding").join(F.broadcast(pairs), on="uid", how="inner")
    pictures = found.withColumn("edit", F.lit("")).orderBy(draw(0), "uid").toArrow()
    edits = edits_of(project.config)
    if not edits or not store.exists(name, VARIANTS):  # a pool has none
        return Drawn(name, folder_of(shards), pictures, len(pictures))
    looks = store.read(name, VARIANTS, where=where).where("status = 'ok'").select("uid", F.inline("looks"))
    looks = looks.where(F.col("edit").isin(*edits))
    copies = looks.join(F.broadcast(pairs.drop("phash")), on="uid", how="inner").select(*pictures.column_names)
    rows = pa.concat_tables([pictures, copies.orderBy("edit", "uid").toArrow()], promote_options="permissive")
    return Drawn(name, folder_of(shards), rows, len(pictures))


def _originals(sets: Sequence[Drawn], number: int) -> list[Any]:
    """Pictures, by turns of each set, until there are enough."""
    from models.images import ImageError, decode_rgb

    found: list[Any] = []
    turns = [(one, place) for place in range(max(one.num_pictures for one in sets)) for one in sets]
    for one, place in turns:
        if len(found) == number:
            break
        data = one.read(place) if place < one.num_pictures else None
        if data is None:
            continue
        try:
            picture = decode_rgb(data, smallest_px=SIDE_PX)
        except ImageError:
            continue
        picture.thumbnail((SIDE_PX, SIDE_PX))
        found.append(picture)
    if not found:
        raise UserError("evalset calibrate: wanted evaluation pictures that can be read; found none; fix: their shards")
    return found


def study(
    copies: Mapping[str, Distances],
    ours: Drawn,
    sets: Sequence[Drawn],
    limits: Mapping[str, float],
    edits: tuple[str, ...],
) -> Calibration:
    """`copies`: edit -> of each edited picture to its original. `sets`: none of them empty."""
    from models.calibration import METHODS, Looks, costs, flagged, of_pairs, shares, to_closest

    theirs = Looks(*(np.concatenate(side) for side in zip(*(one.looks for one in sets), strict=True)))
    places = [(of, number) for of, one in enumerate(sets) for number in range(len(one.rows))]
    as_edit_M = [edit for one in sets for edit in one.rows.column("edit").to_pylist()]
    closest, nearest_N = to_closest(ours.looks, theirs, np.array([edit != "" for edit in as_edit_M]))
    by, at = flagged(closest, limits), of_pairs(ours.looks, theirs, np.arange(len(ours.rows)), nearest_N)
    phash, semantic, joint = METHODS
    nearest = [
        Nearest(n, places[m][0], places[m][1], as_edit_M[m], int(at[phash][n]), float(at[semantic][n]),
                float(at[joint][n]), tuple(method for method in limits if by[method][n]))
        for n, m in enumerate(nearest_N.tolist())
    ]  # fmt: skip
    return Calibration(
        limits=limits,
        recall={edit: shares(found, limits) for edit, found in copies.items()},
        flags=shares(closest, limits),
        costs=costs(list(copies.values()), closest),
        nearest=sorted(nearest, key=lambda one: (one.joint, one.number)),
        pool=ours,
        sets=sets,
        num_originals=len(next(iter(copies.values()))[phash]),
        edits=edits,
    )
