"""Pairs -> batches of pixels and tokens, read and decoded in threads ahead of the model. Touches shards (reads).

What a batch holds follows from the draw alone, not from threads or from what was read before. A pair that does not
decode is replaced by the next one in uid order and counted: a broken image costs its own place, never a run.

Dimensions: B rows of a batch, C channels, S side of the tower's input, L tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.augment import augment
from models.images import ImageError
from models.order import Draw
from models.pairs import DataError, Pairs, Pointer
from models.pixels import Pixels, decode, preprocess
from models.recipe import Augmentation
from models.records import EncoderRecord

BLOCK_ROWS = 16
"""Rows of one hand-over between threads."""
MAX_BAD_FRACTION = 0.05
"""Of the pairs read, above which a run ends: something else is wrong than a picture here and there."""
_MIN_BAD = 20

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts -> tokens, int64, shape BL. Called from several threads."""


class PixelSource:
    """Pairs as the loop reads them."""

    def __init__(
        self,
        pairs: Pairs,
        record: EncoderRecord,
        tokenize: Tokenize,
        *,
        seed: int,
        augmentation: Augmentation | None = None,
        num_threads: int = 1,
        batches_ahead: int = 2,
    ) -> None:
        """`augmentation` None: what the encoder does with a picture, and no more."""
        self.bad: dict[str, str] = {}
        """uid -> why, of the pairs met so far that were replaced."""
        self.wait_seconds = 0.0
        """How long the loop has waited for batches."""
        self._pairs, self._config, self._tokenize = pairs, record.preprocessing, tokenize
        self._max_chars = record.tokenizer.max_chars
        self._seed, self._augmentation = seed, augmentation
        self._num_threads, self._batches_ahead = num_threads, batches_ahead
        self._num_read = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def batches(self, draws: Iterable[Draw], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """(images_BCSS, float32 and normalised; tokens_BL), for each draw.

        Raises:
            DataError: a shard that cannot be read, or too many pairs that do not decode.
        """
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode"))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            flying: deque[list[Future[tuple[list[Pixels], Tensor]]]] = deque()
            for rows_B, positions_B in draws:
                blocks = range(0, len(rows_B), BLOCK_ROWS)
                parts = [(rows_B[at : at + BLOCK_ROWS], positions_B[at : at + BLOCK_ROWS]) for at in blocks]
                flying.append([pool.submit(self._block, *part) for part in parts])
                if len(flying) > self._batches_ahead:
                    yield self._assembled(flying.popleft(), device)
            while flying:
                yield self._assembled(flying.popleft(), device)

    def _assembled(self, blocks: list[Future[tuple[list[Pixels], Tensor]]], device: str) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        done = [block.result() for block in blocks]
        self.wait_seconds += time.perf_counter() - started
        pixels_BCSS = torch.from_numpy(np.stack([image for images, _ in done for image in images]))
        tokens_BL = torch.cat([tokens for _, tokens in done])
        if torch.device(device).type == "cuda":  # through pinned memory, so that the copy runs beside the model
            pixels_BCSS, tokens_BL = pixels_BCSS.pin_memory(), tokens_BL.pin_memory()
        pixels_BCSS, tokens_BL = (part.to(device, non_blocking=True) for part in (pixels_BCSS, tokens_BL))
        return self._normalised(pixels_BCSS), tokens_BL

    def _normalised(self, pixels_BCSS: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=pixels_BCSS.device).view(1, 3, 1, 1)
            for values in (self._config.mean, self._config.std)
        )
        return (pixels_BCSS.float() / 255 - mean) / std

    def _block(self, rows: Any, positions: Any) -> tuple[list[Pixels], Tensor]:
        found = [self._pair(int(row), int(at)) for row, at in zip(rows, positions, strict=True)]
        return [image for image, _ in found], self._tokenize([text[: self._max_chars] for _, text in found])

    def _pair(self, row: int, position: int) -> tuple[Pixels, str]:
        """The pair at `row`, or the next one that decodes."""
        for number in range(len(self._pairs)):
            pointer = self._pairs[(row + number) % len(self._pairs)]
            self._num_read += 1
            try:
                return self._image(pointer, position), pointer.text
            except ImageError as error:
                self.bad[pointer.uid] = str(error)
            if len(self.bad) > max(_MIN_BAD, MAX_BAD_FRACTION * self._num_read):
                break
        some = "; ".join(f"{uid}: {why}" for uid, why in list(self.bad.items())[:3])
        raise DataError(
            f"wanted at most {MAX_BAD_FRACTION:.0%} of the pairs broken; found {len(self.bad)} of {self._num_read} "
            f"({some}); fix: train on a selection of pairs with status ok, and on shards that have not changed since"
        )

    def _image(self, pointer: Pointer, position: int) -> Pixels:
        data = pointer.read()
        if pointer.sha256 is not None and hashlib.sha256(data).digest() != pointer.sha256:
            raise ImageError("read_error", "its bytes are not those that were ingested")
        if self._augmentation is None:
            return preprocess(data, self._config)
        smallest_px = self._config.size_px if self._config.decode == "scaled" else None
        return augment(decode(data, smallest_px=smallest_px), self._augmentation, self._config, self._seed, position)
