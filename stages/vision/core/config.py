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
    """How training images are augmented (`train.augment` in params.yaml). By default everything is off."""

    flip: Flip = "none"
    crop_padding: int = 0
    rotation: float = 0.0
    color_jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    cutout: int = 0
    blur: float = 0.0
    noise: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


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
    """How to train a network. Without further arguments, a plain training with a constant learning rate."""

    seed: int
    dtype: torch.dtype
    epochs: int
    batch_size: int
    lr: float
    optimizer: OptimizerConfig
    augment: AugmentConfig = AugmentConfig()
    schedule: ScheduleName = "constant"
    warmup: float = 0.0
    freeze_epochs: int = 0
    clip_grad_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: Literal["balanced"] | None = None
    logit_adjustment: float = 0.0
    progressive_resizing: Sequence[float] = (1.0,)
    hard_example_fraction: Sequence[float] = (1.0,)
    ema_decay: float | None = None
    keep: Literal["val_loss", "val_accuracy", "last"] = "val_loss"
    patience: int | None = None
    fast_weight_gradients: Literal["auto", "off"] = "auto"
    fused_blocks: Literal["auto", "off"] = "auto"
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None


@dataclass(frozen=True)
class TTAConfig:
    """How to predict with test-time augmentation.

    `fraction` of the images, those with the lowest maximum probability, get more than one view.
    """

    batch_size: int
    dtype: torch.dtype
    tta: TTA
    fraction: float
