"""Many URLs at once, host by host. Touches the network through `Fetcher`.

Each host has a queue, served by at most so many at a time and with a pause between two starts; a gate bounds all hosts
together. Whoever waits for a turn is not under the deadline yet; whoever has begun is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from etl.web.fetch import Fetched, Fetcher, checked_url
from models.images import StatusError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pace:
    """How a host is treated."""

    per_host: int = 2
    """Connections at a time."""
    delay_seconds: float = 0.0
    """Between the starts of two requests; a Crawl-delay in robots.txt makes it longer."""


@dataclass
class _Host(Generic[Item]):
    """The queue of one host."""

    items: Iterator[tuple[str, Item]]
    delay_seconds: float
    next_at: float = 0.0

    async def turn(self) -> None:
        """Waits until the host may be asked again."""
        now = time.monotonic()
        start = max(now, self.next_at)
        self.next_at = start + self.delay_seconds
        if start > now:
            await asyncio.sleep(start - now)


async def fetch_all(
    queues: Iterable[list[tuple[str, Item]]], fetcher: Fetcher, pace: Pace,
    done: Callable[[Item, Fetched], Awaitable[None]],
) -> None:  # fmt: skip
    """Calls `done` once for every item of every queue, each of which holds (URL, item) of one host."""
    gate = asyncio.Semaphore(fetcher.limits.concurrency)

    async def serve(host: _Host[Item]) -> None:
        for url, item in host.items:
            await host.turn()
            async with gate:
                await done(item, await fetcher.fetch(url))

    async def visit(queue: list[tuple[str, Item]]) -> None:
        host = _Host(iter(queue), pace.delay_seconds)
        if fetcher.limits.is_polite:
            async with gate:
                host.delay_seconds = max(host.delay_seconds, await _crawl_delay(fetcher, queue[0][0]))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(pace.per_host, len(queue))):
                group.create_task(serve(host))

    async with asyncio.TaskGroup() as group:
        for queue in queues:
            group.create_task(visit(queue))


async def _crawl_delay(fetcher: Fetcher, url: str) -> float:
    """That of a URL's origin; 0 of one that cannot be reached, whose images will say so."""
    try:
        return (await fetcher.manners(checked_url(url))).delay_seconds
    except StatusError:
        return 0.0
