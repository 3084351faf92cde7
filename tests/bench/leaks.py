"""Part `leaks`: which edited copies of evaluation pictures are found. `make bench PART=leaks`.

Originals are the demo's evaluation and development sets: real clip art, drawings and photos, as PNG of at most 256 px.
One half of them, with edited copies and with pictures of the demo's pool (clip art of the same collection, icons),
calibrates each method's threshold: the largest at which at most 1 in 200 of the pool has an original so near (some are
true copies: the collections share pictures). The other half, with its own copies and pictures of the pool, is what is
reported, with the stages' defaults too:

    recall              of the copies, those whose own original is within the threshold, by kind and strength of edit
    false positives     of the pool's pictures, those that have any original within it; some may be true copies
    precision           at as many copies as pictures of the pool: recall / (recall + false positives)

for the perceptual hash, the encoder's vectors (the demo's), the joint distance of both, and any of the three; and for
the hashes of `imagehash` on the same files, by the same rule. The stages' defaults follow, and what they find where
originals are looked for as edited, too (`models.edits.VARIANTS`, of other strengths): as all of these, with each one
alone left out, and with other joint distances.
About 25 minutes of a core; --quick: 300 originals, four minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image

from etl.config import load
from etl.encode.encoders import encoder_folder
from etl.samples.corpora import CorpusSpec, build
from etl.stages import decontaminate, decontaminate_semantic
from models import calibration
from models.calibration import ANY, METHODS, Looks, largest_threshold, look, of_copies, to_closest
from models.edits import EDITS, VARIANTS, png
from models.encoder import Encoder
from models.images import ImageError, decode_rgb
from tests.bench.measure import OUT, Ratio, report, say
from tests.bench.measure import load as load_average

SIDE_PX = 256
MAX_PIXELS = 20_000_000
"""Larger pictures are left out: decoding the few of them would take most of the time."""
MAX_FALSE = 5e-3
"""Of the pool, in the half that calibrates."""
ORIGINALS, POOL = ("openclipart_heldout", "art4apps", "tuxpaint"), ("openclipart", "iconify_small")
PEERS = {"imagehash.phash": imagehash.phash, "imagehash.dhash": imagehash.dhash}
"""64 bits each. The first is the one in `pairs`, by whatever order Pillow resizes in."""
SWEEP = (0.0, 0.25, 0.28, 0.31, 0.34, 0.37, 0.4, 0.43)
"""Joint distances, beside the other defaults: what they cost and find."""
SURE = ("copy", "recompress")
"""Kinds of which all should be found; where not, the report says so."""


@dataclass(frozen=True)
class Seen:
    """What the methods see of N files."""

    looks: Looks
    peers_N: dict[str, Any]
    """Peer -> uint64."""


def see(files: Sequence[bytes], encoder: Encoder) -> Seen:
    images = [Image.open(io.BytesIO(data)) for data in files]
    peers = {name: np.array([int(str(of(image)), 16) for image in images], np.uint64) for name, of in PEERS.items()}
    return Seen(look(files, encoder), peers)


@dataclass(frozen=True)
class Distances:
    """Of one half of the originals to what was made of them, and to the pool."""

    own: dict[tuple[str, str], dict[str, Any]]
    """(kind, strength) -> method -> of each original's copy to it."""
    pool: dict[str, Any]
    """Method -> of each picture of the pool to the nearest original."""


@dataclass(frozen=True)
class Half:
    known: Seen
    made: dict[tuple[str, str], Seen]
    """(kind, strength) -> the copies."""
    pool: Seen
    variants: dict[str, Looks]
    """As what originals are looked for, too."""

    def distances(self, edits: Sequence[str] = ()) -> Distances:
        """Where originals are looked for as these edits, too."""
        known, peers_of = self.known.looks, self.known.peers_N
        copies = [self.variants[name] for name in edits]
        own = {}
        for edit, made in self.made.items():
            peers = {name: np.bitwise_count(made.peers_N[name] ^ peers_of[name]) for name in PEERS}
            own[edit] = {**of_copies(made.looks, known, copies), **peers}
        theirs = Looks(*(np.concatenate(side) for side in zip(known, *copies, strict=True)))
        is_edited_M = np.arange(len(theirs.hashes_N)) >= len(known.hashes_N)
        nearest = {n: np.bitwise_count(self.pool.peers_N[n][:, None] ^ peers_of[n]).min(axis=1) for n in PEERS}
        return Distances(own, {**to_closest(self.pool.looks, theirs, is_edited_M)[0], **nearest})


