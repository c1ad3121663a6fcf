"""The exponential average of a model's weights over the steps of training (EMA)."""

import copy

import torch
from torch import nn


class ModelEMA:
    """Keeps a copy of `model` whose weights and statistics are `decay` of what they were and the rest of the model's.

    After the first step they are the model's own. An average that reaches over many steps takes only some of them into
    account, about fifty of those that it reaches over, which saves the passes over memory between: `decay` 0.999 every
    twentieth, by 0.999^20. Otherwise as torch.optim.swa_utils.AveragedModel with `use_buffers`, which looks for the
    parameters anew at every step, which takes seven times as long for a small network.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copy `model`; its parameters and buffers are the ones that it will be read from."""
        self.model = copy.deepcopy(model)
        self.every = max(1, round(0.02 / (1 - decay)))
        self.rest = 1 - decay**self.every
        self.steps = 0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self.averages = [average for average, _ in pairs if average.is_floating_point()]
        self.weights = [weight for _, weight in pairs if weight.is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self) -> None:
        """Take one more step into account."""
        if self.steps % self.every == 0:
            torch._foreach_lerp_(self.averages, self.weights, self.rest if self.steps else 1)
            for counter, count in self.counters:
                counter.copy_(count)
        self.steps += 1
