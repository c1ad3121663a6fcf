"""The configuration of training and inference, as plain values. params.yaml describes each parameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Flip = Literal["none", "random", "alternate"]
OptimizerName = Literal["muon", "sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine", "one_cycle", "linear"]
TTA = Literal["none", "flip", "shift"]


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are augmented (`train.augment` in params.yaml)."""

    flip: Flip
    crop_padding: int
    rotation: float
    color_jitter: Sequence[float]
    cutout: int
    mixup: float
    cutmix: float


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer updates the weights; the learning rate is `TrainConfig.lr`."""

    name: OptimizerName
    adamw_lr: float
    momentum: float
    nesterov: bool
    weight_decay: float


@dataclass(frozen=True)
class TrainConfig:
    """How to train a network."""

    seed: int
    dtype: torch.dtype
    freeze_epochs: int
    epochs: int
    batch_size: int
    lr: float
    schedule: ScheduleName
    warmup: float
    optimizer: OptimizerConfig
    augment: AugmentConfig
    clip_grad_norm: float | None
    label_smoothing: float
    progressive_resizing: Sequence[float]
    hard_example_fraction: Sequence[float]
    ema_decay: float | None
    keep: Literal["val_loss", "val_accuracy", "last"]
    patience: int | None
    amx_convolution: Literal["auto", "off"]


@dataclass(frozen=True)
class TTAConfig:
    """How to predict with test-time augmentation.

    `fraction` of the images, those with the lowest maximum probability, get more than one view.
    """

    batch_size: int
    dtype: torch.dtype
    tta: TTA
    fraction: float = 1.0