def half(originals: Sequence[bytes], pool: Sequence[bytes], encoder: Encoder) -> Half:
    known, pictures = see(originals, encoder), [decode_rgb(data) for data in originals]
    made, variants = {("copy", "exact"): known}, {}
    for kind, strength, edit in ((k, s, e) for k, some in EDITS.items() for s, e in some.items()):
        made[kind, strength] = see([edit(picture) for picture in pictures], encoder)
        say(f"{kind} {strength}")
    for name, edit in VARIANTS.items():
        variants[name] = look([edit(picture) for picture in pictures], encoder)
        say(f"looked for as {name}")
    return Half(known, made, see(pool, encoder), variants)


def thresholds(calibrating: Distances) -> dict[str, float]:
    """Method -> the largest distance at which at most MAX_FALSE of the pool is flagged."""
    fine = ("semantic", "semantic_phash")
    return {
        method: largest_threshold(nearest_N, MAX_FALSE, is_whole=method not in fine)
        for method, nearest_N in calibrating.pool.items()
    }


def shares(found: dict[str, Any], limits: dict[str, float]) -> dict[str, float]:
    """Method -> the share of files that it flags; `any`: one of the stages' three."""
    peers = {name: float((found[name] <= limits[name]).mean()) for name in PEERS if name in limits}
    return {**calibration.shares(found, limits), **peers}


def study(reported: Distances, limits: dict[str, float]) -> dict[str, Any]:
    recall = {edit: shares(found, limits) for edit, found in reported.own.items()}
    methods = list(next(iter(recall.values())))
    mean = {m: float(np.mean([found[m] for found in recall.values()])) for m in methods}
    false = shares(reported.pool, limits)
    precision = {m: mean[m] / (mean[m] + false[m]) if mean[m] else 0.0 for m in methods}
    return {"thresholds": limits, "recall": recall, "mean": mean, "false": false, "precision": precision,
            "num_originals": len(next(iter(reported.own.values()))["phash"]),
            "num_pool": len(reported.pool["phash"])}  # fmt: skip


def sweep(reported: Distances) -> list[dict[str, Any]]:
    """Of each of SWEEP: recall by any of the three methods, of SURE and of all edits; share of the pool flagged."""
    rows = []
    for distance in SWEEP:
        found = study(reported, {**defaults(), "semantic_phash": distance})
        sure = {f"{k} {s}": r["any"] for (k, s), r in found["recall"].items() if k in SURE}
        rows.append({"distance": distance, "sure": sure, "mean": found["mean"]["any"], "false": found["false"]["any"]})
    return rows


def defaults() -> dict[str, float]:
    """Method -> the threshold that its stage has."""
    by_vector = decontaminate_semantic.Config()
    return {"phash": decontaminate.Config().max_distance_bits, "semantic": by_vector.max_distance,
            "semantic_phash": by_vector.max_joint_distance}  # fmt: skip


def pictures(source: str, number: int | None = None) -> list[bytes]:
    """PNG of at most SIDE_PX, of each picture of a corpus that can be decoded; no two of the same pixels."""
    return list(islice(_pictures(source), number))


def _pictures(source: str) -> Iterator[bytes]:
    seen = set()
    for shard in sorted(build(source, CorpusSpec(sources=(source,)), say=say).glob("*.tar")):
        for name, data in images_in(shard):
            try:
                image = decode_rgb(data, max_pixels=MAX_PIXELS, smallest_px=SIDE_PX)
            except ImageError as error:
                say(f"{name}: {error}")
                continue
            image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
            if (made := png(image)) not in seen:
                seen.add(made)
                yield made


