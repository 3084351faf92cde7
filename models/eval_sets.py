"""Evaluation sets in clip_benchmark's WebDataset layout, read as a stream of samples. Touches the set's folder only.

    dataset_type.txt    retrieval, or association (of ours, for WinoGAViL); none: classification
    classnames.txt      a class a line, by label
    zeroshot_classification_templates.txt    a line each, with {c} for the class
    test/nshards.txt    n, for test/0.tar to test/n-1.tar

A sample is the members of one key: an image with `.cls` (the label in digits), `.txt` (a caption a line), or, for an
association, `.json` (cue, candidates, associations) and an image `.I.jpg` for candidate I. `.npy` holds what WILDS and
the fairness sets say of an image: integers. Members of other kinds are left alone: nothing is ever unpickled.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

IMAGES = ("webp", "png", "jpg", "jpeg")
TYPE, CLASSES, TEMPLATES = "dataset_type.txt", "classnames.txt", "zeroshot_classification_templates.txt"
MAX_MEMBER_BYTES = 256 << 20
Kind = Literal["classification", "retrieval", "association"]
KINDS: tuple[Kind, ...] = ("classification", "retrieval", "association")


class EvalSetError(Exception):
    """An evaluation set that cannot be read: what was wanted, what was found, how to mend it."""


@dataclass(frozen=True)
class Sample:
    """`where`: the shard and the key, for errors. `members`: extension -> bytes."""

    where: str
    members: Mapping[str, bytes]

    def image(self, part: str = "") -> bytes:
        """The bytes of the image, or of a candidate's (`part` is its number)."""
        names = [f"{part}.{kind}" if part else kind for kind in IMAGES]
        found = next((self.members[name] for name in names if name in self.members), None)
        if found is None:
            raise EvalSetError(f"wanted an image ({', '.join(names)}) in {self.where}; found {sorted(self.members)}")
        return found

    def text(self, extension: str) -> str:
        if extension not in self.members:
            raise EvalSetError(f"wanted .{extension} in {self.where}; found {', '.join(sorted(self.members))}")
        return self.members[extension].decode(errors="replace")

    def label(self) -> int:
        text = self.text("cls").strip()
        if not text.isascii() or not text.isdigit():
            raise EvalSetError(f"wanted a label in digits in {self.where}.cls; found {text[:40]!r}")
        return int(text)

    def metadata(self) -> NDArray[np.int64] | None:
        """Integers of the `.npy` member, shape (fields,); None where there is none. Never unpickles."""
        if "npy" not in self.members:
            return None
        try:
            found = np.load(io.BytesIO(self.members["npy"]), allow_pickle=False)
            return np.atleast_1d(found).astype(np.int64)
        except (ValueError, EOFError, OSError, AttributeError):
            raise EvalSetError(f"wanted an .npy of plain numbers in {self.where}; found another kind of file") from None


@dataclass(frozen=True)
class EvalFolder:
    """A set's facts; its samples are read when they are asked for."""

    folder: Path
    kind: Kind
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path, split: str = "test") -> "EvalFolder":
        """Reads all but the shards.

        Raises:
            EvalSetError: a file is missing or says something unknown, such as a multilabel set.
        """
        kind = (_lines(folder / TYPE) or ["classification"])[0].lower() if (folder / TYPE).exists() else KINDS[0]
        known = next((name for name in KINDS if name == kind), None)
        if known is None:
            raise EvalSetError(f"wanted one of {', '.join(KINDS)} in {folder / TYPE}; found {kind!r}")
        num_shards = "".join(_lines(folder / split / "nshards.txt"))
        if not num_shards.isdigit() or not int(num_shards):
            raise EvalSetError(f"wanted the number of shards in {folder / split / 'nshards.txt'}; found {num_shards!r}")
        shards = tuple(folder / split / f"{number}.tar" for number in range(int(num_shards)))
        if missing := [path for path in shards if not path.is_file()]:
            raise EvalSetError(f"wanted {num_shards} shards; found no {missing[0]}; fix: fetch the set whole")
        names = (CLASSES, TEMPLATES) if known == "classification" else ()
        classes, templates = (_lines(folder / name) for name in names) if names else ([], [])
        if names and not (classes and templates):
            raise EvalSetError(f"wanted lines in {CLASSES} and {TEMPLATES} of {folder}; found none in one of them")
        return cls(folder, known, tuple(classes), tuple(templates), shards)

    def samples(self) -> Iterator[Sample]:
        """Shard by shard, in the order of the members.

        Raises:
            EvalSetError: a shard that is no tar, is cut, or holds a huge member.
        """
        for path in self.shards:
            try:
                yield from _samples(path)
            except tarfile.TarError as error:
                raise EvalSetError(f"wanted a whole tar; found {path}: {error}; fix: fetch it again") from None


def _samples(path: Path) -> Iterator[Sample]:
    key, members = "", dict[str, bytes]()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            name, _, extension = Path(member.name).name.partition(".")
            if member.size > MAX_MEMBER_BYTES:
                raise EvalSetError(f"wanted members of at most {MAX_MEMBER_BYTES} bytes; found {member.name} in {path}")
            if name != key and members:
                yield Sample(f"{path}: {key}", members)
                members = {}
            data = tar.extractfile(member)
            key, members[extension.lower()] = name, data.read() if data else b""
    if members:
        yield Sample(f"{path}: {key}", members)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise EvalSetError(f"wanted {path}; found no such file; fix: a folder in clip_benchmark's layout")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
