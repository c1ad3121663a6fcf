"""Optimisers and learning-rate schedules: torch's own, and Muon for the filters of convolutions."""

from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from vision.core.optim.muon import Muon

Name = Literal["muon", "sgd", "adam", "adamw"]


def optimizers(
    model: nn.Module,
    name: Name,
    lr: float,
    other_lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
) -> list[Optimizer]:
    """The optimisers of a model's trainable parameters.

    "muon" has two: Muon for the filters, which are the four-dimensional weights, and AdamW at `other_lr` for all else
    (biases, normalisation, linear layers). The other names have one of torch's for everything. `momentum` is that of
    "muon", always Nesterov's, and of "sgd". `dtype` is what the network is computed in.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # One kernel for all parameters: several times faster where they are small.
    fused = True if all(p.device.type in ("cpu", "cuda") for p in parameters) else None
    if name == "sgd":
        ahead = nesterov and momentum > 0
        return [torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=ahead, fused=fused)]
    if name == "adam":
        return [torch.optim.Adam(parameters, lr, weight_decay=weight_decay, fused=fused)]
    if name == "adamw":
        return [torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=fused)]
    filters = [p for p in parameters if p.ndim == 4]
    others = [p for p in parameters if p.ndim != 4]
    made: list[Optimizer] = []
    if filters:
        # fp16 has too small a range.
        made.append(Muon(filters, lr, momentum, dtype if dtype == torch.bfloat16 else torch.float32))
    if others:
        made.append(torch.optim.AdamW(others, other_lr, betas=(0.9, 0.95), weight_decay=weight_decay))
    return made
