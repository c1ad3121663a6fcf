"""The trained model in MLflow's format: one that classifies image files, and inside it the network for tensors."""

import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vision.datasets import image_file
from vision.pipeline.stage import importing

if TYPE_CHECKING:
    from torch import nn

_NETWORK = "artifacts/network"


@dataclass(frozen=True)
class ModelSettings:
    """What the model needs besides its network.

    Attributes:
        classes: names, in the order of the probabilities.
        min_confidence: an image whose highest probability is lower is unknown; None calls no image unknown.
    """

    classes: Sequence[str]
    min_confidence: float | None


def save_mlflow_model(path: Path, network: "nn.Module", example: np.ndarray, settings: ModelSettings) -> None:
    """Save a model that loads without this code and without unpickling.

    `mlflow.pyfunc.load_model` loads mlflow_model.py, which takes the content of image files.
    `mlflow.pytorch.load_model` loads the network as an exported graph, which takes tensors of any batch size.

    Args:
        path: of the new folder.
        network: on the CPU, in evaluation mode; maps uint8 [N, H, W, 3] to float32 probabilities [N, classes].
        example: at least two images, uint8 [N, H, W, 3]; a batch of one would be exported as a constant.
        settings: the names of the classes, and which images are unknown.
    """
    classes = list(settings.classes)
    with importing():
        import mlflow.pyfunc
        import mlflow.pytorch
        import pandas as pd
        import torch
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
    columns: list[ColSpec | TensorSpec] = [
        ColSpec("string", "class", required=False),
        ColSpec("double", "probability", required=False),
        ColSpec("boolean", "unknown", required=False),
        *(ColSpec("double", f"p_{name}", required=False) for name in classes),
        ColSpec("string", "error", required=False),
    ]
    requirements = [f"{package.__name__}=={package.__version__.partition('+')[0]}" for package in (torch, np, pd)] + [
        f"pillow=={Image.__version__}"
    ]  # detecting them takes long
    with tempfile.TemporaryDirectory() as folder, _export_environment(), warnings.catch_warnings():
        # torch warns about weights that are not on the CPU; these are. MLflow asks for type hints of another kind.
        warnings.filterwarnings("ignore", "No complete tensor found in the group|.*type hints", UserWarning)
        mlflow.pytorch.save_model(
            network,
            Path(folder, "network"),
            serialization_format="pt2",  # a graph, not a pickle
            signature=ModelSignature(Schema([images]), Schema([probabilities])),
            input_example=np.array(example[:2]),
            pip_requirements=requirements[:1],
        )
        mlflow.pyfunc.save_model(
            path,
            python_model=Path(__file__).with_name("mlflow_model.py"),
            code_paths=[image_file.__file__],
            artifacts={"network": str(Path(folder, "network"))},
            signature=ModelSignature(Schema([ColSpec("binary", "image")]), Schema(columns)),
            input_example=pd.DataFrame({"image": [_encode_png(image) for image in example[:2]]}),
            pip_requirements=requirements,
            model_config={
                "classes": classes,
                "image_size": list(example.shape[1:3]),
                "min_confidence": settings.min_confidence,
            },
            metadata={
                "classes": classes,
                "image_shape": list(example.shape[1:]),
                "min_confidence": settings.min_confidence,
            },
        )
        model = Model.load(path)
        tensor_model = Model.load(path / _NETWORK)
    flavor = tensor_model.flavors["pytorch"]
    model.add_flavor("pytorch", **flavor | {"model_data": f"{_NETWORK}/{flavor['model_data']}"})
    model.flavors["python_function"]["model_code_path"] = "mlflow_model.py"  # it was the path on this machine
    model.flavors["python_function"]["artifacts"]["network"]["uri"] = _NETWORK
    model.save(path / "MLmodel")


def _encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _export_environment() -> Iterator[None]:
    """Set variables for the block, except those that the user or torch.compile has set."""
    with tempfile.TemporaryDirectory() as cache:
        variables = {
            "TORCHINDUCTOR_CACHE_DIR": cache,  # otherwise torch.export makes a folder that nobody deletes
            "MLFLOW_UV_AUTO_DETECT": "false",  # otherwise the model gets copies of uv.lock and pyproject.toml
        }
        added = {name: value for name, value in variables.items() if name not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                del os.environ[name]
