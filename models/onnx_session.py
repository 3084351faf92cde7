"""What models that look at pictures by onnxruntime share: their folder, their session, their input. Knows no Spark."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.records import Record, check_files, sha256_file, whole_folder

WEIGHTS = "model.onnx"
"""Name of the file, in the folder of a model and its record."""

Pixels = NDArray[np.uint8]


class OnnxRecord(Record):
    """Base of their records."""

    weights_sha256: str
    size_px: int
    """Side of the square that the model sees."""
    batch_size: int
    """Pictures a pass: always that many, the last batch padded."""

    @classmethod
    def build(cls, weights: Path, out: Path) -> Self:
        """Copies an ONNX file into the folder `out`, beside its record. `etl.samples.corpora` fetches it."""
        with whole_folder(out) as folder:
            shutil.copyfile(weights, folder / WEIGHTS)
            known: Any = {"weights_sha256": sha256_file(folder / WEIGHTS)}  # the rest has defaults in each kind
            record = cls(**known)
            record.write(folder)
        return record


R = TypeVar("R", bound=OnnxRecord)


class OnnxReader(Generic[R]):
    """Base of the models themselves, on one device; for one thread."""

    kind: ClassVar[type[OnnxRecord]]

    def __init__(self, session: Any, record: R) -> None:
        self.record = record
        self._session = session
        self._input = session.get_inputs()[0].name

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", *, num_threads: int = 1) -> Self:
        """Reads a folder of `build`, onto `cpu` or, where this onnxruntime has CUDA, `cuda:N`.

        Raises:
            WeightsError: record or weights are missing, cut or altered.
            ModuleNotFoundError: onnx or onnxruntime is not installed; they are in the extra `train`.
        """
        record: Any = cls.kind.read(folder)
        check_files(folder, {WEIGHTS: record.weights_sha256})
        return cls(open_session(cls._model(folder / WEIGHTS), device, num_threads=num_threads), record)

    @staticmethod
    def _model(path: Path) -> Path | bytes:
        return path

    def _batches(self, pictures: Sequence[Pixels]) -> Iterator[tuple[int, Pixels]]:
        """(place of the first picture, rgb_BHWC with black ones after the last).

        Raises:
            ValueError: a picture of another shape or dtype than `prepare` gives.
        """
        size, batch_size = self.record.size_px, self.record.batch_size
        for start in range(0, len(pictures), batch_size):
            rgb_BHWC = np.zeros((batch_size, size, size, 3), np.uint8)
            for place, rgb_HWC in enumerate(pictures[start : start + batch_size]):
                check_picture(rgb_HWC, (size, size, 3))
                rgb_BHWC[place] = rgb_HWC
            yield start, rgb_BHWC


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
