"""Which operators of a training are computed by the project's own code instead of PyTorch's."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from vision.core.config import TrainConfig
from vision.core.convolution import WeightGradient, select_weight_gradient
from vision.core.models.convnet import fuse_blocks


class Kernels(NamedTuple):
    """What a training uses. Each kernel rounds differently from PyTorch's operators.

    Attributes:
        fused_blocks: whether the blocks of the model are computed by `vision.core.fused_block`.
        weight_gradient: how the weight gradients of convolutions are computed; None means by PyTorch.
    """

    fused_blocks: bool
    weight_gradient: WeightGradient | None

    def names(self) -> dict[str, bool | str]:
        """Return what metrics/run.json, the tags of the run and the fingerprint of the training record."""
        weight_gradients = self.weight_gradient.name if self.weight_gradient else "pytorch"
        return {"fused_blocks": self.fused_blocks, "weight_gradients": weight_gradients}


def select_kernels(model: nn.Module, config: TrainConfig, device: torch.device) -> Kernels:
    """Choose the kernels for training `model` on `device`, and make its blocks use theirs.

    A training with torch.compile uses none of them, because it generates its own. The first call in a process may
    compile C++ code.
    """
    if config.compile is not None:
        config = replace(config, fused_blocks="off", fast_weight_gradients="off")
    fast_gradients = config.fast_weight_gradients == "auto"
    method = select_weight_gradient(model, config.batch_size, device, config.dtype) if fast_gradients else None
    return Kernels(config.fused_blocks == "auto" and fuse_blocks(model, device, config.dtype), method)
