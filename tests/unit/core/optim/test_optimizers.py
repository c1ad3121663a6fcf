import math
from collections.abc import Callable
from typing import cast, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vision.core.optim.muon import Muon, orthogonalize
from vision.core.optim.optimizers import Name, optimizers
from vision.core.optim.schedules import Schedule, schedule


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8), (1, 16, 16)])
def test_orthogonalized_keeps_the_directions_and_evens_out_the_singular_values(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    _, values, _ = torch.linalg.svd(orthogonalize(matrices), full_matrices=False)
    assert values.min() > 0.3
    assert values.max() < 1.3
    # The polar factor is the exact answer: the same singular vectors, all singular values one.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (
        (orthogonalize(matrices) * (u @ v)).sum((1, 2))
        / orthogonalize(matrices).norm(dim=(1, 2))
        / (u @ v).norm(dim=(1, 2))
    )
    assert (cosine > 0.97).all()


def test_orthogonalized_does_not_depend_on_the_size_of_the_gradient() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(2, 8, 12)
    assert torch.allclose(orthogonalize(matrices), orthogonalize(1000 * matrices), atol=1e-4)


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
        step = orthogonalize((gradient + 0.6 * velocity).flatten(1)[None])[0].view(6, 4, 3, 3)
        expected = expected * 6**0.5 / expected.norm() - 0.1 * step
    assert torch.allclose(p.detach(), expected, atol=1e-5)


def small() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ["muon", "sgd", "adam", "adamw"])
def test_every_trainable_parameter_has_exactly_one_optimizer(name: Name) -> None:
    model = small()
    made = optimizers(model, name, lr=0.1, other_lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.0)
    owned = [id(p) for optimizer in made for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in made]
    assert rates == ([0.1, 0.01] if name == "muon" else [0.1])
    if name == "muon":
        assert [id(p) for p in made[0].param_groups[0]["params"]] == [id(model[0].weight)]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.01)),
        ("plain sgd", lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
        ("adam", lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01)),
        ("adamw", lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01)),
    ],
)
def test_torchs_optimizers_get_all_their_settings(name: str, reference: Callable[..., torch.optim.Optimizer]) -> None:
    def stepped(ours: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        kind = cast(Name, name.split()[-1])
        settings = {"lr": 0.1, "other_lr": 9.0, "momentum": 0.9, "nesterov": name == "sgd", "weight_decay": 0.01}
        optimizer = optimizers(model, kind, **settings)[0] if ours else reference(model.parameters())  # type: ignore[arg-type]
        for _ in range(3):
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(stepped(True), stepped(False), strict=True))


def rates(name: Schedule, steps: int, warmup: float, lr: float = 2.0) -> list[float]:
    """The learning rate of each step, and what it is after them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    going = schedule(optimizer, name, steps, warmup)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        if going:
            going.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]),
        ("step", [1, 1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_the_learning_rate_rises_to_its_peak_then_goes_as_its_schedule_says(
    name: Schedule, shares: list[float]
) -> None:
    assert rates(name, steps=6, warmup=0)[:-1] == pytest.approx([2 * share for share in shares])
    assert rates(name, steps=10, warmup=0.4)[:-1] == pytest.approx(
        [2 * share for share in (0.2, 0.4, 0.6, 0.8, *shares)]
    )


def test_a_learning_rate_that_stays_takes_no_time() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 2.0)
    assert schedule(optimizer, "constant", steps=10, warmup=0) is None
    assert schedule(optimizer, "constant", steps=10, warmup=0.04) is None, "not one whole step"
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_one_cycle_rises_and_falls_along_a_cosine() -> None:
    found = rates("one_cycle", steps=100, warmup=0.3)
    peak = found.index(max(found))
    assert found[0] == pytest.approx(2 / 25)
    assert max(found) == pytest.approx(2, rel=1e-2)
    assert 28 <= peak <= 31
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-2] < 0.01


@given(st.sampled_from(get_args(Schedule)), st.integers(1, 300), st.floats(0, 0.99999))
def test_every_step_has_a_positive_learning_rate_whatever_the_schedule(
    name: Schedule, steps: int, warmup: float
) -> None:
    *used, last = rates(name, steps, warmup)
    assert all(0 < rate <= 2 * (1 + 1e-12) for rate in used)
    if name in ("linear", "cosine"):
        assert last == pytest.approx(0, abs=1e-12)
        assert max(used) == pytest.approx(2)
