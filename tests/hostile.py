"""A server on loopback that misbehaves on request, one path a vice, and remembers what it was asked for."""

import gzip
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers import picture

PICTURE = picture(1, (40, 30), "JPEG")
Answer = Callable[["Handler"], None]


@dataclass
class Site:
    """What a server answers, and what it was asked."""

    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[float, str]] = field(default_factory=list)
    """(time, path)"""
    agents: set[str] = field(default_factory=set)
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def asked(self, path: str) -> int:
        return sum(asked == path for _, asked in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        self.site.requests.append((time.monotonic(), self.path))
        self.site.agents.add(self.headers.get("User-Agent", ""))
        answer = self.site.answers.get(self.path.partition("?")[0], status(404))
        with suppress(OSError):  # the client went away
            answer(self)

    def send(self, body: bytes, code: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def log_message(self, *args) -> None:
        pass


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    return lambda handler: handler.send(body, code, **headers)


def image(data: bytes = PICTURE, **headers: str) -> Answer:
    return lambda handler: handler.send(data, **({"Content_Type": "image/jpeg"} | headers))


def redirect(to: str, code: int = 302) -> Answer:
    return status(code, Location=to)


def drip(handler: Handler) -> None:
    """A byte now and then, for ever."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\xff")
        handler.wfile.flush()
        time.sleep(0.05)


def slow_head(handler: Handler) -> None:
    """A header that never ends."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X: y\r\n")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 16))


def silent(handler: Handler) -> None:
    time.sleep(30)


def garbage(handler: Handler) -> None:
    handler.wfile.write(b"\0\1\2 nothing like HTTP\r\n\r\n")
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def flaky(times: int, then: Answer, **headers: str) -> Answer:
    """503 so many times, then an answer."""
    left = [times]

    def answer(handler: Handler) -> None:
        left[0] -= 1
        (status(503, **headers) if left[0] >= 0 else then)(handler)

    return answer


def bomb() -> bytes:
    return gzip.compress(bytes(64 << 20), 1)


def with_exif() -> bytes:
    """A JPEG with EXIF: a GPS position, and turned by 90 degrees."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a secret place"
    exif.get_ifd(0x8825)[1] = "N"
    made = Image.open(io.BytesIO(picture(5, (40, 30), "PNG")))
    made.save(file := io.BytesIO(), "JPEG", exif=exif)
    return file.getvalue()


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    handler = type("OfSite", (Handler,), {"site": site})
    ThreadingHTTPServer.request_queue_size = 256
    server = ThreadingHTTPServer((site.host, site.port), handler)
    server.daemon_threads = True
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
