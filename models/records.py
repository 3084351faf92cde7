"""What pins a version: records of encoders and filters, sha256 of files, files and folders that appear whole. No torch.

A folder holds `record.json` and the files whose sha256 the record names. Its version is the record's: contents, never a
counter (DESIGN decision 5), so that stale vectors cannot pass for fresh ones.
"""

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

RECORD = "record.json"

Precision = Literal["fp32", "bf16"]
"""What a device multiplies in; sums are float32."""


class WeightsError(Exception):
    """Weights or records that are not what they are said to be. Says what was wanted, what was found, how to fix it."""

    def __init__(self, *, wanted: str, found: str, fix: str) -> None:
        super().__init__(f"wanted {wanted}; found {found}; fix: {fix}")


class RegistryError(Exception):
    """A model, version or alias that the registry does not hold; names those that it does."""


class Record(BaseModel):
    """Base of the records: immutable, and a field that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def version(self) -> str:
        """First 16 hex digits of the sha256 over the record's canonical JSON, in which the weights are a sha256."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record of a folder, without a look at its weights.

        Raises:
            WeightsError: there is no `record.json`, or it is that of something else.
        """
        path = folder / RECORD
        if not path.is_file():
            raise WeightsError(wanted=f"a folder with {RECORD}", found=str(folder), fix="build or fetch it first")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            fields = sorted({str(e["loc"][0]) for e in error.errors() if e["loc"]})
            found = f"{path}, which does not fit in {', '.join(fields) or 'anything'}"
            raise WeightsError(wanted=f"the fields of {cls.__name__}", found=found, fix="name another folder") from None

    def write(self, folder: Path) -> None:
        (folder / RECORD).write_text(self.model_dump_json(indent=2) + "\n")


class Preprocessing(Record):
    """How checked RGB becomes the tower's input, beyond `models.images` (EXIF orientation, transparency)."""

    size_px: int
    """Side of the square input, in pixels."""
    resize: Literal["squash", "shortest"]
    """squash: the whole image, aspect ratio lost. shortest: the shorter side to size_px, then the centre."""
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    """Subtracted from R, G and B after dividing by 255."""
    std: tuple[float, float, float]
    background: Literal["white"] = "white"
    """What transparency is composited on."""
    decode: Literal["exact", "scaled"] = "exact"
    """scaled: a JPEG of twice the input's size or more is decoded at a fraction of it. Faster, other pixels."""


class Tokenizer(Record):
    """How a caption becomes tokens."""

    kind: Literal["hf", "open_clip"]
    """hf: from the files of the folder. open_clip: the BPE vocabulary inside the open_clip package."""
    context_length: int
    """Longest row, in tokens; what is beyond is cut."""
    pad_id: int
    max_chars: int
    """A caption is cut here before it is tokenised, so that a megabyte of text takes bounded time."""
    files: dict[str, str]
    """File name in the folder -> sha256."""


class EncoderRecord(Record):
    """All that decides the bits of an encoder's vectors on one machine."""

    name: str
    architecture: dict[str, Any]
    """`class` and keyword arguments of open_clip's model, quick_gelu (the activation) among them."""
    preprocessing: Preprocessing
    tokenizer: Tokenizer
    image_dim: int
    text_dim: int
    shares_space: bool
    """Whether the cosine of an image vector and a text vector means anything."""
    is_normalised: bool
    """Whether vectors leave the encoder with length 1."""
    batch_size: int
    """Images a forward pass: always that many, the last batch padded."""
    text_batch_size: int
    """Captions a forward pass at the full context length; shorter ones go in proportionally larger batches."""
    text_bucket_tokens: int | None
    """Captions are padded to a multiple of this many tokens; None: all to the context length."""
    precision: Precision = "fp32"
    """What the towers multiply in, on any device. bf16 moves a cosine by thousandths, and makes it several times as
    cheap on devices that `models.towers.good_precision` names."""
    weights_sha256: str

    def texts_per_pass(self, num_tokens: int) -> int:
        """Captions a forward pass at a padded length: about constant in tokens, and a function of that length alone."""
        return max(1, round(self.text_batch_size * self.tokenizer.context_length / num_tokens))


class PublishedRecord(Record):
    """All that is known of vectors that came with a release: their encoder, and the sha256 of its weights, is not."""

    name: str
    source: Literal["published"] = "published"
    published_as: str
    """Whose vectors they are, in the words of the release."""
    image_dim: int
    text_dim: int
    shares_space: bool
    is_normalised: bool
    """Whether the release stores them with length 1. Nothing relies on it: cosines are taken after normalising."""
    dtype: Literal["float16"] = "float16"


VectorsRecord = EncoderRecord | PublishedRecord
"""What says whose the stored vectors are."""


class FilterRecord(Record):
    """All that decides a filter's score of two stored vectors."""

    name: str
    formula: str = "dfn_cosine"
    """A name in `models.formulas.FORMULAS`."""
    parameters: dict[str, float | str] = {}
    """Its numbers and words, such as a temperature."""
    provenance: dict[str, str] = {}
    """What its tensors were drawn from or trained on, in words."""
    encoder_name: str
    encoder_version: str
    image_dim: int
    text_dim: int
    embed_dim: int | None
    """Dimensions after the heads; None: the filter has no heads."""
    weights_sha256: str | None
    """Of the heads."""
    tensors_sha256: str | None = None
    """Of the formula's tensors, where it has some: references, targets, weights."""


def sha256_file(path: Path) -> str:
    """The file's sha256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, wanted: Mapping[str, str]) -> None:
    """Holds each file (name -> sha256) against its hash, before anything of it is used.

    Raises:
        WeightsError: a file is missing, cut or altered.
    """
    for name, sha256 in wanted.items():
        path = folder / name
        found = sha256_file(path) if path.is_file() else "no such file"
        if found != sha256:
            raise WeightsError(
                wanted=f"{path} with sha256 {sha256}", found=found, fix=f"remove {folder} and build or copy it again"
            )


@cache
def code_commit() -> str | None:
    """The commit of the code that runs, where it runs from a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:  # a machine without git
        return None
    return done.stdout.strip() or None


def fsync(path: Path) -> None:
    """A file or folder on a local disk, so that it outlasts a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """A local file with this content, or what was there before: never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text)
    fsync(temporary)
    temporary.replace(path)
    fsync(path.parent)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary sibling that takes the name `out` when the block ends well: no reader meets half a folder.

    What was at `out` is replaced; what a failed block wrote is removed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    new, old = (out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.{what}" for what in ("new", "old"))
    new.mkdir()
    try:
        yield new
        if out.exists():
            out.replace(old)
        new.replace(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
