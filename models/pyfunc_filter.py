"""The registered filter: DataFrame(image: the bytes of a file, text) -> score. Models from code: MLflow runs this file.

Nothing is pickled: weights are safetensors, records are JSON, and this is the code.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel


class FilterModel(PythonModel):  # type: ignore[misc]
    """Artefacts: `heads`, and `encoder` where the towers were copied; else `encoder_folder` of the model config."""

    def load_context(self, context: Any) -> None:
        from models.encoder import Encoder
        from models.filters import Filter, check_encoder

        self._filter = Filter.load(Path(context.artifacts["heads"]))
        folder = context.artifacts.get("encoder") or context.model_config["encoder_folder"]
        self._encoder = Encoder.load(Path(folder))
        check_encoder(self._filter.record, self._encoder.record)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.Series:
        """DFN cosine, float32, in the order of the rows; NULL where an image does not decode or there is no number."""
        from models.images import ImageError

        images, rows = [], []
        for row, data in enumerate(model_input["image"]):
            try:
                images.append(self._encoder.preprocess(bytes(data or b"")))
                rows.append(row)
            except ImageError:
                continue
        captions = model_input["text"].fillna("").tolist()
        texts = [captions[row] for row in rows]
        scores_N = np.full(len(model_input), np.nan, np.float32)
        scores_N[rows] = self._filter.score(self._encoder.encode_images(images), self._encoder.encode_texts(texts))
        return pd.Series(scores_N, index=model_input.index, name="score")


mlflow.models.set_model(FilterModel())
