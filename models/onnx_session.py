"""An ONNX model on onnxruntime, on one device, in one thread of its own. Knows no Spark."""

from pathlib import Path
from typing import Any

WEIGHTS = "model.onnx"
"""Name of the file, in the folder of a model and its record."""


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
