"""Pixels and captions -> vectors: the inference form of the towers, on executors and in the registry's model.

A row's vector is the same to the bit whatever batch it lands in, on one machine: every forward pass has one fixed shape
(the last batch is padded), and the number of tokens that a caption is padded to depends on that caption alone.

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

from models.clip import load, load_tokenizer
from models.filters import check_vectors
from models.images import MAX_PIXELS
from models.pixels import Pixels, from_pil, preprocess, resize
from models.records import EncoderRecord

__all__ = ["Encoder", "check_vectors"]

Float32 = NDArray[np.float32]


class Encoder:
    """The towers on one device, in float32."""

    def __init__(self, model: Any, tokenizer: Any, record: EncoderRecord, device: str, max_pixels: int) -> None:
        self.record = record
        self._model, self._tokenizer = model.to(device), tokenizer
        self._model.visual.to(memory_format=torch.channels_last)  # twice the speed of a depthwise CNN on a CPU
        self._device, self._max_pixels = torch.device(device), max_pixels
        mean, std = record.preprocessing.mean, record.preprocessing.std
        self._mean_C11, self._std_C11 = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu", num_threads: int = 1, max_pixels: int = MAX_PIXELS) -> Self:
        """Reads a folder of `models.clip`, weights checked against their sha256.

        Args:
            num_threads: intra-op threads of this process; more than one on a shared machine spins.

        Raises:
            WeightsError: missing, cut or altered files.
        """
        torch.set_num_threads(num_threads)
        model, record = load(folder)
        return cls(model, load_tokenizer(folder, record), record, device, max_pixels)

    def preprocess(self, image: Image.Image | bytes) -> Pixels:
        """An image, or the bytes of a file, at the tower's size: uint8, shape CSS. Callable from many threads.

        Raises:
            ImageError: bytes that are no allowed image, or too large a one.
        """
        if isinstance(image, bytes):
            return preprocess(image, self.record.preprocessing, max_pixels=self._max_pixels)
        return resize(from_pil(image.convert("RGB")), self.record.preprocessing)

    def encode_images(self, images: Sequence[Image.Image | Pixels]) -> Float32:
        """Vectors of images, or of arrays that `preprocess` gave: float32, shape NI. A tower's NaN stays NaN.

        Raises:
            ValueError: an array of another shape or dtype than `preprocess` gives.
        """
        return self._in_batches(images, self.record.batch_size, self.record.image_dim, self._encode_image_batch)

    def encode_texts(self, texts: Sequence[str]) -> Float32:
        """Vectors of captions: float32, shape NT. Equal captions are encoded once."""
        unique = list(dict.fromkeys(texts))
        tokens, bucket_N = self._tokenize(unique)
        vectors_NT = np.empty((len(unique), self.record.text_dim), np.float32)
        for bucket in np.unique(bucket_N):
            rows = np.flatnonzero(bucket_N == bucket)
            tokens_NL = tokens[rows, :bucket]
            vectors_NT[rows] = self._in_batches(
                tokens_NL, self.record.text_batch_size, self.record.text_dim, self._encode_text_batch
            )
        row_of = {text: row for row, text in enumerate(unique)}
        return vectors_NT[[row_of[text] for text in texts]]

    def _in_batches(self, rows: Any, batch_size: int, dim: int, encode: Callable[[Any, int], Tensor]) -> Float32:
        vectors_ND = np.empty((len(rows), dim), np.float32)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            with torch.inference_mode():
                vectors_BD = encode(batch, batch_size)
                if self.record.is_normalised:
                    vectors_BD = functional.normalize(vectors_BD, dim=-1)
            vectors_ND[start : start + len(batch)] = vectors_BD[: len(batch)].float().cpu().numpy()
        return vectors_ND

    def _encode_image_batch(self, images: Sequence[Image.Image | Pixels], batch_size: int) -> Tensor:
        size = self.record.preprocessing.size_px
        pixels_BCHW = np.zeros((batch_size, 3, size, size), np.uint8)
        for i, image in enumerate(images):
            pixels_CHW = image if isinstance(image, np.ndarray) else self.preprocess(image)
            if pixels_CHW.shape != (3, size, size) or pixels_CHW.dtype != np.uint8:
                raise ValueError(f"wanted uint8 of (3, {size}, {size}); found {pixels_CHW.dtype} of {pixels_CHW.shape}")
            pixels_BCHW[i] = pixels_CHW
        images_BCHW = torch.from_numpy(pixels_BCHW).to(self._device, memory_format=torch.channels_last).float()
        vectors_BI: Tensor = self._model.encode_image((images_BCHW / 255 - self._mean_C11) / self._std_C11)
        return vectors_BI

    def _encode_text_batch(self, tokens_NL: Tensor, batch_size: int) -> Tensor:
        padding = tokens_NL[:1].expand(batch_size - len(tokens_NL), -1)
        vectors_BT: Tensor = self._model.encode_text(torch.cat([tokens_NL, padding]).to(self._device))
        return vectors_BT

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, NDArray[np.int64]]:
        """Tokens at the longest length, int64, shape NL; and how many of them each row is encoded with, shape N."""
        config, bucket = self.record.tokenizer, self.record.text_bucket_tokens
        if not texts:
            return torch.empty((0, config.context_length), dtype=torch.int64), np.empty(0, np.int64)
        tokens_NL: Tensor = self._tokenizer([text[: config.max_chars] for text in texts])
        if bucket is None:
            return tokens_NL, np.full(len(texts), config.context_length)
        num_tokens_N = (tokens_NL != config.pad_id).sum(dim=1).numpy()
        # At least one token of padding in every row: see clip.HF_CONTEXT.
        bucket_N = (num_tokens_N // bucket + 1) * bucket
        padding = max(0, int(bucket_N.max()) - config.context_length)
        return functional.pad(tokens_NL, (0, padding), value=config.pad_id), bucket_N
