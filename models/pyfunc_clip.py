"""The registered CLIP: images and texts -> unit vectors, zero-shot labels. Models from code: MLflow runs this file.

Nothing is pickled: weights are safetensors, records are JSON, and this is the code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


class ClipModel(PythonModel):  # type: ignore[misc]
    """Artefacts: `heads` of an induced model, where it has some, and `encoder` where the towers were copied; else
    `encoder_folder` of the model config. Methods beside `predict`: `load_model(uri).unwrap_python_model()`."""

    def load_context(self, context: Any) -> None:
        from models.embedder import Embedder

        folder = context.artifacts.get("encoder") or context.model_config["encoder_folder"]
        heads = context.artifacts.get("heads")
        self._embedder = Embedder.load(Path(folder), Path(heads) if heads else None)

    def embed_image(self, images: Sequence[bytes]) -> Float32:
        """Unit vectors of image files, float32, shape NE; rows of NaN where one does not decode."""
        return self._embedder.embed_images(images)

    def embed_text(self, texts: Sequence[str]) -> Float32:
        """Unit vectors of captions, float32, shape NE."""
        return self._embedder.embed_texts(texts)

    def zero_shot(self, images: Sequence[bytes], classes: Sequence[str], templates: Sequence[str] = ("{}",)) -> Float32:
        """Cosines of images and classes, float32, shape NC."""
        classes_CE = self._embedder.embed_classes(classes, templates)
        return np.asarray(self.embed_image(images) @ classes_CE.T, np.float32)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """For a column `image`: image_embedding, and with the parameter `classes` the nearest one as `label` with its
        `cosine`; for a column `text`: text_embedding. NULL where an image is missing or does not decode."""
        found = pd.DataFrame(index=model_input.index)
        if "image" in model_input:
            images_NE = self.embed_image([bytes(data or b"") for data in model_input["image"]])
            is_good = np.isfinite(images_NE.sum(axis=1)).tolist()
            found["image_embedding"] = [
                row.tolist() if good else None for row, good in zip(images_NE, is_good, strict=True)
            ]
            if classes := list((params or {}).get("classes", [])):
                cosines_NC = images_NE @ self._embedder.embed_classes(classes, list((params or {})["templates"])).T
                best = np.where(is_good, cosines_NC.argmax(axis=1), 0)
                found["label"] = [classes[at] if good else None for at, good in zip(best, is_good, strict=True)]
                found["cosine"] = cosines_NC[np.arange(len(best)), best].astype(np.float32)
        if "text" in model_input:
            found["text_embedding"] = self.embed_text(model_input["text"].fillna("").tolist()).tolist()
        return found


mlflow.models.set_model(ClipModel())
