"""Optimisers and learning-rate schedules: torch's own, and Muon for the filters of convolutions."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

Name = Literal["muon", "sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "cosine", "one_cycle", "linear"]


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
        # The polynomial of the small square matrix first: 3.4445 work + (-4.7750 gram + 2.0315 gram²) work, in one
        # product instead of a product and two passes over the large matrix.
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        work = polynomial @ work
    return work.mT if tall else work


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


def schedule(optimizer: Optimizer, name: Schedule, steps: int, warmup: float) -> LRScheduler | None:
    """How the learning rate goes, step by step: up to its peak over the share `warmup` of all `steps`, then by `name`.

    "constant" stays, "step" falls to a tenth after half and again after three quarters of the steps that are left,
    "cosine" and "linear" fall to zero. "one_cycle" (Smith 2018, arXiv:1708.07120) has a rise of its own, along a cosine
    from a 25th of the peak, and falls along a cosine to nearly zero. None: it stays at its peak from the first step on.
    """
    if name == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        rise = max(warmup, 2 / (steps + 1))  # torch wants one step at least
        return OneCycleLR(optimizer, peaks, total_steps=steps + 1, pct_start=rise, cycle_momentum=False)
    rising = min(round(warmup * steps), steps - 1)
    left = steps - rising
    if name == "constant":
        falling: LRScheduler = ConstantLR(optimizer, factor=1)
    elif name == "step":
        falling = MultiStepLR(optimizer, [max(1, round(left * part)) for part in (0.5, 0.75)])
    elif name == "cosine":
        falling = CosineAnnealingLR(optimizer, left)
    else:
        falling = LinearLR(optimizer, 1, 0, left)
    if not rising:
        return None if name == "constant" else falling
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (rising + 1), 1, rising), falling], [rising])
