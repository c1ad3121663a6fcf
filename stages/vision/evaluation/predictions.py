"""The predictions of the validation and test images, and their calibration."""

from dataclasses import dataclass

import numpy as np
import torch

from vision.core import inference
from vision.core.config import TTAConfig
from vision.core.models.classifier import Classifier
from vision.core.temperature import fit_temperature
from vision.evaluation.prediction_sets import prediction_sets
from vision.pipeline.progress import bar


@dataclass(frozen=True)
class Logits:
    """The logits of a split, float32 [N, classes].

    Attributes:
        one_view: of one view of each image.
        averaged: the mean over the views of `evaluate.tta`.
    """

    one_view: torch.Tensor
    averaged: torch.Tensor


@dataclass(frozen=True)
class Predictions:
    """The probabilities of the test images, float32 [N, classes], and of the validation images.

    Attributes:
        test: of averaged views, calibrated.
        one_view: of one view of each image, as the model in use predicts them.
        before: of averaged views before temperature scaling.
        val: of the validation images, float32 [M, classes], of averaged views, calibrated.
        temperature: what averaged logits are divided by; None without validation images.
        sets: conformal prediction sets of the test images, bool [N, classes]; None without validation images.
    """

    test: np.ndarray
    one_view: np.ndarray
    before: np.ndarray
    val: np.ndarray
    temperature: float | None
    sets: np.ndarray | None


def predict_with_progress(model: Classifier, images: np.ndarray, config: TTAConfig, split: str) -> Logits:
    """Predict with a progress bar.

    Args:
        model: the network.
        images: uint8 [N, H, W, C].
        config: which views to average for which images.
        split: what the images are, for the progress bar.
    """
    on_device = torch.from_numpy(images).to(model.temperature.device)
    views = len(images) + inference.count_extra_views(len(images), config)
    with bar(total=views, unit=" views", description=f"evaluate: {split}") as progress_bar:
        one_view = inference.predict(model, on_device, config.batch_size, config.dtype, progress_bar.update)
        averaged = inference.predict_tta(model, on_device, one_view, config, progress_bar.update)
    return Logits(one_view, averaged)


def calibrate(
    model: Classifier, test: Logits, val: Logits | None, val_labels: np.ndarray, config: TTAConfig
) -> Predictions:
    """Fit the temperature of averaged views and the prediction sets on the validation images, if there are any.

    Args:
        model: has its own temperature, of one view.
        test: of the test images.
        val: of the validation images; None if there are none.
        val_labels: integer [M].
        config: which views were averaged for which images.
    """
    one_view = to_probabilities(test.one_view)
    logits = test.averaged * model.temperature  # the model has divided by its own temperature
    before = to_probabilities(logits)
    if val is None:
        return Predictions(before, one_view, before, before[:0], None, None)
    val_averaged = val.averaged * model.temperature
    if inference.count_extra_views(len(val_labels), config):
        temperature = fit_temperature(val_averaged, torch.from_numpy(val_labels).to(val_averaged.device, torch.int64))
    else:  # these are the predictions of the model in use
        temperature = model.temperature.item()
    probabilities, val_probabilities = (to_probabilities(each / temperature) for each in (logits, val_averaged))
    sets = prediction_sets(val_labels, val_probabilities, probabilities)
    return Predictions(probabilities, one_view, before, val_probabilities, temperature, sets)


def to_probabilities(logits: torch.Tensor) -> np.ndarray:
    """Convert logits to probabilities, float32 [N, classes]."""
    return logits.softmax(1).cpu().numpy()
