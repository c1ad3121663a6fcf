"""Optimisers and the learning-rate schedule: Muon or SGD for the filters, AdamW or SGD for everything else."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Muon(Optimizer):
    """Momentum whose step is made orthogonal, for the filters of convolutions that are normalised afterwards.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". A tensor of filters is treated as a
    matrix [out, in * kh * kw]. As normalisation makes the length of a filter meaningless, each tensor is kept at the
    norm sqrt(out), so that the learning rate alone says how far a step turns it.
    """

    def __init__(
        self, filters: Iterable[Tensor], lr: float, momentum: float, dtype: torch.dtype = torch.float32
    ) -> None:
        """Optimise `filters`, each [out, in, kh, kw], with Nesterov momentum; `dtype` is that of the orthogonalisation.

        bf16 is precise enough for it, and several times faster where the hardware computes it natively.
        """
        super().__init__(list(filters), {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Turn every filter that has a gradient."""
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for filters in group["params"]:
                if filters.grad is not None:
                    same_shape[filters.shape].append(filters)
            for tensors in same_shape.values():
                self._turn(tensors, group["lr"], group["momentum"])

    def _turn(self, tensors: list[Tensor], lr: float, momentum: float) -> None:
        """Step tensors of one shape together: one batched orthogonalisation instead of many small ones."""
        gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
        for tensor in tensors:
            if not self.state[tensor]:
                self.state[tensor]["velocity"] = torch.zeros_like(tensor)
        velocities = [self.state[tensor]["velocity"] for tensor in tensors]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        ahead = torch._foreach_add(gradients, velocities, alpha=momentum)
        # Flattened in the memory order of channels_last, in which the reshape copies nothing.
        out, _, height, width = tensors[0].shape
        matrices = torch.stack([step.permute(0, 2, 3, 1).reshape(out, -1) for step in ahead])
        turned = (
            orthogonalized(matrices.to(self.dtype))
            .to(matrices.dtype)
            .view(len(tensors), out, height, width, -1)
            .permute(0, 1, 4, 2, 3)
        )
        norms = torch._foreach_norm(tensors)
        torch._foreach_div_(norms, out**0.5)
        torch._foreach_div_(tensors, norms)
        torch._foreach_add_(tensors, list(turned.unbind()), alpha=-lr)


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of each matrix near 1 by a quintic Newton-Schulz iteration.

    Args:
        matrices: [N, rows, columns], float.
        iterations: five bring all but the smallest singular values into about [0.7, 1.2].

    Returns:
        Matrices of the same shape and dtype.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    work = matrices.mT if tall else matrices
    work = work / (work.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = work @ work.mT
        work = 3.4445 * work + (-4.7750 * gram + 2.0315 * gram @ gram) @ work
    return work.mT if tall else work


def optimizers(
    model: nn.Module,
    name: Literal["muon", "sgd"],
    lr: float,
    other_lr: float,
    momentum: float,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
) -> list[Optimizer]:
    """The optimisers of a model's trainable parameters: one for its filters, one for all else where there is any.

    Filters are the four-dimensional weights. With "muon" the rest (biases, normalisation, linear layers) is left to
    AdamW at `other_lr`; with "sgd" it gets SGD at `other_lr`. `dtype` is what the network is computed in.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    filters = [p for p in parameters if p.ndim == 4]
    others = [p for p in parameters if p.ndim != 4]
    made: list[Optimizer] = []
    if filters and name == "muon":
        # fp16 has too small a range.
        made.append(Muon(filters, lr, momentum, dtype if dtype == torch.bfloat16 else torch.float32))
    elif filters:
        made.append(torch.optim.SGD(filters, lr, momentum, nesterov=momentum > 0, weight_decay=weight_decay))
    if others and name == "muon":
        made.append(torch.optim.AdamW(others, other_lr, betas=(0.9, 0.95), weight_decay=weight_decay))
    elif others:
        made.append(torch.optim.SGD(others, other_lr, momentum, nesterov=momentum > 0, weight_decay=weight_decay))
    return made


def up_then_down(optimizer: Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Linear rise to the peak learning rate over the share `warmup` of all `steps`, then a linear fall to zero."""
    rising = min(round(warmup * steps), steps - 1)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return max(0.0, (steps - step) / (steps - rising))

    return LambdaLR(optimizer, share)