def images_in(shard: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(shard) as tar:
        for member in tar:
            if Path(member.name).suffix in (".png", ".jpg"):
                yield member.name, tar.extractfile(member).read()  # type: ignore[union-attr]


def show(found: dict[str, Any]) -> None:
    columns = [*METHODS, ANY, *PEERS]
    say(f"{found['num_originals']} originals and {found['num_pool']} pictures of the pool, not those that calibrated")
    print(f"{'':<26}" + "".join(f"{c:>16}" for c in columns))
    limits = found["thresholds"]
    print(f"{'threshold':<26}" + "".join(f"{limits.get(c, ''):>16}" for c in columns))
    for (kind, strength), recall in found["recall"].items():
        print(f"{kind + ' ' + strength:<26}" + "".join(f"{recall[c]:>16.1%}" for c in columns))
    for name in ("mean", "false", "precision"):
        print(f"{name:<26}" + "".join(f"{found[name][c]:>16.2%}" for c in columns))
    sure = {k: r for k, r in found["recall"].items() if k[0] in SURE}
    short = [f"{k} {s} {r['any']:.2%}" for (k, s), r in sure.items() if r["any"] < 1]
    print("copies and recompressions: " + ("all found" if not short else "NOT all found: " + ", ".join(short)))


def ratios(found: dict[str, Any]) -> list[Ratio]:
    """Rows of the report: ours is any of the three methods, theirs `imagehash`'s phash alone."""
    rows = []
    for (kind, strength), recall in found["recall"].items():
        ours, theirs = recall[ANY], recall["imagehash.phash"]
        note = ", ".join(f"{name} {recall[name]:.1%}" for name in METHODS)
        ratio = ours / theirs if theirs else None
        goal = ">= 1" if kind in SURE else "-"
        rows.append(Ratio(f"{kind} {strength}", ours, theirs, "recall", ratio, goal, None, load_average(), note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.leaks", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="300 originals: to see that all runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    encoder = Encoder.load(encoder_folder(load(["demo"]).encoder, say)[1], device=given.device)
    originals, pool = (
        [data for source in sources for data in pictures(source, 100 if given.quick else most)]
        for sources, most in ((ORIGINALS, None), (POOL, 1500))
    )
    say(f"{len(originals)} originals, {len(pool)} pictures of the pool")
    halves = [half(originals[n::2], pool[n::2], encoder) for n in (0, 1)]
    calibrating, reported = (one.distances() for one in halves)
    calibrated = thresholds(calibrating)
    limits = {**calibrated, **defaults()}
    found = study(reported, calibrated)
    name = "leaks-quick" if given.quick else "leaks"
    report(name, ratios(found))
    show(found)
    say("with the defaults of the stages, originals as they are:")
    show(study(reported, limits))
    say("with the defaults of the stages, originals also as edited:")
    all_edits = [one.distances(tuple(VARIANTS)) for one in halves]
    by_default = study(all_edits[1], limits)
    show(by_default)
    for name_of, one, with_edits in zip(("calibrating", "reported"), halves, all_edits, strict=True):
        say(f"what any method finds by the defaults, of the half {name_of}:")
        tell("as they are", study(one.distances(), limits))
        tell("also as edited", study(with_edits, limits))
        for edit in VARIANTS:
            tell(f"without {edit}", study(one.distances([e for e in VARIANTS if e != edit]), limits))
        say(f"by other joint distances, also as edited, of the half {name_of}: what is found")
        for row in (swept := sweep(with_edits)):
            sure = ", ".join(f"{edit} {share:.2%}" for edit, share in row["sure"].items())
            print(f"{row['distance']:>6}  mean {row['mean']:.2%}, false {row['false']:.2%}; {sure}")
    table = {
        **found,
        "sweep": swept,
        "recall": [{"kind": k, "strength": s, **r} for (k, s), r in found["recall"].items()],
        "defaults": [{"kind": k, "strength": s, **r} for (k, s), r in by_default["recall"].items()],
    }
    (OUT / f"{name}-table.json").write_text(json.dumps(table, indent=1))


def tell(name: str, found: dict[str, Any]) -> None:
    sure = [recall[ANY] for (kind, _), recall in found["recall"].items() if kind in SURE]
    print(f"{name:>24}: mean {found['mean'][ANY]:.2%}, false {found['false'][ANY]:.2%}, "
          f"copies and recompressions at least {min(sure):.2%}")  # fmt: skip


if __name__ == "__main__":
    main()
