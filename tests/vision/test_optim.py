import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vision.optim import Muon, optimizers, orthogonalized, up_then_down


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (1, 16, 16)])
def test_orthogonalized_keeps_the_directions_and_evens_out_the_singular_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    _, values, _ = torch.linalg.svd(orthogonalized(matrices), full_matrices=False)
    assert values.min() > 0.3
    assert values.max() < 1.3
    # The polar factor is the exact answer: the same singular vectors, all singular values one.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (
        (orthogonalized(matrices) * (u @ v)).sum((1, 2))
        / orthogonalized(matrices).norm(dim=(1, 2))
        / (u @ v).norm(dim=(1, 2))
    )
    assert (cosine > 0.97).all()


def test_orthogonalized_does_not_depend_on_the_size_of_the_gradient() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 8, 12)
    assert torch.allclose(orthogonalized(matrices), orthogonalized(1000 * matrices), atol=1e-4)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_steps_filters_one_by_one_as_it_steps_them_together(memory_format: torch.memory_format) -> None:
    def stepped(groups: list[list[int]]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        filters = [nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=memory_format)) for _ in range(3)]
        gradients = [[torch.randn(6, 4, 3, 3) for _ in filters] for _ in range(3)]
        made = [Muon([filters[i] for i in group], lr=0.1, momentum=0.6) for group in groups]
        for step in gradients:
            for p, gradient in zip(filters, step, strict=True):
                p.grad = gradient
            for optimizer in made:
                optimizer.step()
        return [p.detach() for p in filters]

    for together, alone in zip(stepped([[0, 1, 2]]), stepped([[0], [1], [2]]), strict=True):
        assert torch.allclose(together, alone, atol=1e-5)


def test_a_muon_step_is_the_nesterov_momentum_made_orthogonal_from_filters_of_norm_sqrt_out() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, 4, 3, 3))
    before, (first, second) = p.detach().clone(), torch.randn(2, 6, 4, 3, 3)
    optimizer = Muon([p], lr=0.1, momentum=0.6)
    velocity = torch.zeros_like(first)
    expected = before
    for gradient in (first, second):
        p.grad = gradient.clone()
        optimizer.step()
        velocity = 0.6 * velocity + gradient
        step = orthogonalized((gradient + 0.6 * velocity).flatten(1)[None])[0].view(6, 4, 3, 3)
        expected = expected * 6**0.5 / expected.norm() - 0.1 * step
    assert torch.allclose(p.detach(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_every_trainable_parameter_has_exactly_one_optimizer(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.requires_grad_(False)
    made = optimizers(model, name, lr=0.1, other_lr=0.01, momentum=0.9, weight_decay=0.0)  # type: ignore[arg-type]
    owned = [id(p) for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [optimizer.param_groups[0]["lr"] for optimizer in made] == [0.1, 0.01]
    assert [id(p) for p in made[0].param_groups[0]["params"]] == [id(model[0].weight)]


def test_the_learning_rate_rises_to_its_peak_then_falls_to_zero() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = up_then_down(optimizer, steps=10, warmup=0.4)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2 * x for x in (0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)])
    assert optimizer.param_groups[0]["lr"] == 0


@given(steps=st.integers(1, 1000), warmup=st.floats(0, 0.99999))
def test_every_step_has_a_positive_learning_rate_whatever_the_warmup(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    share = up_then_down(optimizer, steps, warmup).lr_lambdas[0]
    rates = [share(step) for step in range(steps + 1)]
    assert all(0 < rate <= 1 for rate in rates[:-1])
    assert rates[-1] == 0
    assert max(rates) == 1
