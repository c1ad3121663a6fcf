"""A predictor on the CPU whose network runs in ONNX Runtime, which is faster for small batches."""

import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT
from vision.prediction.agreement import measure_agreement
from vision.prediction.onnx_export import convert_to_onnx
from vision.prediction.onnx_network import OnnxNetwork
from vision.prediction.predictor import Predictor, find_model, load_predictor

_BATCHES = (1, 7, 32)

_logger = logging.getLogger(__name__)


def to_onnx_runtime(predictor: Predictor) -> Predictor:
    """Return a predictor that computes the same in ONNX Runtime.

    The conversion takes some seconds, in a process of its own, because PyTorch cannot export one network while other
    threads run another. If it fails, or if the probabilities of random images do not agree, a warning is logged and
    `predictor` itself is returned. A predictor on a GPU, in another precision than fp32, or in ONNX Runtime already is
    also returned as it is.
    """
    if predictor.device.type != "cpu" or predictor.dtype != torch.float32 or isinstance(predictor.network, OnnxNetwork):
        return predictor
    images = predictor.random_images(sum(_BATCHES))
    try:
        network = OnnxNetwork(_convert(predictor.source.uri))
        agreement = measure_agreement(predictor.predict, network.run, images, _BATCHES)
    except UserError as error:
        _logger.warning("%s runs in PyTorch, not in ONNX Runtime: %s", predictor.source.uri, error)
        return predictor
    if not agreement.is_close:
        _logger.warning("%s runs in PyTorch, because ONNX Runtime does not agree: %s", predictor.source.uri, agreement)
        return predictor
    return replace(predictor, network=network)


def _convert(model: str) -> bytes:
    """Convert a model to ONNX in another process.

    Raises:
        UserError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        command = [sys.executable, "-m", __name__, model, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "stages"), "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if process.returncode:
            raise UserError((process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1])
        return path.read_bytes()


if __name__ == "__main__":  # the process that `_convert` starts
    try:
        Path(sys.argv[2]).write_bytes(convert_to_onnx(load_predictor(find_model(sys.argv[1]))).SerializeToString())
    except UserError as error:
        sys.exit(str(error))
