"""The average of weights, against torch's own."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vision.core.optim.ema import ModelEMA


@pytest.mark.parametrize("decay", [0.5, 0.98])
def test_agrees_with_torchs_averaged_model(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    model(torch.randn(8, 3, 5, 5))
    average = ModelEMA(model, decay)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        model(torch.randn(8, 3, 5, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        reference.update_parameters(model)
        expected = reference.module.state_dict()
        for name, value in average.model.state_dict().items():
            if value.is_floating_point():
                assert torch.allclose(value, expected[name], atol=1e-6), name
            else:
                assert torch.equal(value, model.state_dict()[name]), "a counter is not averaged"
    weight = "0.weight"
    assert not torch.allclose(average.model.state_dict()[weight], model.state_dict()[weight])


def test_an_average_over_many_steps_takes_every_twentieth_into_account() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = ModelEMA(model, 0.999)
    every_step = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    every_twentieth = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999**20))
    for step in range(2001):
        with torch.no_grad():
            model.weight += 0.01 * torch.randn(2, 3)
        average.update()
        every_step.update_parameters(model)
        if step % 20 == 0:
            every_twentieth.update_parameters(model)
    found, few, all_steps, now = (
        each.state_dict()["weight"] for each in (average.model, every_twentieth.module, every_step.module, model)
    )
    assert torch.allclose(found, few, atol=1e-6)
    assert (found - all_steps).norm() < 0.02 * (found - now).norm()


def test_leaves_the_model_as_it_is() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    average = ModelEMA(model, 0.9)
    with torch.no_grad():
        model.weight += 1
    average.update()
    assert torch.equal(model.weight, before + 1)
    assert torch.equal(average.model.weight, model.weight)  # type: ignore[arg-type]
