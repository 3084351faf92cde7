"""Image files and captions -> unit vectors of one space: what is evaluated and registered as a CLIP.

Either an encoder whose towers share a space, or an encoder and the heads of a filter or an induced model. With heads
the towers' vectors are rounded to float16 first, as stored ones are: scores are the filter's to the bit.

Dimensions: N images or texts, C classes, K templates, E embedding.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.encoder import Encoder
from models.filters import Filter, check_encoder
from models.images import ImageError
from models.pixels import Pixels
from models.prompts import Units, class_vectors

Float32 = NDArray[np.float32]


class Embedder:
    """`num_broken` counts the images that did not decode."""

    def __init__(self, encoder: Encoder, filter: Filter | None = None) -> None:
        if filter is None and not encoder.record.shares_space:
            raise ValueError(
                f"wanted heads: the towers of {encoder.record.name} share no space; fix: name a filter's folder"
            )
        if filter is not None:
            check_encoder(filter.record, encoder.record)
        self.encoder, self.filter, self.num_broken = encoder, filter, 0

    @classmethod
    def load(cls, encoder_folder: Path, heads_folder: Path | None = None, *, device: str = "cpu",
             num_threads: int = 1) -> Self:  # fmt: skip
        """From folders of `models.clip` and `save_filter`.

        Raises:
            WeightsError: missing, cut or altered files, or heads of another encoder.
            ValueError: towers that share no space, and no heads.
        """
        filter = Filter.load(heads_folder) if heads_folder else None
        return cls(Encoder.load(encoder_folder, device=device, num_threads=num_threads), filter)

    def embed_images(self, images: Sequence[bytes]) -> Float32:
        """Unit vectors of image files, shape NE; a row of NaN for each that does not decode."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:  # decoding leaves the interpreter's lock
            pixels = list(threads.map(self._decoded, images))
        good = {row: image for row, image in enumerate(pixels) if image is not None}
        self.num_broken += len(images) - len(good)
        units_NE = self._unit(self.encoder.encode_images(list(good.values())), is_image=True)
        found_NE = np.full((len(images), units_NE.shape[1]), np.nan, np.float32)
        found_NE[list(good)] = units_NE
        return found_NE

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Unit vectors of captions, shape NE."""
        return self._unit(self.encoder.encode_texts(texts), is_image=False)

    def embed_classes(self, classes: Sequence[str], templates: Sequence[str]) -> Units:
        """A unit vector a class, shape CE: see `models.prompts.class_vectors`."""
        return class_vectors(self.embed_texts, classes, templates)

    def _decoded(self, data: bytes) -> Pixels | None:
        try:
            return self.encoder.preprocess(data)
        except ImageError:
            return None

    def _unit(self, vectors_ND: Float32, *, is_image: bool) -> Float32:
        if self.filter is not None:
            return (self.filter.project_images if is_image else self.filter.project_texts)(vectors_ND)
        with np.errstate(invalid="ignore", divide="ignore"):
            units_ND: Float32 = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return units_ND
