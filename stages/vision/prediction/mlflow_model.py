"""The model that `mlflow.pyfunc.load_model` loads: image files in, classes and probabilities out.

MLflow keeps a copy of this file and of image_file.py with each model, and runs the copies. So the model needs nothing
of this repository, and nothing is unpickled. See https://mlflow.org/docs/latest/ml/model/models-from-code.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH_SIZE = 100  # on one core, as in Spark, half as fast again as 500


class ImageClassifier(PythonModel):
    """Classifies a column `image` that has the content of image files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the network, which maps uint8 [N, H, W, 3] to probabilities [N, classes]."""
        # MLflow adds the folder of its copy to sys.path when it loads the model.
        import image_file  # type: ignore[import-not-found]

        self.network = mlflow.pytorch.load_model(context.artifacts["network"])
        self.read_pixels = image_file.read_pixels
        self.classes: list[str] = context.model_config["classes"]
        self.image_size: list[int] = context.model_config["image_size"]
        self.min_confidence: float = context.model_config["min_confidence"] or 0

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify image files.

        Args:
            context: not used.
            model_input: has a column `image`, the content of image files as bytes.
            params: not used.

        Returns:
            A row for each file: `class`, its `probability`, whether the image is `unknown` because the probability is
            low, `p_<name>` for each class, and `error`, which is empty. If a file cannot be decoded, `error` says why,
            and the other columns are empty.
        """
        contents = model_input["image"]
        probabilities = np.full((len(contents), len(self.classes)), np.nan)
        errors: list[str | None] = [None] * len(contents)
        for start in range(0, len(contents), BATCH_SIZE):
            pixels = {}
            for row in range(start, min(start + BATCH_SIZE, len(contents))):
                try:
                    pixels[row] = self.read_pixels(contents.iloc[row], *self.image_size)
                except ValueError as error:
                    errors[row] = str(error)
            if pixels:
                with torch.inference_mode():
                    batch = torch.from_numpy(np.stack(list(pixels.values())))
                    probabilities[list(pixels)] = self.network(batch).numpy()
        best = [None if error else self.classes[row.argmax()] for row, error in zip(probabilities, errors, strict=True)]
        table = pd.DataFrame(probabilities, columns=[f"p_{name}" for name in self.classes])
        table.insert(0, "class", pd.Series(best, dtype=object))
        table.insert(1, "probability", probabilities.max(1))
        unknown = pd.Series(table["probability"] < self.min_confidence, dtype="boolean")
        table.insert(2, "unknown", unknown.mask(table["probability"].isna()) if any(errors) else unknown.astype(bool))
        table["error"] = pd.Series(errors, dtype=object)
        # Servers write None as null, but NaN as NaN, which is not JSON.
        return table.astype(object).where(table.notna(), None) if any(errors) else table


mlflow.models.set_model(ImageClassifier())
