"""Build the optimizers: PyTorch's, and Muon for the weights of convolutions."""

from typing import assert_never

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vision.core.config import OptimizerConfig
from vision.core.optim.muon import Muon


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, lr: float, dtype: torch.dtype = torch.float32
) -> list[Optimizer]:
    """Build the optimizers of all parameters that require a gradient.

    Args:
        model: the network.
        config: which optimizer. "muon" makes two: Muon for the four-dimensional weights, which are those of
            convolutions, and AdamW with `config.adamw_lr` for all others (biases, normalization, linear layers). Other
            names make one of PyTorch's. `config.momentum` applies to "muon", where it is always Nesterov's, and "sgd".
        lr: peak learning rate.
        dtype: what the network is computed in.

    Returns:
        One or two optimizers; the first one has the learning rate `lr`.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    # One kernel for all parameters is several times faster if they are small.
    fused = True if all(param.device.type in ("cpu", "cuda") for param in params) else None
    match config.name:
        case "muon":
            return _muon_and_adamw(params, config, lr, dtype)
        case "sgd":
            return [_sgd(params, config, lr, fused)]
        case "adam":
            return [Adam(params, lr, weight_decay=config.weight_decay, fused=fused)]
        case "adamw":
            return [AdamW(params, lr, weight_decay=config.weight_decay, fused=fused)]
        case _:
            assert_never(config.name)


def _sgd(params: list[nn.Parameter], config: OptimizerConfig, lr: float, fused: bool | None) -> SGD:
    nesterov = config.nesterov and config.momentum > 0
    optimizer = SGD(params, lr, config.momentum, weight_decay=config.weight_decay, nesterov=nesterov, fused=fused)
    if config.momentum > 0:
        # The fused kernel requires that either all parameters have a momentum buffer or none has. Frozen layers get
        # their first gradient later than the others.
        for param in params:
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
    return optimizer


def _muon_and_adamw(
    params: list[nn.Parameter], config: OptimizerConfig, lr: float, dtype: torch.dtype
) -> list[Optimizer]:
    conv_weights = [param for param in params if param.ndim == 4]
    others = [param for param in params if param.ndim != 4]
    optimizers: list[Optimizer] = []
    if conv_weights:
        muon_dtype = dtype if dtype == torch.bfloat16 else torch.float32  # the range of float16 is too small
        optimizers.append(Muon(conv_weights, lr, config.momentum, muon_dtype))
    if others:
        optimizers.append(AdamW(others, config.adamw_lr, betas=(0.9, 0.95), weight_decay=config.weight_decay))
    return optimizers
