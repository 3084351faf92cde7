"""A loopback S3 server, moto's own over HTTP, that remembers what it was asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "release"


class Request(NamedTuple):
    method: str
    key: str
    """Without the bucket; '' where it was asked for what it holds."""
    num_bytes: int
    """Of the body that was sent."""
    signed_by: str
    """The id of the access key; '' of an anonymous request."""


class Server:
    def __init__(self, url: str) -> None:
        self.url, self.requests = url, list[Request]()

    @property
    def storage(self) -> dict:
        """What a config says of it."""
        return {"s3": {"endpoint_url": self.url, "anon": True}}

    def put(self, folder: Path) -> None:
        """The folder's files as objects that everybody may read."""
        how = {"endpoint_url": self.url, "key": "owner", "secret": "anything", "skip_instance_cache": True}
        files = s3fs.S3FileSystem(**how, s3_additional_kwargs={"ACL": "public-read"})
        if not files.exists(BUCKET):
            files.mkdir(BUCKET)
        files.put(f"{folder}/", f"{BUCKET}/", recursive=True)
        self.requests.clear()

    def num_bytes(self, ending: str) -> int:
        return sum(request.num_bytes for request in self.requests if request.key.endswith(ending))


class Quiet(WSGIRequestHandler):
    def log(self, *args) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    moto = DomainDispatcherApplication(create_backend_app)

    def counted(environ, start_response):
        key = environ["PATH_INFO"].removeprefix("/").partition("/")[2]
        signed_by = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]

        def started(status, headers, *more):
            size = 0 if environ["REQUEST_METHOD"] == "HEAD" else int(dict(headers).get("Content-Length", 0))
            server.requests.append(Request(environ["REQUEST_METHOD"], key, size, signed_by))
            return start_response(status, headers, *more)

        return moto(environ, started)

    listening = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
    server = Server(f"http://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
