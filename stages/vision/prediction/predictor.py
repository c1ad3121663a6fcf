"""A trained model from models/ or MLflow, ready to classify image files."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vision.artifacts.trained_model import load_model
from vision.core.device import Device, Precision, select_device
from vision.core.inference import autocast
from vision.datasets import image_file
from vision.pipeline.errors import UserError
from vision.pipeline.stage import importing
from vision.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH_SIZE = 500
_MLFLOW = ("models:/", "runs:/")
_ONNX = ".onnx"


@dataclass(frozen=True)
class ModelSource:
    """Where a model is.

    Attributes:
        uri: a folder, or an MLflow URI that always means the same model, such as `models:/NAME/VERSION`.
        name: of the folder or of the registered model.
        version: of the registered model, or the run ID; empty for a folder.
    """

    uri: str
    name: str
    version: str


@dataclass(frozen=True)
class Predictor:
    """A model with what is needed to use it.

    Attributes:
        network: in evaluation mode; maps uint8 [N, H, W, 3] to probabilities, float32 [N, classes].
        classes: names, in the order of the probabilities.
        image_size: height and width of the images that the network takes, in pixels.
        source: where the model was loaded from.
        device: where the network is.
        dtype: what convolutions and matrix products are computed in.
        min_confidence: an image whose highest probability is lower is unknown; None calls no image unknown.
    """

    network: nn.Module
    classes: Sequence[str]
    image_size: tuple[int, int]
    source: ModelSource
    device: torch.device
    dtype: torch.dtype
    min_confidence: float | None = None

    def is_unknown(self, probability: float) -> bool:
        """Whether an image is unlike those of the training, by the probability of its class."""
        return self.min_confidence is not None and probability < self.min_confidence

    def read_pixels(self, content: bytes) -> np.ndarray:
        """Decode an image file as `preprocess` does: uint8 [H, W, 3]. Raises ValueError if it cannot be decoded."""
        return image_file.read_pixels(content, *self.image_size)

    def random_images(self, count: int) -> np.ndarray:
        """Return random images, uint8 [count, H, W, 3], the same at each call."""
        return np.random.default_rng(0).integers(0, 256, (count, *self.image_size, 3), dtype=np.uint8)

    @torch.inference_mode()
    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the probabilities, float32 [N, classes], of images uint8 [N, H, W, 3]."""
        images = torch.from_numpy(pixels).to(self.device)
        with autocast(self.device, self.dtype):
            return torch.cat([self.network(batch) for batch in images.split(BATCH_SIZE)]).cpu().numpy()


def find_model(model: str) -> ModelSource:
    """Find a model. An alias, such as `champion`, becomes the version that has it now.

    Args:
        model: a folder that `train` wrote, or an MLflow URI: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or
            `runs:/RUN_ID/model`, in the store of MLFLOW_TRACKING_URI, or else in mlflow.db. Or a file that
            tools/export.py wrote in ONNX format, `FILE.onnx`.

    Raises:
        UserError: MLflow has no such model, or its store cannot be used.
    """
    if model.endswith(_ONNX):
        return ModelSource(model, Path(model).stem, "")
    if not model.startswith(_MLFLOW):
        return ModelSource(model, Path(model).resolve().name, "")
    scheme, _, path = model.partition(":/")
    first, _, rest = path.strip("/").partition("/")
    if scheme == "runs":
        return ModelSource(model, rest or "model", first)
    name, _, alias = first.partition("@")
    if not alias and not rest:
        raise UserError(f"{model}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    if not alias:
        return ModelSource(model, name, rest)
    with _mlflow_client(model) as client:
        version = client.get_model_version_by_alias(name, alias).version
    return ModelSource(f"models:/{name}/{version}", name, str(version))


def load_predictor(source: ModelSource, precision: Precision = "fp32") -> Predictor:
    """Load a model onto the fastest available device. A model from MLflow or an ONNX file stays on the CPU.

    Raises:
        UserError: the model is missing or damaged, MLflow's store cannot be used, or the device does not support the
            precision.
    """
    if source.uri.startswith(_MLFLOW):
        return _load_from_mlflow(source, precision)
    if source.uri.endswith(_ONNX):
        return _load_from_onnx(source, precision)
    if not Path(source.uri).is_dir():
        expected = "a folder that train wrote (`dvc repro` makes models), an .onnx file, or an MLflow URI"
        raise UserError(f"{source.uri}: expected {expected}")
    device, dtype = _select_device("auto", precision)
    model, config = load_model(source.uri)
    network = nn.Sequential(model, nn.Softmax(1)).eval().to(device)
    height, width, _ = config.image_shape
    return Predictor(network, config.classes, (height, width), source, device, dtype, config.min_confidence)


def download_model(source: ModelSource, folder: Path) -> Path:
    """Download a model from MLflow to a folder.

    Returns:
        A folder in MLflow's format; see `save_mlflow_model` in stages/vision/prediction/mlflow_format.py.

    Raises:
        UserError: the model is missing or of another version of the pipeline, or MLflow's store cannot be used.
    """
    with _mlflow_client(source.uri), importing():
        from mlflow.artifacts import download_artifacts
        from mlflow.models import Model

        path = Path(download_artifacts(source.uri, dst_path=str(folder)))
        if "image_shape" not in (Model.load(path).metadata or {}):
            raise UserError(f"{source.uri}: not a model of this version of the pipeline; train it again")
    return path


def _load_from_mlflow(source: ModelSource, precision: Precision) -> Predictor:
    with tempfile.TemporaryDirectory() as folder, importing():
        path = download_model(source, Path(folder))
        import mlflow.pytorch
        from mlflow.models import Model

        metadata = Model.load(path).metadata or {}
        network = mlflow.pytorch.load_model(path)
    height, width, _ = metadata["image_shape"]
    device, dtype = _select_device("cpu", precision)
    min_confidence = metadata.get("min_confidence")
    return Predictor(network, metadata["classes"], (height, width), source, device, dtype, min_confidence)


def _load_from_onnx(source: ModelSource, precision: Precision) -> Predictor:
    if precision not in ("auto", "fp32"):
        raise UserError(f"{source.uri}: the precision is that of the file; {precision} is not possible")
    from vision.prediction.onnx_network import OnnxNetwork  # not needed for other models

    network = OnnxNetwork(Path(source.uri))
    device, min_confidence = torch.device("cpu"), network.min_confidence
    return Predictor(network, network.classes, network.image_size, source, device, torch.float32, min_confidence)


def _select_device(device: Device, precision: Precision) -> tuple[torch.device, torch.dtype]:
    try:
        return select_device(device, precision)
    except ValueError as error:
        raise UserError(f"precision: {str(error).partition(': ')[2]}") from None


@contextmanager
def _mlflow_client(model: str) -> Iterator["MlflowClient"]:
    """Connect to the store for the block.

    Raises:
        UserError: the store cannot be used, or does not have the model.
    """
    uri = store.tracking_uri()
    file = store.sqlite_path(uri)
    if file is not None and not file.exists():
        raise UserError(f"{model}: {file} does not exist; `dvc repro` makes it, or set MLFLOW_TRACKING_URI")
    with store.opening(uri) as client:
        from mlflow import MlflowException

        try:
            yield client
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"{model}: not in {store.format_error(uri, error)}") from None
