"""Which addresses may be connected to, and the connector that dials those only. Touches the network through aiohttp.

The one check stands where a socket is made, on the very address that is dialled: so it holds for every hop, for numbers
in place of names however they are written, and against a name whose address changes between a check and a connection.
Names are looked up to allowed addresses only, so that of several the good ones are tried.
Ours, since what aiohttp has is a place for it and no policy.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""(host, port) -> its addresses. Raises OSError."""

REFUSED = tuple(map(ipaddress.ip_network, (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)))  # fmt: skip
"""Of IANA's special-purpose registries (RFC 6890 and after): what is not, or need not be, a public host. Metadata
services of clouds are in 169.254/16 and 100.64/10; 2002::/16 and 2001::/32 hold IPv4 addresses."""
GLOBAL_V6 = ipaddress.ip_network("2000::/3")
"""Of IPv6 nothing else is a public host: not loopback, link-local, site-local, multicast, IPv4-mapped, nor NAT64."""
MAX_HOST_CHARS = 253


class BlockedAddressError(OSError):
    """Nothing was sent: there is no address that may be connected to."""


def networks(names: Sequence[str]) -> tuple[Network, ...]:
    """Raises ValueError for what is no network."""
    return tuple(ipaddress.ip_network(name) for name in names)


def is_allowed(address: str, allowed: Sequence[Network] = ()) -> bool:
    """Whether an address may be connected to: a public one, or one of `allowed`. False for what is no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if any(found in network for network in allowed):
        return "%" not in address
    is_public = found.version == 4 or found in GLOBAL_V6
    return is_public and "%" not in address and not any(found in network for network in REFUSED)


async def system_resolve(host: str, port: int) -> list[str]:
    """As the system resolves names; numbers in any spelling that it knows."""
    import asyncio

    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Resolver(AbstractResolver):
    """Names to the addresses that may be dialled; aiohttp caches its answers."""

    def __init__(self, allowed: Sequence[Network], resolve: Resolve) -> None:
        self._allowed, self._resolve = allowed, resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if len(host) > MAX_HOST_CHARS:
            raise OSError("a host name that is too long")
        found = await self._resolve(host, port)
        good = [address for address in found if is_allowed(address, self._allowed)]
        if found and not good:
            raise BlockedAddressError(f"{host} is at {', '.join(found[:3])}")
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP, flags=socket.AI_NUMERICHOST,
            )
            for address in good
        ]  # fmt: skip

    async def close(self) -> None:
        pass


def connector(
    allowed: Sequence[Network] = (), *, resolve: Resolve = system_resolve, dns_seconds: int = 600, **limits: Any
) -> aiohttp.TCPConnector:
    """Dials allowed addresses only; raises BlockedAddressError (within aiohttp's own error) for others, unsent."""

    def guarded_socket(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not is_allowed(str(address[0]), allowed):
            raise BlockedAddressError(f"{address[0]} may not be connected to")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    return aiohttp.TCPConnector(
        resolver=_Resolver(allowed, resolve), socket_factory=guarded_socket, ttl_dns_cache=dns_seconds,
        use_dns_cache=True, **limits,
    )  # fmt: skip


def blocked_by(error: BaseException | None) -> BlockedAddressError | None:
    """The refusal that an error of aiohttp was made of, if any."""
    for _ in range(10):
        if error is None or isinstance(error, BlockedAddressError):
            return error
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return None
