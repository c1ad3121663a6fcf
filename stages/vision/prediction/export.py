"""Write a trained model as a file for other programs, once it is shown to compute the same."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from vision.pipeline.errors import UserError
from vision.pipeline.progress import bar
from vision.prediction.agreement import AccuracyDrop, measure_accuracy_drop, measure_agreement
from vision.prediction.onnx_export import convert_to_onnx, model_metadata
from vision.prediction.onnx_network import OnnxNetwork
from vision.prediction.predictor import BATCH_SIZE, Predictor
from vision.prediction.pt2_export import export_pt2
from vision.prediction.quantization import quantize
from vision.storage.arrays import Split, evenly_spaced, read_split, read_stats
from vision.storage.atomic import atomic_write

Format = Literal["onnx", "onnx-int8", "pt2"]
FILE_NAMES: dict[Format, str] = {"onnx": "model.onnx", "onnx-int8": "model-int8.onnx", "pt2": "model.pt2"}

BATCHES = (1, 7, 1000)
"""The sizes of the batches in which a file is compared with its model."""
CALIBRATION_IMAGES = 1000
MAX_ACCURACY_DROP = 0.005
"""The largest accepted fall of the accuracy of an eight-bit model, as the end of its 95% confidence interval."""
MAX_INT8_SIZE = 0.3
"""The largest accepted size of an eight-bit file, relative to the file in fp32."""
_LARGE_BATCH_PIXELS = 1000 * 64 * 64


class LabeledImages(NamedTuple):
    """The training and validation images that a model was trained with."""

    train: Split
    val: Split


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: of the file.
        size: of the file, in bytes.
        check: how the file was compared with the model, in words.
    """

    path: Path
    size: int
    check: str


def export_model(predictor: Predictor, file_format: Format, path: Path, data: Path) -> Export:
    """Write a model to a file, unless the file does not compute what the model does.

    The file takes images, uint8 [N, H, W, 3] for any N, and returns probabilities, float32 [N, classes]. It holds the
    names of the classes and the lowest confidence of known images as JSON: an ONNX file as `classes` and
    `min_confidence` in `metadata_props`, a pt2 file as `classes.json` and `min_confidence.json` in its extra files.

    Args:
        predictor: the model.
        file_format: `onnx` and `pt2` compute in fp32. `onnx-int8` computes in eight bits, and is compared by its
            accuracy on the validation images.
        path: of the file.
        data: data/processed. Without it, fp32 files are compared on random images.

    Raises:
        UserError: the network cannot be exported, does not agree with the file, or `onnx-int8` lacks data.
        OSError: the file cannot be written.
    """
    predictor = replace(predictor, network=predictor.network.cpu(), device=torch.device("cpu"), dtype=torch.float32)
    if isinstance(predictor.network, OnnxNetwork):
        raise UserError(f"{predictor.source.uri}: an exported file; name the model that it was made from")
    with atomic_write(path) as temporary:
        if file_format == "onnx-int8":
            check = _write_int8(predictor, temporary, data)
        else:
            write = _write_onnx if file_format == "onnx" else _write_pt2
            network = write(predictor, temporary)
            check = _check_agreement(predictor, network, data)
        size = temporary.stat().st_size
    return Export(path, size, check)


def read_images(predictor: Predictor, data: Path) -> LabeledImages:
    """Read the images of data/processed.

    Raises:
        UserError: they are missing or damaged, or have other classes or another size than the model's.
    """
    stats = read_stats(data)
    shape = [*predictor.image_size, 3]
    if list(stats.classes) != list(predictor.classes) or list(stats.image_shape) != shape:
        raise UserError(f"{data}: has other classes or another image size than {predictor.source.uri}")
    return LabeledImages(*(read_split(data, name, len(stats.classes), shape) for name in ("train", "val")))


