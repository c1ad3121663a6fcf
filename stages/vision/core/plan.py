"""What each epoch trains on: the image size, the number of images, and its part of the whole work."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from vision.core.config import TrainConfig
from vision.core.data import batches_per_epoch


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of a training.

    Attributes:
        epoch: from 1.
        image_scale: size of the images, relative to full size.
        num_images: number of images to select, at least one batch.
        steps: number of batches.
        start: fraction of the training's work before this epoch, in [0, 1]. The work of a step is proportional to the
            number of pixels of an image.
        end: fraction of the training's work at the end of this epoch.
    """

    epoch: int
    image_scale: float
    num_images: int
    steps: int
    start: float
    end: float


def plan_epochs(config: TrainConfig, num_images: int) -> list[EpochPlan]:
    """Plan all epochs of a training with `num_images` training images."""
    epochs = range(1, config.epochs + 1)
    scales = [value_in_epoch(config.progressive_resizing, epoch, config.epochs) for epoch in epochs]
    counts = [_select_count(config, epoch, num_images) for epoch in epochs]
    steps = [batches_per_epoch(count, config.batch_size) for count in counts]
    work = list(itertools.accumulate((s * scale**2 for s, scale in zip(steps, scales, strict=True)), initial=0.0))
    fractions = [done / work[-1] for done in work]
    return list(map(EpochPlan, epochs, scales, counts, steps, fractions[:-1], fractions[1:]))


def value_in_epoch(values: Sequence[float], epoch: int, epochs: int) -> float:
    """Return the value for `epoch` (from 1). Each value gets an equal part of the epochs, in order."""
    return values[-(-epoch * len(values) // epochs) - 1]


def _select_count(config: TrainConfig, epoch: int, num_images: int) -> int:
    if epoch == 1:  # no loss is known yet, and each image has to be seen once
        return num_images
    fraction = value_in_epoch(config.hard_example_fraction, epoch, config.epochs)
    return min(num_images, max(config.batch_size, round(fraction * num_images)))
