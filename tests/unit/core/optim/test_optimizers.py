"""The optimizers that are built, against PyTorch's with all parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vision.core.config import OptimizerConfig, OptimizerName
from vision.core.optim.optimizers import build_optimizers


def small_model() -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ["muon", "sgd", "adam", "adamw"])
def test_every_trainable_parameter_has_exactly_one_optimizer(name: OptimizerName) -> None:
    model = small_model()
    config = OptimizerConfig(name, adamw_lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.0)
    optimizers = build_optimizers(model, config, lr=0.1)
    params = [id(param) for optimizer in optimizers for group in optimizer.param_groups for param in group["params"]]
    assert sorted(params) == sorted(id(param) for param in model.parameters() if param.requires_grad)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    assert rates == ([0.1, 0.01] if name == "muon" else [0.1])
    if name == "muon":
        assert [id(param) for param in optimizers[0].param_groups[0]["params"]] == [id(model[0].weight)]


def test_an_unknown_optimizer_is_refused() -> None:
    unknown: Any = "lion"
    config = OptimizerConfig(unknown, adamw_lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.0)
    with pytest.raises(AssertionError, match="lion"):
        build_optimizers(small_model(), config, lr=0.1)


@pytest.mark.parametrize(
    ("name", "nesterov", "reference"),
    [
        ("sgd", True, lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=0.01)),
        ("sgd", False, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
        ("adam", False, lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01)),
        ("adamw", False, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01)),
    ],
    ids=["sgd-nesterov", "sgd", "adam", "adamw"],
)
def test_pytorchs_optimizers_get_all_parameters(
    name: OptimizerName, nesterov: bool, reference: Callable[..., torch.optim.Optimizer]
) -> None:
    config = OptimizerConfig(name, adamw_lr=9.0, momentum=0.9, nesterov=nesterov, weight_decay=0.01)

    def train(build: Callable[[nn.Module], torch.optim.Optimizer]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = build(model)
        for _ in range(3):
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [param.detach() for param in model.parameters()]

    ours = train(lambda model: build_optimizers(model, config, lr=0.1)[0])
    expected = train(lambda model: reference(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", ["muon", "sgd", "adam", "adamw"])
def test_parameters_may_get_their_first_gradient_later_than_others(name: OptimizerName) -> None:
    model = small_model()
    config = OptimizerConfig(name, adamw_lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.0)
    optimizers = build_optimizers(model, config, lr=0.1)
    params = [param for param in model.parameters() if param.requires_grad]
    for with_gradient in (params[-1:], params):
        before = [param.detach().clone() for param in params]
        for param in with_gradient:
            param.grad = torch.randn_like(param)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        changed = [not torch.equal(param, old) for param, old in zip(params, before, strict=True)]
        assert changed == [any(param is other for other in with_gradient) for param in params]
