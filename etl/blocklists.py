"""URLs, domains and sha256 that are never to be stored, from text files. Reads those files.

A line is a sha256 (64 hex digits), a URL (it has ://), or a domain, which stands for its subdomains too. Empty lines
and lines that begin with # say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from etl.stage import UserError


@dataclass(frozen=True)
class Blocklist:
    """What is blocked."""

    urls: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    sha256s: frozenset[str] = frozenset()

    def of_url(self, url: str) -> str | None:
        """Why a URL is blocked; None where it is not."""
        if url in self.urls:
            return "its URL"
        labels = (urlsplit(url).hostname or "").rstrip(".").split(".")
        parents = (".".join(labels[start:]) for start in range(len(labels)))
        return next((f"the domain {domain}" for domain in parents if domain in self.domains), None)

    def of_sha256(self, sha256: str) -> str | None:
        """Why bytes are blocked; None where they are not."""
        return "its sha256" if sha256 in self.sha256s else None


def read_blocklists(paths: Iterable[str | Path]) -> Blocklist:
    """All lines of all files. Raises UserError where one cannot be read."""
    kinds: dict[str, set[str]] = {"urls": set(), "domains": set(), "sha256s": set()}
    for path in paths:
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"blocklists: wanted a text file; found {path}: {type(error).__name__}; fix: its path"
            ) from None
        for line in (line.strip() for line in lines):
            if line and not line.startswith("#"):
                is_sha256 = re.fullmatch("[0-9a-fA-F]{64}", line)
                kind = "sha256s" if is_sha256 else "urls" if "://" in line else "domains"
                kinds[kind].add(line if kind == "urls" else line.lower().strip("."))
    return Blocklist(**{kind: frozenset(lines) for kind, lines in kinds.items()})
