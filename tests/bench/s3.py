"""An S3 server on loopback over a folder whose subfolders are buckets: `python -m tests.bench.s3 FOLDER`.

It serves ranges from the files as they are (localbucket); the tests' server, moto, would read each object whole for
each range of it. On standard output: its URL, then a line per request: METHOD KEY BYTES.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.bench.measure import TICK_SECONDS


class Server:
    """The process, and what it was asked for."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen([sys.executable, "-m", "tests.bench.s3", str(folder)], stdout=out)
        while not (lines := log.read_text().splitlines()):
            if self._process.poll() is not None:
                raise RuntimeError("the S3 server did not start")
        self.url = lines[0]

    def cpu_seconds(self) -> float:
        """Its own so far: to be left out of what a side took."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_SECONDS

    def asked(self) -> tuple[Counter[str], Counter[str]]:
        """Requests, and bytes sent, by method and kind of file; `GET` alone lists."""
        requests, sent = Counter[str](), Counter[str]()
        for line in self._log.read_text().splitlines()[1:]:
            method, key, size = line.split(" ")
            kind = f"{method} {Path(key.partition('?')[0]).suffix}".strip()
            requests[kind] += 1
            sent[kind] += int(size)
        return requests, sent

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[Server]:
    server = Server(folder, log)
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    from localbucket import S3Handler

    class Handler(S3Handler):
        num_bytes = 0

        def send_header(self, keyword: str, value: str) -> None:
            if keyword == "Content-Length":
                self.num_bytes = 0 if self.command == "HEAD" else int(value)
            super().send_header(keyword, value)

        def end_headers(self) -> None:
            sys.stdout.write(f"{self.command} {self.path} {self.num_bytes}\n")
            sys.stdout.flush()
            super().end_headers()

        def log_message(self, format: str, *args) -> None:
            pass

    Handler.data_root = Path(sys.argv[1]).resolve()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
