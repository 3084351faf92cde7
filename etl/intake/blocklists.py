"""URLs, domains, sha256 and perceptual hashes of what is never to be stored, from text files. Reads those files.

A line is a sha256 (64 hex digits), a uid (32 hex digits; only `dfn forget` and rules look at it), a perceptual hash (16
hex digits, as imagehash prints its phash; with `~6` after it: within 6 bits, else within MAX_DISTANCE_BITS), a URL (it
has ://), or a domain, which stands for its subdomains too. Empty lines and lines that begin with # say nothing. A URL
acts before it is asked for, a sha256 before any decoder sees the bytes, a perceptual hash after the decoding that it
needs, and before anything is stored. What was forgotten acts likewise, everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from etl.intake.stay_out import BITS_64, REASON, StayOut, domains_of
from etl.stage import UserError
from models.images import ImageError, inspect, sha256_hex

MAX_DISTANCE_BITS = 4
"""Of two perceptual hashes that are near, as in dedup."""
PHASH = re.compile(r"([0-9a-f]{16})(?:~(\d{1,2}))?")


@dataclass(frozen=True)
class Blocklist:
    """What is blocked."""

    urls: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    sha256s: frozenset[str] = frozenset()
    phashes: frozenset[tuple[int, int]] = frozenset()
    """64 bits, and within how many of them."""
    uids: frozenset[str] = frozenset()
    forgotten: StayOut = StayOut()  # noqa: RUF009 - it cannot change
    """What was taken down: it is blocked as well."""

    def of_url(self, url: str) -> str | None:
        """Why a URL is blocked; None where it is not."""
        if url in self.urls:
            return "its URL"
        if self.forgotten.has("url", url):
            return REASON
        return next((f"the domain {domain}" for domain in domains_of(url) if domain in self.domains), None)

    def of_sha256(self, sha256: str | None) -> str | None:
        """Why bytes are blocked; None where they are not."""
        if self.forgotten.has("sha256", sha256):
            return REASON
        return "its sha256" if sha256 in self.sha256s else None

    def of_phash(self, phash: int | None) -> str | None:
        """Why an image is blocked; None where it is not. `phash`: 64 bits, signed or not."""
        if phash is None:
            return None
        if self.forgotten.has("phash", str(phash)):
            return REASON
        distances = (((listed ^ phash & BITS_64).bit_count(), bits) for listed, bits in self.phashes)
        nearest = min((distance for distance, bits in distances if distance <= bits), default=None)
        return None if nearest is None else f"its perceptual hash, {nearest} bits away"

    def of_bytes(self, data: bytes, max_pixels: int) -> str | None:
        """Why the bytes of an image are blocked; None where they are not. Decodes only where a hash asks for it."""
        why = self.of_sha256(sha256_hex(data)) if self.sha256s or self.forgotten else None
        if why or not (self.phashes or self.forgotten.phashes):
            return why
        try:
            return self.of_phash(inspect(data, max_pixels=max_pixels).phash)
        except ImageError:  # no image: whoever wants one will say so
            return None


def phash_of(line: str) -> tuple[int, int] | None:
    """Of a line in lower case: 64 bits, and within how many of them; None of another line."""
    match = PHASH.fullmatch(line)
    return (int(match[1], 16), int(match[2] or MAX_DISTANCE_BITS)) if match else None


def read_blocklists(paths: Iterable[str | Path], forgotten: StayOut = StayOut()) -> Blocklist:  # noqa: B008
    """All lines of all files, and what was forgotten. Raises UserError where one cannot be read."""
    kinds: dict[str, set[str]] = {"urls": set(), "domains": set(), "sha256s": set(), "uids": set()}
    phashes = set[tuple[int, int]]()
    for path in paths:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"blocklists: wanted a text file; found {path}: {type(error).__name__}; fix: its path"
            ) from None
        for line in (line.strip() for line in lines):
            if not line or line.startswith("#"):
                continue
            if phash := phash_of(line.lower()):
                phashes.add(phash)
                continue
            is_hex = re.fullmatch("(?:[0-9a-fA-F]{32}){1,2}", line)
            kind = {32: "uids", 64: "sha256s"}[len(line)] if is_hex else "urls" if "://" in line else "domains"
            kinds[kind].add(line if kind == "urls" else line.lower().strip("."))
    named = {kind: frozenset(lines) for kind, lines in kinds.items()}
    return Blocklist(**named, phashes=frozenset(phashes), forgotten=forgotten)
