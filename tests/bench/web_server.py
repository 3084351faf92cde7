"""Images on loopback: `python -m tests.bench.web_server FOLDER NUM_HOSTS NUM_DEAD`. Prints its port.

127.1.0.1 and so on are hosts that answer /N.jpg, robots.txt with 404; 127.2.0.1 and so on are dead: they take a
connection and never say anything. It goes on without its parent, so that its CPU time is not counted as a side's.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web


def live(number: int) -> str:
    return f"127.1.0.{number + 1}"


def dead(number: int) -> str:
    return f"127.2.0.{number + 1}"


async def serve(folder: Path, num_hosts: int, num_dead: int) -> None:
    images = {f"/{path.name}": path.read_bytes() for path in folder.glob("*.jpg")}

    async def answer(request: web.Request) -> web.Response:
        data = images.get(request.path)
        if data is None:
            return web.Response(status=404)
        return web.Response(body=data, content_type="image/jpeg")

    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = 0
    for number in range(num_hosts):
        site = web.TCPSite(runner, live(number), port, backlog=1024)
        await site.start()
        port = port or runner.addresses[0][1]

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    for number in range(num_dead):
        await asyncio.start_server(say_nothing, dead(number), port, backlog=1024)
    print(port, os.getpid(), flush=True)
    os.close(1)
    await asyncio.sleep(3600)


@contextmanager
def serving(folder: Path, num_hosts: int, num_dead: int) -> Iterator[int]:
    """The port."""
    command = [sys.executable, "-m", "tests.bench.web_server", str(folder), str(num_hosts), str(num_dead)]
    port, pid = map(int, subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split())
    try:
        yield port
    finally:
        os.kill(pid, 15)


if __name__ == "__main__":
    if os.fork() == 0:  # the child is nobody's descendant once this process has ended
        os.setsid()
        asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
