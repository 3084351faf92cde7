"""What models that look at pictures by onnxruntime share: their folder, their session, their input. Knows no Spark."""

import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.records import Record, sha256_file, whole_folder

WEIGHTS = "model.onnx"
"""Name of the file, in the folder of a model and its record."""

Pixels = NDArray[np.uint8]


class OnnxRecord(Record):
    """Base of their records."""

    weights_sha256: str

    @classmethod
    def build(cls, weights: Path, out: Path) -> Self:
        """Copies an ONNX file into the folder `out`, beside its record. `etl.samples.corpora` fetches it."""
        with whole_folder(out) as folder:
            shutil.copyfile(weights, folder / WEIGHTS)
            record = cls(weights_sha256=sha256_file(folder / WEIGHTS))
            record.write(folder)
        return record


def check_picture(rgb_HWC: Pixels, shape: tuple[int, ...] | None = None) -> None:
    """Raises ValueError for what is not uint8 of shape HW3, or not of `shape`."""
    is_right = rgb_HWC.ndim == 3 and rgb_HWC.shape[2] == 3 if shape is None else rgb_HWC.shape == shape
    if rgb_HWC.dtype != np.uint8 or not is_right:
        raise ValueError(f"wanted uint8 of {shape or 'shape HW3'}; found {rgb_HWC.dtype} of {rgb_HWC.shape}")


def open_session(model: Path | bytes, device: str, *, num_threads: int) -> Any:
    """An `onnxruntime.InferenceSession` on `cpu` or, where this onnxruntime has CUDA, `cuda:N`.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed; it is in the extra `train`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # no word about initialisers that the graph could do without
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        number = int(device.partition(":")[2] or 0)
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    return onnxruntime.InferenceSession(model, options, providers=providers)
