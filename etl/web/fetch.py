"""One URL to bytes and a status, or a status that says why not. Touches the network; no Spark, no files.

Every hop is checked: its URL, its address where it is dialled (`etl/web/addresses.py`), what robots.txt says of it. One
deadline holds for all of a URL's attempts. Bytes are counted as they come and as they unfold.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from yarl import URL

from etl.intake.blocklists import Blocklist
from etl.web.addresses import Network, Resolve, connector, system_resolve
from etl.web.answers import retry_after, status_of, unfolded
from etl.web.manners import Manners, ask
from etl.web.opt_out import said_by_headers
from models.images import StatusError

REDIRECTS = frozenset({301, 302, 303, 307, 308})
PASSING = frozenset({"dns_error", "connect_error", "timeout", "cut"})
"""Statuses that another attempt may mend; so may the answers 408, 425, 429 and 500 to 599."""
PASSING_ANSWERS = frozenset({408, 425, 429, *range(500, 600)})
MAX_URL_CHARS = 4096
ODD_IPV4 = re.compile(r"(?!(?:(?:0|[1-9]\d*)\.){3}(?:0|[1-9]\d*)$)^(?:[^:]*\.)?(?:\d+|0x[\da-f]*)\.?$", re.IGNORECASE)
"""Hosts that end in a number and are no dotted quad (127.2, 0177.0.0.1, 0x7f000002): readers differ."""
PIECE = 64 << 10


@dataclass(frozen=True)
class Limits:
    """How a fetch behaves; see `etl/stages/download.py` for what each is."""

    user_agent: str = "dfn-etl"
    deadline_seconds: float = 30.0
    connect_seconds: float = 10.0
    max_bytes: int = 20 << 20
    max_redirects: int = 5
    max_attempts: int = 3
    backoff_seconds: float = 1.0
    is_polite: bool = True
    allowed: tuple[Network, ...] = ()
    concurrency: int = 64

    @property
    def agent_name(self) -> str:
        """The product token of the user agent: what robots.txt and headers call us by."""
        return self.user_agent.split("/")[0].split()[0] if self.user_agent.split() else "dfn-etl"


@dataclass(frozen=True)
class Fetched:
    """How one URL ended. `data` only where status is ok."""

    status: str
    reason: str | None = None
    data: bytes = b""
    http_status: int | None = None
    final_url: str | None = None
    num_attempts: int = 0
    evidence: str | None = None
    retry_after_seconds: float | None = None
    """What the last answer asked for."""


class _EndError(StatusError):
    """The end of an attempt, with what is known of the answer."""

    def __init__(self, status: str, reason: str, **known: Any) -> None:
        super().__init__(status, reason)
        self.known = known


@dataclass
class Fetcher:
    """An HTTP client for one task. `async with` it."""

    limits: Limits = Limits()
    blocklist: Blocklist = field(default_factory=Blocklist)
    resolve: Resolve = system_resolve
    tls: ssl.SSLContext | None = None
    _session: aiohttp.ClientSession | None = None
    _manners: dict[str, asyncio.Task[Manners]] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)
    """Host -> when it may be asked again, since it said so (Retry-After)."""

    async def __aenter__(self) -> Fetcher:
        limits = self.limits
        timeout = aiohttp.ClientTimeout(total=None, connect=limits.connect_seconds, sock_connect=limits.connect_seconds)
        more: dict[str, Any] = {} if self.tls is None else {"ssl": self.tls}
        self._session = aiohttp.ClientSession(
            connector=connector(limits.allowed, resolve=self.resolve, limit=limits.concurrency, **more),
            timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=False,
            headers={"User-Agent": limits.user_agent, "Accept-Encoding": "identity", "Accept": "image/*, */*;q=0.1"},
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._manners.values():
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str) -> Fetched:
        """All attempts at one URL. Never raises; never takes longer than the deadline."""
        found, ends_at = Fetched("timeout"), time.monotonic() + self.limits.deadline_seconds
        host = host_of(url)
        for attempt in range(self.limits.max_attempts):
            asked = self._not_before.get(host, 0.0) - time.monotonic()
            pause = max(asked, self._backoff(attempt))
            if time.monotonic() + pause >= ends_at:
                if asked < pause:
                    return found
                wait = f"the host asks to wait {pause:.0f} s, which is past the deadline"
                return replace(found, status="http_error", reason="; ".join(filter(None, (found.reason, wait))))
            await asyncio.sleep(max(0.0, pause))
            before = found.num_attempts
            found = await self._attempt(url, ends_at, before)
            if found.retry_after_seconds:
                self._not_before[host] = time.monotonic() + found.retry_after_seconds
            is_passing = found.status in PASSING or found.http_status in PASSING_ANSWERS
            # Of a host that does not even give its robots.txt, no other attempt is made for each image.
            if not is_passing or found.num_attempts == before:
                break
        return found

    def _backoff(self, attempt: int) -> float:
        return self.limits.backoff_seconds * 2 ** (attempt - 1) if attempt else 0.0

    async def _attempt(self, url: str, ends_at: float, before: int) -> Fetched:
        count = [before]
        try:
            async with asyncio.timeout(max(0.0, ends_at - time.monotonic())):
                return await self._hops(url, count)
        except _EndError as stop:
            return Fetched(stop.status, stop.reason, num_attempts=count[0], **stop.known)
        except TimeoutError:
            return Fetched("timeout", f"not done in {self.limits.deadline_seconds:g} s", num_attempts=count[0])
        except Exception as error:
            status, reason = status_of(error)
            return Fetched(status, reason, num_attempts=count[0])

    async def _hops(self, url: str, count: list[int]) -> Fetched:
        """Follows redirects by hand. `count[0]`: attempts that sent a request for the image."""
        at, seen = checked_url(url), set[str]()
        for hop in range(self.limits.max_redirects + 1):
            if str(at) in seen:
                raise _EndError("too_many_redirects", "in a circle")
            seen.add(str(at))
            if (why := self.blocklist.of_url(str(at)) or self.blocklist.of_url(url)) is not None:
                raise _EndError("blocklisted", why)
            if self.limits.is_polite:
                manners = await self.manners(at)
                if (evidence := manners.objection(at, self.limits.agent_name)) is not None:
                    raise _EndError("opted_out", "as the host asks", evidence=evidence)
            count[0] += hop == 0
            async with self._open(at) as response:
                location = response.headers.get("Location")
                if response.status in REDIRECTS and location:
                    at = checked_url(location, at)
                    continue
                return Fetched("ok", None, await self._body(response), response.status, str(at), count[0])
        raise _EndError("too_many_redirects", f"more than {self.limits.max_redirects}")

    async def manners(self, url: URL) -> Manners:
        """What the URL's origin asks for, found out once. Raises StatusError."""
        origin = url.origin()
        task = self._manners.get(str(origin))
        if task is None:
            task = self._manners[str(origin)] = asyncio.create_task(ask(self, origin))
        return await asyncio.shield(task)

    async def small_file(self, url: URL, max_bytes: int) -> tuple[int, bytes]:
        """(status, at most so much of the body), after redirects. Raises StatusError."""
        at = url
        try:
            async with asyncio.timeout(self.limits.deadline_seconds / 3):
                for _ in range(self.limits.max_redirects + 1):
                    async with self._open(at) as response:
                        location = response.headers.get("Location")
                        if response.status in REDIRECTS and location:
                            at = checked_url(location, at)
                            continue
                        return response.status, await _start(response, max_bytes) if response.ok else b""
            return 404, b""
        except StatusError:
            raise
        except TimeoutError:
            raise StatusError("timeout", f"{url.raw_path} did not come") from None
        except Exception as error:
            status, reason = status_of(error)
            raise StatusError(status, f"{url.raw_path}: {reason}") from None

    def _open(self, url: URL) -> Any:
        if self._session is None:
            raise RuntimeError("a fetcher is used within `async with`")
        return self._session.get(url, allow_redirects=False)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """The image's bytes. Raises _EndError for any other answer, before its body is read."""
        known = {"http_status": response.status, "final_url": str(response.url)}
        if response.status != 200:
            wait = retry_after(response.headers, time.time())
            raise _EndError("http_error", f"status {response.status}", retry_after_seconds=wait, **known)
        if self.limits.is_polite:
            evidence = said_by_headers(response.headers.items(), self.limits.agent_name)
            if evidence is not None:
                raise _EndError("opted_out", "as the answer says", evidence=evidence, **known)
        cap = self.limits.max_bytes
        if (response.content_length or 0) > cap:
            raise _EndError("too_large", f"{response.content_length} bytes; the cap is {cap}", **known)
        parts, size = [], 0
        async for piece in response.content.iter_chunked(PIECE):
            parts.append(piece)
            size += len(piece)
            if size > cap:
                raise _EndError("too_large", f"more than {cap} bytes", **known)
        try:
            return unfolded(b"".join(parts), response.headers.get("Content-Encoding", ""), cap)
        except StatusError as error:
            raise _EndError(error.status, error.reason, **known) from None


