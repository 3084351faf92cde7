"""How unsafe for work a caption is, by a list of words with weights. Reads that list.

A line is PHRASE TAB WEIGHT: a word or up to MAX_WORDS of them, and a number above 0 and at most 1; # begins a comment.
The score is 1 - product of (1 - weight) over the phrases found, each once: 0 where none is, never below the largest
weight (a noisy or). The default list is `nsfw_words.txt` beside this file, which says what it is.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from pathlib import Path

from etl.stage import UserError

MAX_WORDS = 3
MAX_CHARS = 10_000
"""Of a caption, that are looked at."""


@dataclass(frozen=True)
class Lexicon:
    """Phrase in lower case -> weight; and what the list is called in the rows that it made."""

    weights: dict[str, float]
    name: str

    def score(self, text: str | None) -> float | None:
        """0 to 1; None of no text."""
        if text is None or not text.strip():
            return None
        words = re.findall(r"\w+", text[:MAX_CHARS].casefold())
        found = {
            phrase
            for length in range(1, MAX_WORDS + 1)
            for start in range(len(words) - length + 1)
            if (phrase := " ".join(words[start : start + length])) in self.weights
        }
        return 1.0 - prod(1.0 - self.weights[phrase] for phrase in sorted(found))


def read_lexicon(path: Path | None) -> Lexicon:
    """The list at `path`, or the default one; named by its file and the first 16 hex digits of its sha256.

    Raises UserError where a line is not as it should be.
    """
    try:
        source = files("etl.selection").joinpath("nsfw_words.txt") if path is None else path
        data = source.read_bytes()
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"signals.lexicon: wanted a text file; found {path}: {type(error).__name__}") from None
    weights = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        phrase, _, weight = line.partition("\t")
        words = re.findall(r"\w+", phrase.casefold())
        if not 1 <= len(words) <= MAX_WORDS or not re.fullmatch(r"0?\.\d+|1(\.0*)?", weight) or not float(weight):
            raise UserError(
                f"{path or 'nsfw_words.txt'} line {number}: wanted 1 to {MAX_WORDS} words, a tab, and a weight above 0 "
                f"and at most 1; found {line[:60]!r}"
            )
        weights[" ".join(words)] = float(weight)
    return Lexicon(weights, f"{source.name}/{hashlib.sha256(data).hexdigest()[:16]}")
