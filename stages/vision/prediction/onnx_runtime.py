"""A predictor on the CPU whose network runs in ONNX Runtime, which is faster for single images."""

import logging
from dataclasses import replace

import numpy as np
import torch

from vision.pipeline.errors import UserError
from vision.prediction.agreement import measure_agreement
from vision.prediction.onnx_export import export_onnx, model_metadata
from vision.prediction.onnx_network import OnnxNetwork
from vision.prediction.predictor import Predictor

_BATCHES = (1, 7, 32)

_logger = logging.getLogger(__name__)


def to_onnx_runtime(predictor: Predictor) -> Predictor:
    """Return a predictor that computes the same in ONNX Runtime.

    The conversion takes some seconds. If it fails, or if the probabilities of random images do not agree, a warning is
    logged and `predictor` itself is returned. So it is if it is not on a CPU, does not compute in fp32, or uses ONNX
    Runtime already.
    """
    if predictor.device.type != "cpu" or predictor.dtype != torch.float32 or isinstance(predictor.network, OnnxNetwork):
        return predictor
    shape = (sum(_BATCHES), *predictor.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    metadata = model_metadata(predictor.classes, predictor.source.uri)
    try:
        network = OnnxNetwork(export_onnx(predictor.network, images[:2], metadata).SerializeToString())
        agreement = measure_agreement(predictor.predict, network.run, images, _BATCHES)
    except UserError as error:
        _logger.warning("%s: runs in PyTorch, not in ONNX Runtime: %s", predictor.source.uri, error)
        return predictor
    if not agreement.is_close:
        _logger.warning("%s: runs in PyTorch, because ONNX Runtime does not agree: %s", predictor.source.uri, agreement)
        return predictor
    return replace(predictor, network=network)
