"""What benchmarks eat: photo-like JPEGs of 512x384 (about 50 KB) and captions of about 30 tokens. The same every time.

    build/bench/data/N-VERSION/00000.tar ...   shards of 500 pairs: KEY.jpg, KEY.txt
                               pairs.parquet   the columns of the table `pairs`
                               bytes.parquet   uid, image (the file's bytes), text: for engines that want bytes
                               files/KEY.jpg   the first 512 images as files, KEY.txt their captions

A picture is a smooth field, a middle one and light noise, cut out of a few random fields at random places; its spectrum
falls with frequency as a photo's does, which is what decides a JPEG's size and the time to decode it.
"""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from etl.samples.packages import default_cache
from etl.samples.sources import SOURCES
from etl.shards import ShardWriter, index, publish
from models.records import whole_folder
from tests.bench.measure import OUT, say

WIDTH_PX, HEIGHT_PX = 512, 384
MARGIN_PX = 128
"""Fields are larger by this: so many places to cut a picture out."""
NOISE = 11
"""Standard deviation, in grey levels, of the noise at its strongest."""
VERSION = 2
"""Raise it when the same number of pairs would give other bytes."""
PAIRS_PER_SHARD = 500
NUM_FILES = 512


class Data(NamedTuple):
    """A built folder."""

    folder: Path
    pairs: pd.DataFrame
    """uid, shard, offset_bytes, size_bytes, text, status, status_reason; `shard` is relative to `folder`."""

    @property
    def bytes_file(self) -> Path:
        return self.folder / "bytes.parquet"

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "files").glob("*.jpg"))

    @property
    def texts(self) -> list[str]:
        return self.pairs["text"].tolist()

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.tar"))

    def images(self, number: int | None = None) -> list[bytes]:
        """Image files, read from the shards into memory."""
        rows = self.pairs.head(number or len(self.pairs))
        whole = {shard: (self.folder / shard).read_bytes() for shard in rows["shard"].unique()}
        places = zip(rows["shard"], rows["offset_bytes"], rows["size_bytes"], strict=True)
        return [whole[shard][start : start + size] for shard, start, size in places]


def build(num_pairs: int, *, root: Path = OUT / "data") -> Data:
    """The folder of `num_pairs` pairs: at once if it is there, else built (6,000: less than a minute)."""
    home = (root / f"{num_pairs}-v{VERSION}").absolute()
    if not home.is_dir():
        say(f"building {num_pairs:,} pairs in {home}")
        with whole_folder(home) as folder:
            _write(num_pairs, folder)
    return Data(home, pd.read_parquet(home / "pairs.parquet"))


def _write(num_pairs: int, folder: Path) -> None:
    random, rows, made = np.random.default_rng(VERSION), [], []
    captions = composed_captions(num_pairs)
    (folder / "files").mkdir()
    for start in range(0, num_pairs, PAIRS_PER_SHARD):
        name, numbers = f"{start // PAIRS_PER_SHARD:05d}.tar", range(start, min(start + PAIRS_PER_SHARD, num_pairs))
        with ShardWriter(str(folder / name)) as writer:
            for number in numbers:
                image, text = picture(random), captions[number].encode()
                writer.add(f"{number:08d}", {"jpg": image, "txt": text})
                made.append(image)
                if number < NUM_FILES:
                    (folder / f"files/{number:08d}.jpg").write_bytes(image)
                    (folder / f"files/{number:08d}.txt").write_bytes(text)
            publish(str(folder), writer.close().temporary, name)
        with (folder / name).open("rb") as file:
            members = [member for member in index(file) if member.name.endswith(".jpg")]
        rows += [(name, member.offset_bytes, member.size_bytes) for member in members]
    pairs = pd.DataFrame(rows, columns=["shard", "offset_bytes", "size_bytes"]).assign(text=captions, status="ok")
    pairs["uid"] = [hashlib.md5(str(number).encode()).hexdigest() for number in range(num_pairs)]
    pairs["status_reason"] = pd.Series([None] * num_pairs, dtype="string")
    pairs.to_parquet(folder / "pairs.parquet")
    table = pa.table({"uid": pairs["uid"], "image": pa.array(made, pa.binary()), "text": captions})
    # Groups small enough that engines spread them over cores; not compressed, for JPEGs do not.
    pq.write_table(table, folder / "bytes.parquet", row_group_size=256, compression="none")


def picture(random: np.random.Generator) -> bytes:
    """One JPEG. Quality 80 to 92, as on the web."""
    smooth, middle, noise = _fields()
    detail = random.integers(1, 5)
    grey = _cut(smooth, random) + _cut(middle, random) + (_cut(noise, random) * detail >> 2)
    planes = [grey, _cut(smooth, random) >> 1, _cut(smooth, random) >> 1]  # YCbCr: colour varies less than light
    bands = [Image.fromarray((plane + np.int16(128)).clip(0, 255).astype(np.uint8)) for plane in planes]
    file = io.BytesIO()
    Image.merge("YCbCr", bands).save(file, "JPEG", quality=int(random.integers(80, 93)))
    return file.getvalue()


def _cut(bank: np.ndarray, random: np.random.Generator) -> np.ndarray:
    top, left = random.integers(0, MARGIN_PX, 2)
    return bank[random.integers(len(bank)), top : top + HEIGHT_PX, left : left + WIDTH_PX]


@cache
def _fields() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Banks of smooth, middle and noisy fields: int16 around 0, in grey levels, shape N H W."""
    random = np.random.default_rng(0)
    size = (WIDTH_PX + MARGIN_PX, HEIGHT_PX + MARGIN_PX)

    def field(cells: int, amplitude: float) -> np.ndarray:
        """Random values on a grid of `cells` across, enlarged to a picture."""
        grid = random.normal(0, amplitude, (cells * 3 // 4, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))

    smooth = np.stack([field(4, 45) + field(12, 20) for _ in range(16)])
    middle = np.stack([field(40, 12) + field(120, 8) for _ in range(16)])
    noise = random.normal(0, NOISE, (8, size[1], size[0]))
    return smooth.astype(np.int16), middle.astype(np.int16), noise.astype(np.int16)


def composed_captions(number: int) -> list[str]:
    """Captions like alt texts: a log-normal number of words (median 19), of things, what is shown of them, and years.

    The words are those of ImageNet's classes and of CLIP's prompts for them, as open_clip holds them.
    """
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    random, made = np.random.default_rng(VERSION), []
    for num_words in np.clip(random.lognormal(np.log(19), 0.55, number), 3, 60).astype(int):
        words: list[str] = []
        while len(words) < num_words:
            template = OPENAI_IMAGENET_TEMPLATES[random.integers(len(OPENAI_IMAGENET_TEMPLATES))]
            words += template(IMAGENET_CLASSNAMES[random.integers(len(IMAGENET_CLASSNAMES))]).split()
            words += [str(random.integers(1900, 2030))] if random.random() < 0.2 else []
        made.append(" ".join(words[:num_words]))
    return made


def corpus_captions() -> list[str]:
    """Sentences that people wrote (Tux Paint's stamps), if the demo or `make corpora` has fetched them; else []."""
    packages = sorted((default_cache() / "packages").glob("*tuxpaint-stamps-default*/files"))
    return [pair.caption for pair in SOURCES["tuxpaint"]({"tuxpaint-stamps-default": packages[-1]})] if packages else []
