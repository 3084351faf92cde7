"""What a host asks of who comes: robots.txt (RFC 9309), tdmrep.json, a pace. Touches the network through `Fetcher`.

Both files are asked for once per origin and task, at the same time, before the first image. robots.txt that is not
there allows all; one that cannot be had (status 500 and above) forbids all; of a host that does not answer the error is
that of each of its images, which costs two attempts and not some for each.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protego import Protego
from yarl import URL

from etl.web.opt_out import said_by_tdmrep
from models.images import StatusError, one_line

if TYPE_CHECKING:
    from etl.web.fetch import Fetcher

MAX_BYTES = 500 * 1024
"""What is read of either file: the least that RFC 9309 asks for."""
MAX_DELAY_SECONDS = 30.0
"""Of a Crawl-delay, more is not believed."""


@dataclass(frozen=True)
class Manners:
    """What one origin asks for."""

    robots: Protego | None = None
    forbids_all: str | None = None
    """Why nothing may be asked for: robots.txt could not be had."""
    tdmrep: bytes = b""
    delay_seconds: float = 0.0

    def objection(self, url: URL, agent: str) -> str | None:
        """The evidence that `url` is not to be fetched; None where it may be."""
        if self.forbids_all:
            return self.forbids_all
        if self.robots is not None and not self.robots.can_fetch(str(url), agent):
            return one_line(f"robots.txt: {agent} may not fetch {url.raw_path}")
        return said_by_tdmrep(self.tdmrep, url.raw_path_qs) if self.tdmrep else None


async def ask(fetcher: Fetcher, origin: URL) -> Manners:
    """The manners of an origin. Raises StatusError where it cannot be reached: the status of all of its images."""
    try:
        (status, text), reserving = await _both(fetcher, origin)
    except StatusError as error:
        if error.status not in ("dns_error", "connect_error"):
            raise
        await asyncio.sleep(fetcher.limits.backoff_seconds)
        (status, text), reserving = await _both(fetcher, origin)
    if status >= 500 or status == 429:
        return Manners(forbids_all=f"robots.txt: status {status}, which forbids all")
    rules = Protego.parse(text.decode("utf-8", "replace")) if status < 300 else None
    delay = float(rules.crawl_delay(fetcher.limits.agent_name) or 0.0) if rules else 0.0
    reserved = reserving[1] if reserving[0] < 300 else b""
    return Manners(rules, None, reserved, min(max(delay, 0.0), MAX_DELAY_SECONDS))


async def _both(fetcher: Fetcher, origin: URL) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    """Status and text of robots.txt and of tdmrep.json; the latter counts as absent where it cannot be had."""
    robots, tdmrep = await asyncio.gather(
        fetcher.small_file(origin.with_path("/robots.txt"), MAX_BYTES),
        fetcher.small_file(origin.with_path("/.well-known/tdmrep.json"), MAX_BYTES),
        return_exceptions=True,
    )
    if isinstance(robots, BaseException):
        raise robots
    return robots, tdmrep if isinstance(tdmrep, tuple) else (404, b"")