def _write_onnx(predictor: Predictor, path: Path) -> nn.Module:
    """Write an ONNX file and load it."""
    path.write_bytes(convert_to_onnx(predictor).SerializeToString())
    return OnnxNetwork(path)


def _write_pt2(predictor: Predictor, path: Path) -> nn.Module:
    """Write a pt2 file and load it."""
    metadata = model_metadata(predictor.classes, predictor.min_confidence, predictor.source.uri)
    files = {f"{name}.json": metadata[name] for name in ("classes", "min_confidence")}
    files["source.txt"] = metadata["source"]
    content = export_pt2(predictor.network, predictor.random_images(2), files)
    path.write_bytes(content)
    return torch.export.load(io.BytesIO(content)).module()


def _check_agreement(predictor: Predictor, network: nn.Module, data: Path) -> str:
    """Compare a file's network with the model, on validation images if there are any.

    Returns:
        The result, in words.

    Raises:
        UserError: they do not agree.
    """
    height, width = predictor.image_size
    batches = [min(size, max(1, _LARGE_BATCH_PIXELS // (height * width))) for size in BATCHES]
    images, reason = _validation_images(predictor, data)
    images = images[np.arange(sum(batches)) % len(images)]

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(pixels)).numpy()

    agreement = measure_agreement(predictor.predict, predict, images, batches)
    if not agreement.is_close:
        raise UserError(f"{predictor.source.uri}: not written, because the file does not agree: {agreement}")
    return f"{agreement}{reason}"


def _validation_images(predictor: Predictor, data: Path) -> tuple[np.ndarray, str]:
    """Return the validation images and an empty string, or random images and the reason."""
    try:
        images = read_images(predictor, data).val.images
        reason = f"{data}: has no validation images"
    except UserError as error:
        images, reason = np.empty(0), str(error)
    return (images, "") if len(images) else (predictor.random_images(100), f" (random ones; {reason})")


def _write_int8(predictor: Predictor, path: Path, data: Path) -> str:
    """Write a quantized ONNX file.

    Returns:
        Size and accuracy, compared with fp32, in words.

    Raises:
        UserError: there are no images to calibrate and compare with, or the result is too large or not as accurate.
    """
    train, val = read_images(predictor, data)
    if not len(val.labels):
        raise UserError(f"{data}: has no validation images to compare with; set preprocess.val_fraction")
    calibration = train.images[evenly_spaced(len(train.labels), CALIBRATION_IMAGES)]
    model = convert_to_onnx(predictor)
    with bar(len(calibration) + 2 * len(val.labels), "image", "export") as progress:
        quantized = quantize(model, calibration, progress.update)
        path.write_bytes(quantized.SerializeToString())
        network = OnnxNetwork(path)
        expected = _predict(predictor.predict, val.images, progress.update)
        actual = _predict(network.run, val.images, progress.update)
    drop = measure_accuracy_drop(expected, actual, val.labels)
    size = path.stat().st_size / model.ByteSize()
    result = f"{size:.1%} of the size in fp32; {_format_drop(drop)}"
    if size > MAX_INT8_SIZE or drop.upper > MAX_ACCURACY_DROP:
        raise UserError(
            f"{predictor.source.uri}: not written, because eight bits are too coarse or save too little: {result}; "
            f"accepted are {MAX_INT8_SIZE:.0%}, and at most {100 * MAX_ACCURACY_DROP} points lower"
        )
    return result


def _format_drop(drop: AccuracyDrop) -> str:
    return (
        f"validation accuracy {drop.actual:.2%}, in fp32 {drop.expected:.2%} (with 95% confidence, at most "
        f"{max(0, 100 * drop.upper):.2f} points lower)"
    )


def _predict(
    predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, on_batch: Callable[[int], object]
) -> np.ndarray:
    """Compute the probabilities of many images in batches."""
    probabilities = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.array(images[start : start + BATCH_SIZE])
        probabilities.append(predict(batch))
        on_batch(len(batch))
    return np.concatenate(probabilities)
