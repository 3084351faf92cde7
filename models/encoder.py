"""Pixels and captions -> vectors: the inference form of the towers, on executors and in the registry's model.

A row's vector is the same to the bit whatever batch it lands in, on one machine: every forward pass has one fixed shape
(the last batch is padded), and the number of tokens that a caption is padded to, which decides the shape of its pass,
depends on that caption alone.

Dimensions: N rows, B rows of a batch, C channels, H height, W width, L tokens, I image vector, T text vector.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.canary import check_canaries
from models.clip import load, load_tokenizer
from models.filters import check_vectors
from models.images import MAX_PIXELS
from models.pixels import Pixels, from_pil, preprocess, resize
from models.records import EncoderRecord
from models.towers import inference_towers

__all__ = ["Encoder", "check_vectors"]

Float32 = NDArray[np.float32]

IMAGES = 0
"""What batches of images go by where batches of captions go by their number of tokens."""


class Encoder:
    """The towers on one device, in the record's precision."""

    notes: tuple[str, ...]
    """A line for each tower that runs open_clip's own, slower forward pass, saying why."""
    num_oom_halvings: int
    """How often a batch did not fit into memory. It is halved for the rest of the process; vectors of its rows may then
    differ from those in whole batches by rounding."""

    def __init__(
        self, model: Any, tokenizer: Any, record: EncoderRecord, device: str, max_pixels: int, *, compile: bool = False
    ) -> None:
        self.record, self.num_oom_halvings = record, 0
        self._towers = inference_towers(model, record, device=device, compile=compile)
        self.notes = self._towers.notes
        self._tokenizer, self._device, self._max_pixels = tokenizer, torch.device(device), max_pixels
        self._shape_CHW = (3, record.preprocessing.size_px, record.preprocessing.size_px)
        self._smaller_batches: dict[int, int] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "cpu",
        num_threads: int = 1,
        max_pixels: int = MAX_PIXELS,
        compile: bool = False,
    ) -> Self:
        """Reads a folder of `models.clip`, weights checked against their sha256.

        Args:
            num_threads: intra-op threads of this process; more than one on a shared machine spins.
            compile: `torch.compile` the towers, at the first batch.

        Raises:
            WeightsError: missing, cut or altered files; canaries whose vectors are not those that were kept.
        """
        torch.set_num_threads(num_threads)
        model, record = load(folder)
        encoder = cls(model, load_tokenizer(folder, record), record, device, max_pixels, compile=compile)
        check_canaries(folder, encoder)
        return encoder

    @property
    def device(self) -> str:
        return str(self._device)

    def preprocess(self, image: Image.Image | bytes) -> Pixels:
        """An image, or the bytes of a file, at the tower's size: uint8, shape CSS. Callable from many threads.

        Raises:
            ImageError: bytes that are no allowed image, or too large a one.
        """
        if isinstance(image, bytes):
            return preprocess(image, self.record.preprocessing, max_pixels=self._max_pixels)
        return resize(from_pil(image.convert("RGB")), self.record.preprocessing)

    def encode_images(self, images: Sequence[Image.Image | Pixels] | Pixels) -> Float32:
        """Vectors of images, of arrays that `preprocess` gave, or of one array NCHW: float32, shape NI.

        Of a contiguous array, only a read-only or last batch is copied on a CPU. A tower's NaN stays NaN.

        Raises:
            ValueError: an array of another shape or dtype than `preprocess` gives.
            torch.OutOfMemoryError: not even one image fits.
        """
        if isinstance(images, np.ndarray):
            self._check_pixels(images, (len(images), *self._shape_CHW))
        size = self.record.batch_size
        return self._in_batches(images, IMAGES, size, self.record.image_dim, self._encode_image_batch)

    def encode_texts(self, texts: Sequence[str]) -> Float32:
        """Vectors of captions: float32, shape NT. Equal captions are encoded once.

        Raises:
            torch.OutOfMemoryError: not even one caption fits.
        """
        unique = list(dict.fromkeys(texts))
        tokens, bucket_N = self._tokenize(unique)
        vectors_NT = np.empty((len(unique), self.record.text_dim), np.float32)
        for bucket in np.unique(bucket_N).tolist():
            rows = np.flatnonzero(bucket_N == bucket)
            size = self.record.texts_per_pass(bucket)
            vectors_NT[rows] = self._in_batches(
                tokens[rows, :bucket], bucket, size, self.record.text_dim, self._encode_text_batch
            )
        row_of = {text: row for row, text in enumerate(unique)}
        return vectors_NT[[row_of[text] for text in texts]]

    def _in_batches(
        self, rows: Any, kind: int, batch_size: int, dim: int, encode: Callable[[Any, int], Tensor]
    ) -> Float32:
        """Row by row through `encode`. `kind` (IMAGES, or a number of tokens) is what remembers a batch that fits.

        Vectors stay on the device to the end, so that a GPU computes while the next batch is made.
        """
        vectors, start = [torch.empty((0, dim), device=self._device)], 0
        batch_size = self._smaller_batches.get(kind, batch_size)
        while start < len(rows):
            batch = rows[start : start + batch_size]
            vectors_BD = self._try_batch(batch, batch_size, encode)
            if vectors_BD is None:
                batch_size = self._smaller_batches[kind] = batch_size // 2
                continue
            vectors.append(vectors_BD)
            start += len(batch)
        return torch.cat(vectors).cpu().numpy()

    def _try_batch(self, batch: Any, batch_size: int, encode: Callable[[Any, int], Tensor]) -> Tensor | None:
        """Vectors of a batch, or None where memory did not suffice for more than one row."""
        try:
            with torch.inference_mode():
                vectors_BD = encode(batch, batch_size)[: len(batch)]
                return functional.normalize(vectors_BD, dim=-1) if self.record.is_normalised else vectors_BD
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if batch_size == 1 or not _is_out_of_memory(error):
                raise
        # Behind the except block: its traceback holds the tensors that did not leave room.
        self.num_oom_halvings += 1
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _encode_image_batch(self, images: Sequence[Image.Image | Pixels] | Pixels, batch_size: int) -> Tensor:
        if isinstance(images, np.ndarray) and len(images) == batch_size and images.flags.writeable:
            return self._towers.encode_image(self._to_device(torch.from_numpy(np.ascontiguousarray(images))))
        pixels_BCHW = np.zeros((batch_size, *self._shape_CHW), np.uint8)
        for i, image in enumerate(images):
            pixels_CHW = image if isinstance(image, np.ndarray) else self.preprocess(image)
            self._check_pixels(pixels_CHW, self._shape_CHW)
            pixels_BCHW[i] = pixels_CHW
        return self._towers.encode_image(self._to_device(torch.from_numpy(pixels_BCHW)))

    def _encode_text_batch(self, tokens_NL: Tensor, batch_size: int) -> Tensor:
        padding = tokens_NL[:1].expand(batch_size - len(tokens_NL), -1)
        return self._towers.encode_text(self._to_device(torch.cat([tokens_NL, padding])))

    def _to_device(self, batch: Tensor) -> Tensor:
        """Through pinned memory to a GPU, without waiting for it."""
        return batch.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else batch

    def _check_pixels(self, pixels: Pixels, shape: tuple[int, ...]) -> None:
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise ValueError(f"wanted uint8 of {shape}; found {pixels.dtype} of {pixels.shape}")

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, NDArray[np.int64]]:
        """Tokens at the longest length, int64, shape NL; and how many of them each row is encoded with, shape N."""
        config, bucket = self.record.tokenizer, self.record.text_bucket_tokens
        if not texts:
            return torch.empty((0, config.context_length), dtype=torch.int64), np.empty(0, np.int64)
        tokens_NL: Tensor = self._tokenizer([text[: config.max_chars] for text in texts])
        if bucket is None:
            return tokens_NL, np.full(len(texts), config.context_length)
        if config.kind == "open_clip":
            before_end_N = tokens_NL.argmax(dim=1).numpy()  # SimpleTokenizer's end of text has the highest id
            return tokens_NL, np.minimum((before_end_N // bucket + 1) * bucket, config.context_length)
        num_tokens_N = (tokens_NL != config.pad_id).sum(dim=1).numpy()
        # At least one token of padding in every row: see clip.HF_CONTEXT.
        bucket_N = (num_tokens_N // bucket + 1) * bucket
        padding = max(0, int(bucket_N.max()) - config.context_length)
        return functional.pad(tokens_NL, (0, padding), value=config.pad_id), bucket_N


def _is_out_of_memory(error: RuntimeError) -> bool:
    says = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in says or "DefaultCPUAllocator" in says
