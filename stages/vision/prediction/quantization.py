"""A model in ONNX format with weights and features of eight bits (static quantization by ONNX Runtime)."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vision.prediction.onnx_export import INPUT

if TYPE_CHECKING:
    from onnx import ModelProto

BATCH_SIZE = 100
QUANTIZED = ["Conv", "Gemm", "MatMul", "MaxPool", "GlobalAveragePool", "Add"]
"""Operations that are computed in eight bits. The activations between them stay in fp32, which costs no time."""


def quantize(model: "ModelProto", images: np.ndarray, on_batch: Callable[[int], object]) -> "ModelProto":
    """Quantize a model.

    Everything up to the first convolution, and the last layer, stay in fp32: they have few weights, and
    their errors affect all features and the probabilities. Weights have seven bits and one scale per channel. With
    eight, sums of products overflow on x86 CPUs without VNNI
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        model: as `export_onnx` returned it.
        images: uint8 [N, H, W, 3], training images from which the ranges of the features are measured.
        on_batch: called with the number of images of each batch.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), BATCH_SIZE))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
            if start is None:
                return None
            batch = np.ascontiguousarray(images[start : start + BATCH_SIZE])
            on_batch(len(batch))
            return {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, _silence_logging():
        prepared, quantized = Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
        quant_pre_process(model, prepared)
        quantize_static(
            prepared,
            quantized,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=_sensitive_nodes(onnx.load(prepared)),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True},
        )
        result = onnx.load(quantized)
    onnx.helper.set_model_props(result, {entry.key: entry.value for entry in model.metadata_props})
    return result


def _sensitive_nodes(model: "ModelProto") -> list[str]:
    """Return the names of the nodes up to the first convolution, and of the last layer."""
    nodes = model.graph.node
    layers = [number for number, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [node.name for node in nodes[: layers[0] + 1]] + [node.name for node in nodes[layers[-1] :]]


@contextmanager
def _silence_logging() -> Iterator[None]:
    """Hide what ONNX Runtime logs to Python's root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
