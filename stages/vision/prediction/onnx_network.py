"""A network in ONNX format, run by ONNX Runtime on the CPU."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from vision.pipeline.errors import UserError

_ERRORS_ONLY = 3


class OnnxNetwork(nn.Module):
    """Maps images, uint8 [N, H, W, 3] on the CPU, to probabilities, float32 [N, classes].

    Attributes:
        classes: names, in the order of the probabilities.
        image_size: height and width of the images, in pixels.
        min_confidence: an image whose highest probability is lower is unknown; None calls no image unknown.
    """

    classes: Sequence[str]
    image_size: tuple[int, int]
    min_confidence: float | None

    def __init__(self, model: Path | bytes) -> None:
        """Load a model that `export_onnx` made, with as many threads as PyTorch has.

        Args:
            model: a file or its content.

        Raises:
            UserError: the file is missing or damaged, or not such a model.
        """
        super().__init__()
        name = "the model" if isinstance(model, bytes) else model
        if isinstance(model, Path) and not model.is_file():
            raise UserError(f"{model}: not found; `python tools/export.py --format onnx` writes models/model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _ERRORS_ONLY
        # Otherwise threads wait for the next batch in a busy loop: a server at work takes five times the CPU time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common class
            reason = str(error).partition("\n")[0][:200]
            raise UserError(f"{name}: ONNX Runtime cannot load it ({reason})") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        try:
            metadata = self._session.get_modelmeta().custom_metadata_map
            classes = json.loads(metadata["classes"])
            min_confidence = json.loads(metadata.get("min_confidence", "null"))
            (_, height, width, channels), (_, count) = inputs[0].shape, outputs[0].shape
        except (KeyError, ValueError):
            classes, min_confidence, height, width, channels, count = None, None, 0, 0, 0, 0
        if (inputs[0].type, channels) != ("tensor(uint8)", 3) or not isinstance(classes, list) or len(classes) != count:
            raise UserError(f"{name}: not written by tools/export.py")
        self.classes = classes
        self.min_confidence = None if min_confidence is None else float(min_confidence)
        self.image_size = (height, width)
        self._input = inputs[0].name

    def forward(self, images: Tensor) -> Tensor:
        """Map images, uint8 [N, H, W, 3] on the CPU, to probabilities, float32 [N, classes]."""
        return torch.from_numpy(self.run(images.numpy()))

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """Like `forward`, for arrays."""
        return self._session.run(None, {self._input: np.ascontiguousarray(pixels)})[0]
