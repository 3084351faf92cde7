"""What was forgotten and must not come in again, known by hashes alone. Touches nothing.

A key is a uid, a URL, a domain (which stands for its subdomains) or the sha256 of an image's bytes, kept as the sha256
of KIND, NUL and the key. Nobody can read from that what was taken down; whoever brings it again can be told. Perceptual
hashes are compared by distance, which a hash would destroy: they are kept XORed with a mask, which keeps distances.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
from pyspark.sql import Column
from pyspark.sql import functions as F

from etl.stage import series_udf

KINDS = ("uid", "url", "domain", "sha256", "phash")
BITS_64 = (1 << 64) - 1
MASK = int.from_bytes(hashlib.sha256(b"phash of what was forgotten").digest()[:8], "big")
REASON = "it was forgotten"
REDACTED = "-"
"""What stands for a forgotten key in a text. Sorts before every uid: of a cut whose own pair went, no other is kept by
its uid alone."""
HEX = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{32})(?![0-9a-f])")
"""In a text, what may be a sha256 or a uid."""
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:[^\s\"'<>\\]+")
"""In a text, what may be a URL, of any scheme."""


def key_hash(kind: str, key: str) -> str:
    """64 hex digits that stand for a key. A perceptual hash is 16 hex digits, and so is what stands for it."""
    if kind == "phash":
        return f"{int(key, 16) ^ MASK:016x}"
    return hashlib.sha256(f"{kind}\0{key}".encode(errors="surrogatepass")).hexdigest()


def key_hash_of(kind: str, column: Column) -> Column:
    """`key_hash` in Spark, of any kind but phash."""
    return F.sha2(F.concat(F.lit(kind), F.lit("\0"), column), 256)


def domains_of(url: str) -> list[str]:
    """The host of a URL and every domain above it, lower case; [''] where it has none."""
    try:
        labels = (urlsplit(url).hostname or "").rstrip(".").split(".")
    except ValueError:
        return [""]
    return [".".join(labels[start:]) for start in range(len(labels))]


@dataclass(frozen=True)
class StayOut:
    """What must not come in again. False where nothing was forgotten."""

    hashes: frozenset[bytes] = frozenset()
    """Of uids, URLs, domains and sha256: 32 bytes each."""
    phashes: frozenset[tuple[int, int]] = frozenset()
    """Masked, and within how many bits."""

    def __bool__(self) -> bool:
        return bool(self.hashes or self.phashes)

    def has(self, kind: str, key: Any) -> bool:
        """Whether a key was forgotten. `kind`: of KINDS; a URL also by its domains. `key`: text; others are not."""
        if not isinstance(key, str) or not key:
            return False
        if kind == "phash":
            masked = (int(key) & BITS_64) ^ MASK
            return any((masked ^ listed).bit_count() <= bits for listed, bits in self.phashes)
        if bytes.fromhex(key_hash(kind, key)) in self.hashes:
            return True
        return kind == "url" and any(self.has("domain", domain) for domain in domains_of(key))

    def redacted(self, text: str) -> tuple[str, int]:
        """The text with REDACTED for every forgotten key, and how many there were."""
        count = 0

        def hex_replaced(match: re.Match[str]) -> str:
            return replaced(match[0], self.has("uid" if len(match[0]) == 32 else "sha256", match[0]))

        def url_replaced(match: re.Match[str]) -> str:
            return replaced(match[0], self.has("url", match[0]) or self.has("url", match[0].rstrip(".,;)]}")))

        def replaced(token: str, is_known: bool) -> str:
            nonlocal count
            count += is_known
            return REDACTED if is_known else token

        # URLs last: what a hex key is part of stays one.
        return URL.sub(url_replaced, HEX.sub(hex_replaced, text)), count


def is_forgotten(stay_out: StayOut, **columns: str | Column) -> Column:
    """Whether any of a row's keys was forgotten. `columns`: kind of the key -> column; `page`: one more URL."""
    if not stay_out:
        return F.lit(False)
    kinds = ["url" if name == "page" else name for name in columns]

    def any_known(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        for parts, _ in batches:
            yield pd.Series([any(map(stay_out.has, kinds, keys)) for keys in parts], dtype=bool)

    # As text: a BIGINT with NULLs would reach pandas as a float.
    texts = [(F.col(c) if isinstance(c, str) else c).cast("string") for c in columns.values()]
    # Python: perceptual hashes are near each other or not, and a URL has many domains.
    return series_udf(any_known, "boolean")(F.array(*texts), F.lit(0))
