"""The known set of the self-test: real pairs, and what the pipeline must find among them. Writes shards, planted.json.

What is planted, each beside the pair that it was made from:

    contaminated  an image of an evaluation set, byte for byte
    same_bytes    a copy of the pool's own
    same_pixels   the same picture compressed anew, without loss
    jpeg          the same picture as a JPEG
    mismatched    an image of the pool under the caption of another

Who is what is in planted.json alone: in the shards nothing tells.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from etl.intake.uids import uid_of
from etl.shard_writer import ShardWriter, publish, publish_json, write_manifest

PLANTED = "planted.json"
KINDS = ("contaminated", "same_bytes", "same_pixels", "jpeg", "mismatched")
SHARE = 0.1
"""Of the pool's pairs, that each kind of copy is planted of; of mismatched ones five times that."""
JPEG_QUALITY = 90
PAIRS_PER_SHARD = 100
NEVER_TOGETHER = 7
"""A caption is exchanged for one so many places away at least: neighbours in a corpus are alike."""


@dataclass(frozen=True)
class Sample:
    image: bytes
    extension: str
    text: str
    url: str

    @property
    def uid(self) -> str:
        return uid_of(self.url, self.text)


def samples(folder: Path) -> list[Sample]:
    """Of the shards in a corpus' folder, in their order."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.rpartition(".")
                if file := tar.extractfile(member):
                    found.setdefault(key, {})[extension] = file.read()
    rows = []
    for parts in found.values():
        facts, image = json.loads(parts["json"]), next(e for e in parts if e not in ("json", "txt"))
        rows.append(Sample(parts[image], image, parts["txt"].decode(), facts["url"]))
    return rows


def plant(
    pool: Sequence[Sample], evaluation: Sequence[Sample], seed: int = 0
) -> dict[str, list[tuple[Sample, Sample]]]:
    """Kind -> (what is planted, what it was made from). `pool`: true pairs; each serves one kind at most.

    Raises:
        ValueError: too few pairs.
    """
    num = max(1, round(SHARE * len(pool)))
    if len(pool) < 40 or len(evaluation) < num:
        raise ValueError(f"wanted 40 pairs and {num} evaluation images; found {len(pool)} and {len(evaluation)}")
    order = [pool[place] for place in np.random.default_rng(seed).permutation(len(pool))]
    of_copies, rest = [order[start : start + num] for start in range(0, 3 * num, num)], order[3 * num :]
    mismatched = rest[: 5 * num]
    captions = [one.text for one in mismatched[NEVER_TOGETHER:] + mismatched[:NEVER_TOGETHER]]
    leaked = [evaluation[place] for place in np.random.default_rng(seed).permutation(len(evaluation))[:num]]
    makers = {"same_bytes": lambda s: s, "same_pixels": _compressed_anew, "jpeg": _as_jpeg}
    found = {"contaminated": [(_planted("contaminated", n, one, rest[n].text), one) for n, one in enumerate(leaked)]}
    for (kind, make), chosen in zip(makers.items(), of_copies, strict=True):
        found[kind] = [(_planted(kind, number, make(one), one.text), one) for number, one in enumerate(chosen)]
    pairs = zip(mismatched, captions, strict=True)
    found["mismatched"] = [
        (_planted("mismatched", number, one, text), one) for number, (one, text) in enumerate(pairs) if text != one.text
    ]
    return found


def write(folder: Path, pool: Sequence[Sample], planted: Mapping[str, Sequence[tuple[Sample, Sample]]]) -> None:
    """Shards in a shuffled order, and kind -> uid of what is planted -> uid of what it was made from; that last."""
    rows = [*pool, *(made for pairs in planted.values() for made, _ in pairs)]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    shards = []
    for number, part in enumerate(_parts(rows)):
        name = f"{number:05d}.tar"
        with ShardWriter(str(folder / name)) as writer:
            for key, row in enumerate(part):
                facts = {"uid": row.uid, "url": row.url, "caption": row.text}
                members = {row.extension: row.image, "txt": row.text.encode(), "json": json.dumps(facts).encode()}
                writer.add(f"{number:05d}{key:05d}", members)
            done = writer.close()
        publish(str(folder), done.temporary, name)
        shards.append({"shard": name, "num_samples": done.num_samples, "size_bytes": done.size_bytes,
                       "sha256": done.sha256})  # fmt: skip
    write_manifest(str(folder), shards, {})
    uids = {kind: {made.uid: of.uid for made, of in pairs} for kind, pairs in planted.items()}
    publish_json(folder / PLANTED, {"num_pairs": len(rows), **uids})


def _planted(kind: str, number: int, one: Sample, text: str) -> Sample:
    return Sample(one.image, one.extension, text, f"selftest:{kind}/{number}")


def _compressed_anew(one: Sample) -> Sample:
    """Other bytes of the same pixels."""
    return Sample(_encoded(one, "PNG", compress_level=1), "png", one.text, one.url)


def _as_jpeg(one: Sample) -> Sample:
    return Sample(_encoded(one, "JPEG", quality=JPEG_QUALITY), "jpg", one.text, one.url)


def _encoded(one: Sample, kind: str, **options: int) -> bytes:
    from models.images import decode_rgb

    decode_rgb(one.image).save(file := BytesIO(), kind, **options)
    return file.getvalue()


def _parts(rows: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    return (rows[start : start + PAIRS_PER_SHARD] for start in range(0, len(rows), PAIRS_PER_SHARD))
