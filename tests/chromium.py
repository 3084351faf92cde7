"""Debian's Chromium, headless, over its DevTools pipe: what a page did when it was opened, and pictures of it."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-pipe", "--force-color-profile=srgb",
)  # fmt: skip
ANSWER_SECONDS = 120


def binary() -> str:
    """Its path. Where there is none the test is skipped and says so: it is no part of the set-up; CI installs it."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return found or pytest.skip("wanted chromium on the PATH; found none; fix: apt-get install chromium")


@dataclass
class Opened:
    """A page that was opened from disk."""

    console: list[str] = field(default_factory=list)
    """Messages, errors and violations of its policy."""
    requests: list[str] = field(default_factory=list)
    """URLs that it asked for, without its own and those of its data."""
    dialogs: list[str] = field(default_factory=list)
    first_paint_seconds: float | None = None


def _moved(number: int) -> int:
    copy = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(number)
    return copy


class Browser:
    """Use it in a `with`. One page at a time."""

    def __init__(self, profile: Path) -> None:
        self._profile = profile

    def __enter__(self) -> "Browser":
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        # Chromium reads 3 and writes 4: copies from 10 on can take these places in any order.
        their_in, their_out = (_moved(number) for number in (their_in, their_out))
        command = ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "bash", binary(), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile}", "about:blank"], pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(their_in), os.close(their_out)
        self._number, self._read, self._events = 0, b"", []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._session = None
            self.call("Browser.close")
        os.close(self._out), os.close(self._in)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    _session: str | None = None

    def call(self, method: str, **params: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while (answer := self._message()).get("id") != self._number:
            self._events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _message(self) -> dict:
        ends = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], max(0.0, ends - time.monotonic()))[0], "chromium does not answer"
            found = os.read(self._in, 1 << 20)
            assert found, "chromium has ended"
            self._read += found
        first, _, self._read = self._read.partition(b"\0")
        return json.loads(first)

    def open(self, page: Path) -> Opened:
        """A page, until it has loaded and painted; its console, requests and dialogs."""
        self._events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._message())
        opened = Opened(first_paint_seconds=self.first_paint())
        own = (page.absolute().as_uri(), "data:", "about:")
        for event in self._events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.consoleAPICalled":
                opened.console.append(str(params["args"]))
            elif event.get("method") == "Log.entryAdded":
                opened.console.append(params["entry"]["text"])
            elif event.get("method") == "Runtime.exceptionThrown":
                opened.console.append(params["exceptionDetails"]["text"])
            elif event.get("method") == "Page.javascriptDialogOpening":
                opened.dialogs.append(params["message"])
            elif event.get("method") == "Network.requestWillBeSent":
                opened.requests += [url for url in [params["request"]["url"]] if not url.startswith(own)]
        return opened

    def evaluate(self, expression: str) -> object:
        """A value from the page, by JavaScript that is not the page's."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def first_paint(self) -> float | None:
        """Seconds from the start of navigation; None where nothing was painted."""
        painted = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        wait = f"new Promise(done => {{ let n = 0; const look = () => {{ const t = {painted};"
        wait += " t || n++ > 200 ? done(t) : setTimeout(look, 25) }; look() })"
        found = self.evaluate(wait)
        return float(found) / 1000 if found else None

    def screenshot(self, path: Path, *, width: int = 1280, is_dark: bool = False, height: int = 0) -> Path:
        """All of the page that is open, or its first `height` pixels."""
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}])  # fmt: skip
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": min(size["height"], height or 16_000), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path
