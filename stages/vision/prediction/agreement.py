"""Whether another form of a network computes the same probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from vision.evaluation.significance import compare_models

MAX_DIFFERENCE = 1e-4
"""The largest accepted difference of a probability."""
MIN_MARGIN = 1e-3
"""If the two highest probabilities of an image differ by more than this, its class must not change."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Maps images, uint8 [N, H, W, 3], to probabilities, float32 [N, classes]."""


@dataclass(frozen=True)
class Agreement:
    """How two networks compare on the same images.

    Attributes:
        images: number of images.
        max_difference: the largest absolute difference of a probability; NaN if a probability is NaN.
        class_changes: images whose class differs, although the first network has it by more than `MIN_MARGIN`.
    """

    images: int
    max_difference: float
    class_changes: int

    @property
    def is_close(self) -> bool:
        """Whether the networks agree within `MAX_DIFFERENCE` and `MIN_MARGIN`."""
        return self.max_difference <= MAX_DIFFERENCE and self.class_changes == 0

    def __str__(self) -> str:
        """Describe the result in a few words."""
        return (
            f"probabilities of {self.images:,} images differ by at most {self.max_difference:.1e}, "
            f"{self.class_changes or 'no'} change{'s' if self.class_changes > 1 else ''} of class"
        )


def measure_agreement(expected: Predict, actual: Predict, images: np.ndarray, batches: Sequence[int]) -> Agreement:
    """Compare two networks, batch after batch.

    Args:
        expected: the first network.
        actual: the second network.
        images: uint8 [N, H, W, 3], at least as many as in all batches.
        batches: the sizes of the batches.
    """
    max_difference, class_changes = 0.0, 0
    for start, end in pairwise(accumulate(batches, initial=0)):
        first, second = expected(images[start:end]), actual(images[start:end])
        max_difference = float(np.maximum(max_difference, np.abs(first - second).max()))  # keeps a NaN
        runner_up, highest = np.partition(first, -2)[:, -2:].T
        changed = first.argmax(1) != second.argmax(1)
        class_changes += int((changed & (highest - runner_up > MIN_MARGIN)).sum())
    return Agreement(sum(batches), max_difference, class_changes)


@dataclass(frozen=True)
class AccuracyDrop:
    """How far the accuracy of one network is below that of another, on the same images.

    Attributes:
        expected: accuracy of the first network, in [0, 1].
        actual: accuracy of the second network.
        upper: end of the 95% confidence interval of `expected - actual`.
    """

    expected: float
    actual: float
    upper: float


def measure_accuracy_drop(expected: np.ndarray, actual: np.ndarray, labels: np.ndarray) -> AccuracyDrop:
    """Compare two accuracies, image by image.

    Args:
        expected: probabilities of the first network, [N, classes].
        actual: probabilities of the second network, [N, classes].
        labels: [N].
    """
    first, second = expected.argmax(1) == labels, actual.argmax(1) == labels
    return AccuracyDrop(float(first.mean()), float(second.mean()), -compare_models(first, second).low)
