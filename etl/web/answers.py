"""What an answer, or an error of aiohttp, means: statuses, Retry-After, content encodings. Pure functions."""

from __future__ import annotations

import email.utils
import ssl
import zlib
from collections.abc import Mapping

import aiohttp

from etl.web.addresses import blocked_by
from models.images import StatusError, one_line


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where there is none that parses."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now) if value else None
    except (ValueError, TypeError, OverflowError):
        return None


def unfolded(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Bytes without their content encoding, which nobody asked for. Raises StatusError."""
    kind = encoding.strip().lower()
    if kind in ("", "identity"):
        return data
    if kind not in ("gzip", "x-gzip", "deflate"):
        raise StatusError("http_error", f"content encoding {kind[:20]}")
    try:
        inflate = zlib.decompressobj(47 if kind != "deflate" or data[:1] == b"x" else -15)
        found = inflate.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise StatusError("http_error", f"content encoding {kind}: {error}") from None
    if len(found) > max_bytes:
        raise StatusError("too_large", f"more than {max_bytes} bytes once unfolded")
    if not inflate.eof:
        raise StatusError("cut", f"{kind} that ends too early")
    return found


def status_of(error: Exception) -> tuple[str, str]:
    """(status, reason) of what aiohttp raises; the reason holds no URL."""
    if (blocked := blocked_by(error)) is not None:
        return "blocked_address", one_line(str(blocked))
    if isinstance(error, StatusError):
        return error.status, error.reason
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns_error", one_line(f"{error.host}: {error.strerror or name}")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "tls_error", name
    if isinstance(error, aiohttp.ClientPayloadError):
        return "cut", "the body is shorter than its declared length"
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return "unsupported_url", name
    if isinstance(error, aiohttp.ClientResponseError):
        return "http_error", one_line(f"no valid answer: {error.message}")
    if isinstance(error, TimeoutError):
        return "timeout", "no connection in time" if isinstance(error, aiohttp.ServerTimeoutError) else name
    if isinstance(error, OSError | aiohttp.ClientError):
        return "connect_error", one_line(f"{name}: {getattr(error, 'strerror', None) or ''}")
    return "connect_error", name
