"""Optimisers and learning-rate schedules: torch's own, and Muon for the filters of convolutions."""

import torch
from torch import nn
from torch.optim import Optimizer

from vision.core.config import OptimizerConfig
from vision.core.optim.muon import Muon


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, lr: float, dtype: torch.dtype = torch.float32
) -> list[Optimizer]:
    """The optimisers of a model's trainable parameters.

    "muon" has two: Muon for the filters, which are the four-dimensional weights, and AdamW at
    `config.adamw_lr` for all else (biases, normalization, linear layers). The other names have one of torch's for
    everything. `momentum` is that of "muon", always Nesterov's, and of "sgd". `dtype` is what the network is computed
    in.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # One kernel for all parameters: several times faster where they are small.
    fused = True if all(p.device.type in ("cpu", "cuda") for p in parameters) else None
    if config.name == "sgd":
        ahead = config.nesterov and config.momentum > 0
        return [
            torch.optim.SGD(
                parameters, lr, config.momentum, weight_decay=config.weight_decay, nesterov=ahead, fused=fused
            )
        ]
    if config.name == "adam":
        return [torch.optim.Adam(parameters, lr, weight_decay=config.weight_decay, fused=fused)]
    if config.name == "adamw":
        return [torch.optim.AdamW(parameters, lr, weight_decay=config.weight_decay, fused=fused)]
    filters = [p for p in parameters if p.ndim == 4]
    others = [p for p in parameters if p.ndim != 4]
    made: list[Optimizer] = []
    if filters:
        # fp16 has too small a range.
        made.append(Muon(filters, lr, config.momentum, dtype if dtype == torch.bfloat16 else torch.float32))
    if others:
        made.append(torch.optim.AdamW(others, config.adamw_lr, betas=(0.9, 0.95), weight_decay=config.weight_decay))
    return made
