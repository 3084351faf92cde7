"""Which WordNet synset a word means first, as NLTK's `wordnet.synsets(word)[0]` has it. Reads WordNet's own files.

DataComp's text_based asks this of each word of a caption, of NLTK 3.8.1. Our own reader, since NLTK's wants a file
(lexnames) that Debian's package lacks, and takes seconds and 100 MB in each worker for what is not needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd
from pyspark.sql import Column
from pyspark.sql import functions as F

from etl.selection.pinned import pinned_bytes, pinned_path
from etl.stage import UserError, series_udf

PACKAGE, FOLDER = "wordnet-base", "usr/share/wordnet"
"""Debian's, and where in it the files are: WordNet 3.0, whose offsets ImageNet's ids are."""
ENDINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "noun": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
             ("men", "man"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip
"""Rules of detachment (morphy(7WN), with NLTK's v to f), in NLTK's order of parts of speech: nouns win."""


@dataclass(frozen=True)
class WordNet:
    first: Mapping[str, Mapping[str, int]]
    """Part of speech -> lemma, lower case, blanks as underscores -> offset of its most frequent synset."""
    exceptions: Mapping[str, Mapping[str, tuple[str, ...]]]
    """Part of speech -> inflected form -> its base forms."""

    def first_offset(self, word: str) -> int | None:
        """Offset of the first synset of a word in any case and inflection; None where WordNet has none."""
        lower = word.lower()
        found = (self._base(lower, part) for part in ENDINGS)
        return next((offset for offset in found if offset is not None), None)

    def _base(self, form: str, part: str) -> int | None:
        first, exceptions = self.first[part], self.exceptions[part]

        def known(forms: Iterable[str]) -> int | None:
            return next((first[form] for form in forms if form in first), None)

        if form in exceptions:  # and then by no rule
            return known([form, *exceptions[form]])
        forms = _detached([form], part)
        found = known([form, *forms])
        while found is None and forms:  # cut and cut again, until something is known
            forms = _detached(forms, part)
            found = known(forms)
        return found


def _detached(forms: Iterable[str], part: str) -> list[str]:
    """Each form with each ending replaced that it has; once, for `seseses` would double with every ending."""
    found = (form[: -len(old)] + new for form in forms for old, new in ENDINGS[part] if form.endswith(old))
    return list(dict.fromkeys(found))


def files(folder: Path) -> list[Path]:
    """What is read of WordNet's folder."""
    return [folder / name for part in ENDINGS for name in (f"index.{part}", f"{part}.exc")]


def read_wordnet(folder: str, sha256: Mapping[str, str]) -> WordNet:
    """Raises UserError for files that are none, or not those of the sha256."""

    def lines(name: str) -> Iterator[list[str]]:
        data = pinned_bytes(Path(folder) / name, sha256)
        return (line.split() for line in data.decode().splitlines() if line and not line.startswith(" "))

    first: dict[str, dict[str, int]] = {}
    try:
        for part in ENDINGS:  # lemma, pos, synset_cnt, p_cnt, p_cnt symbols, sense_cnt, tagsense_cnt, offsets
            first[part] = {row[0]: int(row[6 + int(row[3])]) for row in lines(f"index.{part}")}
        exceptions = {part: {row[0]: tuple(row[1:]) for row in lines(f"{part}.exc")} for part in ENDINGS}
    except (ValueError, IndexError) as error:
        raise UserError(f"wordnet: wanted index.* and *.exc of WordNet 3.0; found {folder}: {error}; fix: "
                        f"leave it out to have Debian's {PACKAGE}") from None  # fmt: skip
    return WordNet(first, exceptions)


def read_synsets(path: str, sha256: Mapping[str, str]) -> frozenset[int]:
    """Offsets of a file of wnids, one a line (n02084071), blank lines and # comments aside. Raises UserError.

    The letter is dropped, as DataComp's code drops it: a verb whose synset has the offset of a listed noun is listed.
    """
    lines = [line.strip() for line in pinned_bytes(Path(path), sha256).decode(errors="replace").splitlines()]
    wnids = [line for line in lines if line and line[0] != "#"]
    wrong = [wnid for wnid in wnids if not (len(wnid) == 9 and wnid[0] in "nvar" and wnid[1:].isdecimal())]
    if wrong or not wnids:
        raise UserError(
            f"synsets: wanted wnids such as n02084071, one a line; found {(wrong or ['none'])[0]!r} in {path}"
        )
    return frozenset(int(wnid[1:]) for wnid in wnids)


@lru_cache(maxsize=4)
def _matcher(folder: str, path: str, pins: frozenset[tuple[str, str]]) -> Callable[[str], bool]:
    """Whether a caption names a synset of the list; read once a worker."""
    wordnet, listed = read_wordnet(folder, dict(pins)), read_synsets(path, dict(pins))
    is_listed = lru_cache(maxsize=1 << 16)(lambda word: wordnet.first_offset(word) in listed)
    return lambda text: any(is_listed(word) for word in text.split())


def names(folder: Path, path: Path, sha256: Mapping[str, str]) -> Column:
    """Whether a word of `text`, between blanks and as it stands, has a synset of the list as its first; NULL: false."""
    where, what = pinned_path(folder), pinned_path(path)
    pins = frozenset((name, value) for name, value in sha256.items())
    _matcher(where, what, pins)  # a mistake is told here, once

    def match(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        is_match = _matcher(where, what, pins)
        for texts in batches:
            yield pd.Series([isinstance(text, str) and is_match(text) for text in texts], dtype=bool)

    # Python: the search through inflections has no bound that SQL could state.
    return series_udf(match, "boolean")(F.col("text"))
