"""WARC and WAT files by hand, byte for byte: what the tests of the web pool collect."""

import gzip
import json
from pathlib import Path

HTML = "text/html; charset=utf-8"


def record(url: str, payload: bytes, kind: str = "response", content_type: str = "application/http; msgtype=response",
           length: int | None = None) -> bytes:  # fmt: skip
    lines = [
        "WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Date: 2024-05-18T01:58:10Z",
        "WARC-Record-ID: <urn:uuid:12345678-1234-5678-1234-567812345678>", f"Content-Type: {content_type}",
        f"Content-Length: {len(payload) if length is None else length}",
    ]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + payload + b"\r\n\r\n"


def page(url: str, body: str | bytes, content_type: str = HTML, status: int = 200, length: int | None = None,
         **headers: str) -> bytes:  # fmt: skip
    """A response record; header names with _ for -."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} OK", f"Content-Type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return record(url, "\r\n".join([*lines, "", ""]).encode() + data, length=length)


def wat(url: str, links: list[dict], headers: dict | None = None, **head: object) -> bytes:
    response = {"Headers": headers or {}, "HTML-Metadata": {"Head": head, "Links": links}}
    envelope = {
        "WARC-Header-Metadata": {"WARC-Target-URI": url},
        "Payload-Metadata": {"HTTP-Response-Metadata": response},
    }
    return record(url, json.dumps({"Envelope": envelope}).encode(), "metadata", "application/json")


def write_crawl(path: Path, *records: bytes) -> Path:
    """`.gz`: a gzip member a record, as Common Crawl has it; else plain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_gzip = path.suffix == ".gz"
    path.write_bytes(b"".join(gzip.compress(part, 1) if is_gzip else part for part in records))
    return path
