"""A configuration, data and a network for trainings that take less than a second."""

from dataclasses import replace
from typing import Any

import torch

from vision.core.config import AugmentConfig, OptimizerConfig, TrainConfig
from vision.core.data import ImageDataset
from vision.core.models.classifier import Classifier, InputSpec
from vision.core.models.registry import create_model

_OPTIMIZER = OptimizerConfig(name="muon", adamw_lr=0.02, momentum=0.6, nesterov=True, weight_decay=0.0)
_AUGMENT = AugmentConfig(flip="alternate", crop_padding=1)
_TRAIN = TrainConfig(
    seed=0,
    dtype=torch.float32,
    epochs=3,
    batch_size=50,
    lr=0.1,
    schedule="linear",
    warmup=0.1,
    optimizer=_OPTIMIZER,
    augment=_AUGMENT,
    label_smoothing=0.1,
)


def train_config(**changes: Any) -> TrainConfig:
    """Return a configuration of three epochs with `changes`.

    Keys are fields of TrainConfig. The values of `optimizer` and `augment` are dictionaries of the fields to change.
    """
    optimizer = replace(_OPTIMIZER, **changes.pop("optimizer", {}))
    augment = replace(_AUGMENT, **changes.pop("augment", {}))
    return replace(_TRAIN, optimizer=optimizer, augment=augment, **changes)


NO_IMAGES = ImageDataset(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
INPUTS = InputSpec([8, 8, 3], [0.4] * 3, [0.2] * 3)


def striped_images(count: int, seed: int, noise: int = 60) -> ImageDataset:
    """Return images of four classes that differ in color and in the direction of their stripes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    stripes = torch.arange(8) % 2 * 80
    clean = torch.full((4, 8, 8, 3), 80)
    clean[0] += stripes[:, None, None]
    clean[1] += stripes[None, :, None]
    clean[2, ..., 0] += 60
    clean[3, ..., 2] += 60
    grain = torch.randint(-noise, noise + 1, (count, 8, 8, 3), generator=generator)
    return ImageDataset((clean[labels] + grain).clamp(0, 255).to(torch.uint8), labels)


def small_convnet(train: ImageDataset) -> Classifier:
    """Return a ConvNet for `striped_images`."""
    torch.manual_seed(0)
    model = create_model("convnet", {"widths": [8, 16], "depth": 1}, INPUTS, 4)
    model.initialize_from(train.images)
    return model
