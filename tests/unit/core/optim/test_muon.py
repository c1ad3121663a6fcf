"""Muon, against its definition."""

import pytest
import torch
from torch import nn

from vision.core.optim.muon import Muon, zeropower_via_newtonschulz


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (1, 16, 16)])
def test_zeropower_keeps_singular_vectors_and_makes_singular_values_about_one(
    shape: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    found = u.mT @ zeropower_via_newtonschulz(matrices) @ v.mT  # diagonal, if the singular vectors are the same
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert torch.allclose(found, diagonal.diag_embed(), atol=1e-5)
    large = values > 0.02 * values.norm(dim=1, keepdim=True)
    assert diagonal[large].min() > 0.6
    assert diagonal.min() > 0
    assert diagonal.max() < 1.3


def test_zeropower_does_not_depend_on_the_norm() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 8, 12)
    assert torch.allclose(zeropower_via_newtonschulz(matrices), zeropower_via_newtonschulz(1000 * matrices), atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_parameters_are_updated_together_as_one_by_one(memory_format: torch.memory_format) -> None:
    def stepped(groups: list[list[int]]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=memory_format)) for _ in range(3)]
        grads = [[torch.randn(6, 4, 3, 3) for _ in weights] for _ in range(3)]
        optimizers = [Muon([weights[i] for i in group], lr=0.1, momentum=0.6) for group in groups]
        for step in grads:
            for param, grad in zip(weights, step, strict=True):
                param.grad = grad
            for optimizer in optimizers:
                optimizer.step()
        return [p.detach() for p in weights]

    for together, alone in zip(stepped([[0, 1, 2]]), stepped([[0], [1], [2]]), strict=True):
        assert torch.allclose(together, alone, atol=1e-5)


def test_a_step_is_orthogonalized_nesterov_momentum_from_weights_of_norm_sqrt_out() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, 4, 3, 3))
    before, (first, second) = p.detach().clone(), torch.randn(2, 6, 4, 3, 3)
    optimizer = Muon([p], lr=0.1, momentum=0.6)
    momentum_buffer = torch.zeros_like(first)
    expected = before
    for grad in (first, second):
        p.grad = grad.clone()
        optimizer.step()
        momentum_buffer = 0.6 * momentum_buffer + grad
        step = zeropower_via_newtonschulz((grad + 0.6 * momentum_buffer).flatten(1)[None])[0].view(6, 4, 3, 3)
        expected = expected * 6**0.5 / expected.norm() - 0.1 * step
    assert torch.allclose(p.detach(), expected, atol=1e-5)
