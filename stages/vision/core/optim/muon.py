"""The Muon optimizer: momentum with orthogonalized updates, for convolution weights."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """Nesterov momentum whose update is orthogonalized, for convolutions that are followed by normalization.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The weight of a convolution is
    treated as a matrix [out, in * kh * kw]. Normalization cancels the norm of the weights. Therefore each weight tensor
    is scaled to the norm sqrt(out) before a step, so that only the learning rate decides how much the step changes it.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float, dtype: torch.dtype = torch.float32
    ) -> None:
        """Create the optimizer.

        Args:
            params: the weights of convolutions, each [out, in, kh, kw].
            lr: learning rate.
            momentum: of Nesterov momentum, in [0, 1).
            dtype: what the orthogonalization is computed in. bfloat16 is precise enough, and several times faster where
                the hardware supports it.
        """
        super().__init__(list(params), {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params_by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    params_by_shape[param.shape].append(param)
            for params in params_by_shape.values():
                self._update(params, group["lr"], group["momentum"])

    def _update(self, params: list[Tensor], lr: float, momentum: float) -> None:
        """Update parameters of one shape together, with one batched orthogonalization instead of many small ones."""
        grads = [param.grad for param in params if param.grad is not None]
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        momentum_buffers = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_mul_(momentum_buffers, momentum)
        torch._foreach_add_(momentum_buffers, grads)
        nesterov_grads = torch._foreach_add(grads, momentum_buffers, alpha=momentum)
        # Flattened in the memory order of channels_last, so that `reshape` copies nothing.
        out, _, height, width = params[0].shape
        matrices = torch.stack([grad.permute(0, 2, 3, 1).reshape(out, -1) for grad in nesterov_grads])
        updates = (
            zeropower_via_newtonschulz(matrices.to(self.dtype))
            .to(matrices.dtype)
            .view(len(params), out, height, width, -1)
            .permute(0, 1, 4, 2, 3)
        )
        norms = torch._foreach_norm(params)
        torch._foreach_div_(norms, out**0.5)
        torch._foreach_div_(params, norms)
        torch._foreach_add_(params, list(updates.unbind()), alpha=-lr)


def zeropower_via_newtonschulz(matrices: Tensor, iterations: int = 3) -> Tensor:
    """Orthogonalize matrices approximately, by a quintic Newton-Schulz iteration (Jordan et al. 2024).

    Args:
        matrices: [N, rows, columns], float32 or bfloat16.
        iterations: 3 bring singular values above 0.02 times the norm of the matrix to about [0.7, 1.2], and 5 those
            above 0.003.

    Returns:
        [N, rows, columns] of the same dtype, with the singular vectors of `matrices`.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    result = matrices.mT if tall else matrices
    result = result / (result.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = result @ result.mT
        # (3.4445 + -4.7750 gram + 2.0315 gram²) result: the polynomial of the small square matrix is computed first, so
        # that the large matrix needs one product instead of a product and two passes over it.
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        result = polynomial @ result
    return result.mT if tall else result