async def _start(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """At most so much of a body, and so much where there is as much: one read gives what came just now."""
    found = b""
    async for piece in response.content.iter_chunked(PIECE):
        found += piece
        if len(found) >= max_bytes:
            break
    return found[:max_bytes]


def host_of(url: str) -> str:
    """Whose pace a URL keeps to; '' of what is no URL."""
    try:
        return URL(url).raw_host or ""
    except ValueError:
        return ""


def checked_url(url: str, base: URL | None = None) -> URL:
    """An absolute http or https URL. Raises StatusError `unsupported_url`, which does not repeat it."""
    problem = "no absolute URL of http or https"
    try:
        found = URL(url.strip()) if len(url) <= MAX_URL_CHARS else None
        if found is not None and base is not None:
            found = base.join(found)
        if found is not None and found.scheme in ("http", "https") and found.raw_host:
            if found.user is not None or found.password is not None:
                problem = "credentials in it"
            elif (found.port or 0) < 1024 and found.port not in (80, 443):
                problem = f"port {found.port}, which is another service's"
            elif ODD_IPV4.search(found.raw_host):
                problem = "an address of IPv4 in another form than four numbers"
            else:
                return found.with_fragment(None)
    except (ValueError, TypeError):
        pass
    raise _EndError("unsupported_url", problem)
