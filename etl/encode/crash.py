"""Decoding in a child process, one image at a time, so that a decoder that crashes costs one row and not the job.

For tasks that Spark runs again: what killed the worker the first time may kill it again. Touches no file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import IO, Any

import numpy as np
from pyspark import cloudpickle

from etl.encode.feed import Decode
from models.images import ImageError

LENGTH_BYTES = 8


class ChildDecoder:
    """A Decode that runs in a child. A crash gives `decoder_crash`, and the next image gets a new child."""

    def __init__(self, decode: Decode) -> None:
        self._decode: bytes = cloudpickle.dumps(decode)  # type: ignore[no-untyped-call]
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, data: bytes) -> tuple[Any, ...]:
        """What `decode` gives: uint8 arrays. Raises ImageError, `decoder_crash` where the child died of this image."""
        child = self._child or self._start()
        assert child.stdin is not None  # noqa: S101 - both are pipes
        assert child.stdout is not None  # noqa: S101
        try:
            _send(child.stdin, data)
            answer = json.loads(_receive(child.stdout))
            if "status" in answer:
                raise ImageError(answer["status"], answer["reason"])
            return tuple(np.frombuffer(_receive(child.stdout), np.uint8).reshape(shape) for shape in answer["shapes"])
        except (EOFError, BrokenPipeError):
            code = child.wait()
            self._child = None
            raise ImageError("decoder_crash", f"the decoder died: exit code {code}") from None

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # code that came by --py-files too
        command = [sys.executable, "-m", "etl.encode.crash"]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._child.stdin is not None  # noqa: S101
        _send(self._child.stdin, self._decode)
        return self._child


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Raises EOFError where the other side is gone."""
    head = pipe.read(LENGTH_BYTES)
    size = int.from_bytes(head, "big")
    data = pipe.read(size) if len(head) == LENGTH_BYTES else b""
    if len(head) < LENGTH_BYTES or len(data) < size:
        raise EOFError
    return data


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The child: a Decode comes first (from the parent alone, which is us), then one image after the other."""
    decode: Decode = cloudpickle.loads(_receive(requests))
    while True:
        try:
            data = _receive(requests)
        except EOFError:
            return
        try:
            arrays = decode(data)
        except ImageError as error:
            _send(answers, json.dumps({"status": error.status, "reason": error.reason}).encode())
            continue
        _send(answers, json.dumps({"shapes": [array.shape for array in arrays]}).encode())
        for array in arrays:
            _send(answers, np.ascontiguousarray(array).tobytes())


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
