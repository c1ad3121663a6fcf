"""A network as a model in ONNX format."""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vision.pipeline.errors import UserError
from vision.prediction.predictor import Predictor

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

INPUT, OUTPUT = "images", "probabilities"
_MAX_BYTES = 2**31
"""The limit of a Protocol Buffers message, and so of an ONNX file."""


def convert_to_onnx(predictor: Predictor) -> "ModelProto":
    """Convert a predictor's network, with the metadata that `OnnxNetwork` reads. Raises what `export_onnx` raises."""
    metadata = model_metadata(predictor.classes, predictor.min_confidence, predictor.source.uri)
    return export_onnx(predictor.network.cpu(), predictor.random_images(2), metadata)


def export_onnx(network: nn.Module, example: np.ndarray, metadata: Mapping[str, str]) -> "ModelProto":
    """Convert a network to ONNX, for batches of any size.

    Args:
        network: on the CPU, in evaluation mode; maps uint8 [N, H, W, 3] to probabilities, float32 [N, classes].
        example: at least two images, uint8 [N, H, W, 3]; a batch of one would be exported as a constant.
        metadata: entries of the model's `metadata_props`.

    Returns:
        The model. Its input is `images`, its output `probabilities`.

    Raises:
        UserError: the network is too large for the format, or has an operation that cannot be exported.
    """
    if sum(value.numel() * value.element_size() for value in network.state_dict().values()) >= _MAX_BYTES:
        raise UserError("the network has more than 2 GB of weights, the limit of an ONNX file; use --format pt2")
    import onnx
    from torch.onnx.errors import OnnxExporterError

    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings(action="ignore"):  # about the implementation of torch and onnxscript
        log.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                network,
                (torch.from_numpy(np.array(example)),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "N"},),
                dynamo=True,
                verbose=False,
            )
        except OnnxExporterError as error:
            cause = error.__cause__ or error
            reason = str(cause).strip().partition("\n")[0][:200]
            raise UserError(f"PyTorch cannot export the network to ONNX ({reason})") from error
        finally:
            log.setLevel(level)
    assert program is not None
    model = program.model_proto
    fold_batch_norm(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def model_metadata(classes: Sequence[str], min_confidence: float | None, source: str) -> dict[str, str]:
    """Return what an exported file says about its model.

    `classes` and `min_confidence` are JSON; see `Predictor`. `source` says where the model is from.
    """
    return {"classes": json.dumps(list(classes)), "min_confidence": json.dumps(min_confidence), "source": source}


def fold_batch_norm(model: "ModelProto") -> None:
    """Fold batch normalization that follows a convolution and max pooling into the convolution.

    The exporter folds it where it follows the convolution directly. Pooling in between changes nothing if each channel
    is multiplied by a positive number, because the largest value stays the largest.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        pool = producers.get(norm.input[0])
        conv = producers.get(pool.input[0]) if pool is not None and pool.op_type == "MaxPool" else None
        if pool is None or conv is None or conv.op_type != "Conv" or not set(norm.input[1:]) <= weights.keys():
            continue
        if uses[pool.output[0]] > 1 or uses[conv.output[0]] > 1 or uses[conv.input[1]] > 1:
            continue
        scale, bias, mean, var = (numpy_helper.to_array(weights[name]).astype(np.float64) for name in norm.input[1:])
        factor = scale / np.sqrt(var + _epsilon(norm))
        if (factor <= 0).any():
            continue
        kernel = numpy_helper.to_array(weights[conv.input[1]])
        offset = numpy_helper.to_array(weights[conv.input[2]]) if len(conv.input) > 2 else np.zeros(len(kernel))
        folded = {
            f"{norm.output[0]}.weight": kernel * factor[:, None, None, None],
            f"{norm.output[0]}.bias": (offset - mean) * factor + bias,
        }
        for name, value in folded.items():
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        conv.input[:] = [conv.input[0], *folded]
        pool.output[0] = norm.output[0]
        graph.node.remove(norm)
    needed = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in needed]:
        graph.initializer.remove(tensor)
    del graph.value_info[:]  # shapes of values that no longer exist; they are inferred when they are needed


def _epsilon(norm: "NodeProto") -> float:
    return next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
