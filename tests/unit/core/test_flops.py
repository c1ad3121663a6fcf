import pytest
import torch
from torch import nn

from vision.core import flops
from vision.core.flops import peak_flops, training_flops
from vision.core.models.classifier import InputSpec
from vision.core.models.registry import create_model


class TwoLayers(nn.Module):
    """A convolution and a linear layer, whose operations can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Linear(8 * 6 * 5, 7, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.conv(images.permute(0, 3, 1, 2).float())).flatten(1))


@pytest.mark.parametrize("count", [1, 4])
def test_training_flops_are_those_counted_by_hand(count: int) -> None:
    model = TwoLayers().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = training_flops(model, torch.zeros(count, 6, 5, 3, dtype=torch.uint8))
    conv, linear = 2 * 6 * 5 * 8 * 3 * 9, 2 * (8 * 6 * 5) * 7
    # The images need no gradient, so the convolution's backward pass costs one forward pass, the linear layer's two.
    assert found == 2 * conv + 3 * linear
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_whitening_layer_has_no_backward_pass() -> None:
    inputs = InputSpec([32, 32, 3], [0.5] * 3, [0.25] * 3)
    model = create_model("convnet", {"widths": [8], "depth": 1}, inputs, 10)
    pixels = 31 * 31
    first, block, last = 2 * pixels * 24 * 3 * 4, 2 * pixels * 8 * 24 * 9, 2 * 8 * 10
    assert training_flops(model, torch.zeros(1, 32, 32, 3, dtype=torch.uint8)) == first + 2 * block + 3 * last


def test_peak_flops_are_those_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 0.5, 0.25, 0.5, 1.0, *[2.0] * 10**6])
    monkeypatch.setattr(flops, "_time_matmul", lambda a, b: next(times))
    assert peak_flops(torch.device("cpu"), torch.float32, seconds=0.05) == 2 * 2048**3 / 0.25


def test_an_interrupted_measurement_restores_the_setting_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(a: torch.Tensor, b: torch.Tensor) -> float:
        assert torch.backends.cuda.matmul.allow_tf32, "as convolutions, by default"
        raise KeyboardInterrupt

    monkeypatch.setattr(flops, "_time_matmul", interrupt)
    with pytest.raises(KeyboardInterrupt):
        peak_flops(torch.device("cpu"), torch.float32)
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_larger_products_take_longer(dtype: torch.dtype) -> None:
    small, large = (torch.ones(size, size, dtype=dtype) for size in (8, 1024))
    # The fastest of several, because other processes use the cores too.
    fast, slow = (min(flops._time_matmul(matrix, matrix) for _ in range(5)) for matrix in (small, large))
    assert 0 < fast < slow
