"""Muon: momentum whose update is orthogonalized, for convolution filters."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


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
            orthogonalize(matrices.to(self.dtype))
            .to(matrices.dtype)
            .view(len(tensors), out, height, width, -1)
            .permute(0, 1, 4, 2, 3)
        )
        norms = torch._foreach_norm(tensors)
        torch._foreach_div_(norms, out**0.5)
        torch._foreach_div_(tensors, norms)
        torch._foreach_add_(tensors, list(turned.unbind()), alpha=-lr)


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
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
