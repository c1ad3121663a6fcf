"""The moving average of the weights, against PyTorch's AveragedModel."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vision.core.optim.ema import ModelEMA


@pytest.mark.parametrize("decay", [0.5, 0.98])
def test_agrees_with_averaged_model(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(8, 3, 5, 5))
    ema = ModelEMA(model, decay)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        model(torch.randn(8, 3, 5, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        reference.update_parameters(model)
        expected = reference.module.state_dict()
        for name, value in ema.model.state_dict().items():
            if value.is_floating_point():
                assert torch.allclose(value, expected[name], atol=1e-6), name
            else:
                assert torch.equal(value, model.state_dict()[name]), "integers are copied"
    weight = "0.weight"
    assert not torch.allclose(ema.model.state_dict()[weight], model.state_dict()[weight])


def test_an_average_over_many_steps_is_updated_every_twentieth_step() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = ModelEMA(model, 0.999)
    every_step = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    every_twentieth = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999**20))
    for step in range(2001):
        with torch.no_grad():
            model.weight += 0.01 * torch.randn(2, 3)
        ema.update()
        every_step.update_parameters(model)
        if step % 20 == 0:
            every_twentieth.update_parameters(model)
    average, expected, exact, current = (
        one.state_dict()["weight"] for one in (ema.model, every_twentieth.module, every_step.module, model)
    )
    assert torch.allclose(average, expected, atol=1e-6)
    assert (average - exact).norm() < 0.02 * (average - current).norm()


def test_the_model_is_unchanged() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    ema = ModelEMA(model, 0.9)
    with torch.no_grad():
        model.weight += 1
    ema.update()
    assert torch.equal(model.weight, before + 1)
    assert torch.equal(ema.model.weight, model.weight)  # type: ignore[arg-type]


def test_a_restored_state_continues_in_the_same_way() -> None:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    ema = ModelEMA(model, 0.99)
    ema.update()
    restored = ModelEMA(nn.Linear(2, 2), 0.99)
    restored.load_state_dict(ema.state_dict())
    assert restored.steps == ema.steps == 1
    assert torch.equal(restored.model.weight, ema.model.weight)  # type: ignore[arg-type]
