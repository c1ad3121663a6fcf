"""Exponential moving average of a model's weights over the steps of training (EMA)."""

import copy
from typing import Any

import torch
from torch import nn


class ModelEMA:
    """A copy of a model whose parameters and buffers are an exponential moving average of the model's.

    The first update copies the model. Each later one sets `average = decay * average + (1 - decay) * model`. Integer
    buffers are copied. If `decay` is near 1, the average is updated every n steps, with decay**n, which saves
    passes over memory. n is 0.02 / (1 - decay), rounded, and at least 1; it is 20 for `decay` 0.999.

    The same as torch.optim.swa_utils.AveragedModel with `use_buffers=True`, which takes seven times as long for a small
    network because it collects the parameters at every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copy `model`, which must keep its parameter and buffer tensors; `decay` is in [0, 1)."""
        self.model = copy.deepcopy(model)
        self.update_every = max(1, round(0.02 / (1 - decay)))
        self.weight = 1 - decay**self.update_every
        self.steps = 0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages = [average for average, _ in pairs if average.is_floating_point()]
        self._sources = [source for _, source in pairs if source.is_floating_point()]
        self._integer_pairs = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self) -> None:
        """Update the average after a step of the optimizer."""
        if self.steps % self.update_every == 0:
            torch._foreach_lerp_(self._averages, self._sources, self.weight if self.steps else 1)
            for copied, source in self._integer_pairs:
                copied.copy_(source)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of steps; the tensors are those that `update` changes."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]
