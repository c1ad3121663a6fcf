"""The AMX convolution: against PyTorch's in float64, and when it is used."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vision.core import amx_convolution
from vision.core.amx_convolution import AMXConvolutionMode, convolution_context, pack_rows

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Records the shapes of all arguments of `pack_rows`."""
    shapes: list[torch.Size] = []

    def record(images: Tensor, padding: int) -> Tensor:
        shapes.append(images.shape)
        return pack_rows(images, padding)

    monkeypatch.setattr(amx_convolution, "pack_rows", record)
    return shapes


@given(
    count=st.integers(1, 40),
    height=st.integers(1, 5),
    width=st.integers(1, 8),
    padding=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_packed_rows_contain_every_image_once_with_zeros_between(
    count: int, height: int, width: int, padding: int, seed: int
) -> None:
    images = noise(count, 2, height, width, seed=seed)
    packed_rows = pack_rows(images, padding)
    assert packed_rows.is_contiguous(memory_format=torch.channels_last)
    per_row = packed_rows.shape[3] // (width + padding)
    assert packed_rows.shape[3] == per_row * (width + padding) <= 64
    slots = packed_rows.unflatten(3, (per_row, width + padding)).permute(0, 3, 1, 2, 4).flatten(0, 1)
    assert torch.equal(slots[:count, ..., :width], images)
    assert slots[:count, ..., width:].count_nonzero() == slots[count:].count_nonzero() == 0
    assert len(slots) - count < per_row


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "count", "height", "width"),
    [(3, 33, 7, 7), (5, 33, 7, 7), (3, 40, 3, 3), (5, 40, 3, 3), (3, 37, 2, 8), (5, 37, 2, 8), (3, 32, 1, 1)],
)
def test_outputs_and_gradients_are_those_of_the_convolution(
    packed: list[torch.Size], kernel: int, bias: bool, count: int, height: int, width: int
) -> None:
    layer = nn.Conv2d(128, 160, kernel, padding="same", bias=bias)
    features = noise(count, 128, height, width).requires_grad_()
    grad = noise(count, 160, height, width, seed=1)
    with torch.autocast("cpu", torch.bfloat16), AMXConvolutionMode():
        result = layer(features)
    (result.float() * grad).sum().backward()
    assert [shape[1] for shape in packed] == [128, 160]

    parts = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    exact_features = features.detach().double().requires_grad_()
    exact = F.conv2d(exact_features, parts["weight"], parts.get("bias"), padding="same")
    (exact * grad).sum().backward()
    assert exact_features.grad is not None
    assert features.grad is not None
    # bfloat16 has eight bits of precision.
    assert (result - exact).norm() < 0.01 * exact.norm()
    assert (features.grad - exact_features.grad).norm() < 0.01 * exact_features.grad.norm()
    for name, p in layer.named_parameters():
        wanted = parts[name].grad
        assert p.grad is not None
        assert wanted is not None
        assert (p.grad - wanted).norm() < 0.01 * wanted.norm(), name


@pytest.mark.parametrize(
    ("layer", "side", "count"),
    [
        (nn.Conv2d(128, 128, 3, padding=1), 9, 32),  # rows are wide enough
        (nn.Conv2d(64, 128, 3, padding=1), 4, 32),  # too few channels
        (nn.Conv2d(128, 128, 3, stride=2, padding=1), 8, 32),
        (nn.Conv2d(128, 128, 3), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=2, dilation=2), 8, 32),
        (nn.Conv2d(256, 256, 3, padding=1, groups=2), 8, 32),
        (nn.Conv2d(128, 128, 1), 8, 32),
        (nn.Conv2d(128, 128, 2, padding=1), 8, 32),
        (nn.Conv2d(128, 128, 5, padding=2), 1, 32),  # too few rows for the kernel
        (nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=1), 8, 31),  # too few images
    ],
)
def test_unsuitable_convolutions_are_unchanged(
    packed: list[torch.Size], layer: nn.Conv2d, side: int, count: int
) -> None:
    features = noise(count, layer.in_channels, side, side).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(features)
        with AMXConvolutionMode():
            result = layer(features)
    result.sum().backward()
    assert torch.equal(result, expected)
    assert packed == []


def test_functional_calls_are_unchanged(packed: list[torch.Size]) -> None:
    features, weight = noise(32, 128, 8, 8), noise(128, 128, 3, 3).requires_grad_()
    with AMXConvolutionMode():
        assert F.conv2d(features, weight).shape == (32, 128, 6, 6)
        assert F.conv2d(features, weight, padding="same").shape == features.shape
    assert packed == []


def test_the_mode_is_used_for_large_bf16_networks_on_cpus_with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3))
    for amx in (True, False):
        monkeypatch.setattr(amx_convolution, "cpu_capabilities", lambda amx=amx: {"amx_bf16": amx})
        assert isinstance(convolution_context(model, 32, CPU, torch.bfloat16), AMXConvolutionMode) == amx
        assert isinstance(convolution_context(model, 31, CPU, torch.bfloat16), nullcontext)
        assert isinstance(convolution_context(model[:1], 32, CPU, torch.bfloat16), nullcontext)
        assert isinstance(convolution_context(model, 32, CPU, torch.float32), nullcontext)
        assert isinstance(convolution_context(model, 32, torch.device("cuda"), torch.bfloat16), nullcontext)
    monkeypatch.setattr(amx_convolution, "cpu_capabilities", dict)
    assert isinstance(convolution_context(model, 32, CPU, torch.bfloat16), nullcontext)
