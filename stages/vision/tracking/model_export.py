"""The trained model in MLflow's format, as an exported graph."""

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vision.pipeline.stage import importing

if TYPE_CHECKING:
    from torch import nn


def export_model(path: Path, model: "nn.Module", example: np.ndarray, classes: Sequence[str]) -> None:
    """Save a model that loads for any batch size without this code and without unpickling.

    Args:
        path: of the new folder.
        model: on the CPU, in evaluation mode; maps uint8 [N, H, W, C] to float32 probabilities [N, classes].
        example: at least two inputs, uint8 [N, H, W, C].
        classes: names, in the order of the probabilities.
    """
    with importing():
        import mlflow.pytorch
        import torch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
    # torch warns about weights that are not on the CPU; these are.
    warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
    with _temporary_inductor_cache():
        mlflow.pytorch.save_model(
            model,
            path,
            serialization_format="pt2",  # a graph, not a pickle
            signature=ModelSignature(Schema([images]), Schema([probabilities])),
            input_example=np.array(example[:2]),  # a batch of one would be exported as a constant
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],  # detecting them takes long
            metadata={"classes": list(classes)},
        )


@contextmanager
def _temporary_inductor_cache() -> Iterator[None]:
    """Delete the cache folder that torch.export makes, unless the user or torch.compile has chosen one before."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before or folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
