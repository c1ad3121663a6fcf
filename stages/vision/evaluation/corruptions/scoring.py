"""The accuracy of a model on corrupted test images."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vision.core import inference
from vision.core.config import TTAConfig
from vision.core.models.classifier import Classifier
from vision.evaluation.corruptions.cifar_c import CifarC
from vision.evaluation.corruptions.table import CORRUPTIONS, SEVERITIES, corrupt
from vision.pipeline.metrics_schemas import CorruptionScore
from vision.pipeline.paths import resolve_path
from vision.pipeline.progress import bar
from vision.storage.arrays import Split

Source = Callable[[str, int], Iterator[Tensor]]
"""Maps the name and the severity of a corruption to the corrupted images, in parts uint8 [M, H, W, 3] on the CPU."""


def find_source(corruptions: bool | str, test: Split, classes: list[str]) -> Source | None:
    """Return where corrupted test images come from; None if they are off.

    Args:
        corruptions: `evaluate.corruptions`.
        test: the test split.
        classes: its class names.

    Raises:
        UserError: the folder of CIFAR-10-C is not usable for this test split.
    """
    if isinstance(corruptions, str):
        return CifarC(resolve_path(corruptions), test, classes).read
    return functools.partial(corrupt, torch.from_numpy(test.images)) if corruptions else None


def score_corruptions(
    model: Classifier, source: Source, labels: np.ndarray, config: TTAConfig, names: Sequence[str] = tuple(CORRUPTIONS)
) -> list[CorruptionScore]:
    """Compute the accuracy of one view of each image, for each corruption and severity, with a progress bar.

    Args:
        model: on its device.
        source: of the corrupted images.
        labels: integer [N], the actual classes.
        config: images per step and the dtype of convolutions; one view is predicted, whatever its `tta` is.
        names: of the corruptions.
    """
    rows = []
    total = len(names) * len(SEVERITIES) * len(labels)
    with bar(total=total, unit=" images", description="evaluate: corruptions") as progress_bar:
        for name in names:
            for severity in SEVERITIES:
                logits = [
                    inference.predict(
                        model, images.to(model.temperature.device), config.batch_size, config.dtype, progress_bar.update
                    )
                    for images in source(name, severity)
                ]
                accuracy = float((torch.cat(logits).argmax(1).cpu().numpy() == labels).mean())
                rows.append(CorruptionScore(corruption=name, severity=severity, images=len(labels), accuracy=accuracy))
    return rows


def mean_accuracy(rows: Sequence[CorruptionScore]) -> float:
    """Return the mean accuracy over all corruptions and severities."""
    return sum(row.accuracy for row in rows) / len(rows)
