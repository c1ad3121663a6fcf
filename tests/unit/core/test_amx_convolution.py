"""Convolutions with images side by side: against torch's own in float64, and where they are taken."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vision.core import amx_convolution
from vision.core.amx_convolution import SideBySide, fast_convolutions, side_by_side

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of all that is put side by side."""
    shapes: list[torch.Size] = []

    def noted(images: Tensor, margin: int) -> Tensor:
        shapes.append(images.shape)
        return side_by_side(images, margin)

    monkeypatch.setattr(amx_convolution, "side_by_side", noted)
    return shapes


@given(
    count=st.integers(1, 40),
    height=st.integers(1, 5),
    width=st.integers(1, 8),
    margin=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_strips_hold_every_image_once_with_zeros_between(
    count: int, height: int, width: int, margin: int, seed: int
) -> None:
    images = noise(count, 2, height, width, seed=seed)
    strips = side_by_side(images, margin)
    assert strips.is_contiguous(memory_format=torch.channels_last)
    across = strips.shape[3] // (width + margin)
    assert strips.shape[3] == across * (width + margin) <= 64
    places = strips.unflatten(3, (across, width + margin)).permute(0, 3, 1, 2, 4).flatten(0, 1)
    assert torch.equal(places[:count, ..., :width], images)
    assert places[:count, ..., width:].count_nonzero() == places[count:].count_nonzero() == 0
    assert len(places) - count < across


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("count", "height", "width"), [(33, 7, 7), (40, 3, 3), (37, 2, 8), (32, 1, 1)])
def test_outputs_and_gradients_are_those_of_the_convolution(
    packed: list[torch.Size], kernel: int, bias: bool, count: int, height: int, width: int
) -> None:
    layer = nn.Conv2d(128, 160, kernel, padding="same", bias=bias)
    features = noise(count, 128, height, width).requires_grad_()
    towards = noise(count, 160, height, width, seed=1)
    with torch.autocast("cpu", torch.bfloat16), SideBySide():
        made = layer(features)
    (made.float() * towards).sum().backward()
    assert [shape[1] for shape in packed] == [128, 160]

    parts = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    seen = features.detach().double().requires_grad_()
    exact = F.conv2d(seen, parts["weight"], parts.get("bias"), padding="same")
    (exact * towards).sum().backward()
    assert seen.grad is not None
    assert features.grad is not None
    # bfloat16 has eight bits of precision.
    assert (made - exact).norm() < 0.01 * exact.norm()
    assert (features.grad - seen.grad).norm() < 0.01 * seen.grad.norm()
    for name, p in layer.named_parameters():
        wanted = parts[name].grad
        assert p.grad is not None
        assert wanted is not None
        assert (p.grad - wanted).norm() < 0.01 * wanted.norm(), name


@pytest.mark.parametrize(
    ("layer", "side", "count"),
    [
        (nn.Conv2d(128, 128, 3, padding=1), 9, 32),  # a row is long enough
        (nn.Conv2d(64, 128, 3, padding=1), 4, 32),  # too little arithmetic
        (nn.Conv2d(128, 128, 3, stride=2, padding=1), 8, 32),
        (nn.Conv2d(128, 128, 3), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=2, dilation=2), 8, 32),
        (nn.Conv2d(256, 256, 3, padding=1, groups=2), 8, 32),
        (nn.Conv2d(128, 128, 1), 8, 32),
        (nn.Conv2d(128, 128, 2, padding=1), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=1), 8, 31),  # few images
    ],
)
def test_all_else_is_left_to_torch(packed: list[torch.Size], layer: nn.Conv2d, side: int, count: int) -> None:
    features = noise(count, layer.in_channels, side, side).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(features)
        with SideBySide():
            made = layer(features)
    made.sum().backward()
    assert torch.equal(made, plain)
    assert packed == []


def test_functions_that_are_called_otherwise_work_as_ever(packed: list[torch.Size]) -> None:
    features, filters = noise(32, 128, 8, 8), noise(128, 128, 3, 3).requires_grad_()
    with SideBySide():
        assert F.conv2d(features, filters).shape == (32, 128, 6, 6)
        assert F.conv2d(features, filters, padding="same").shape == features.shape
    assert packed == []


def test_they_are_taken_where_the_processor_computes_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3))
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda tiles=tiles: {"amx_bf16": tiles})
        assert isinstance(fast_convolutions(model, 32, CPU, torch.bfloat16), SideBySide) == tiles
        assert isinstance(fast_convolutions(model, 31, CPU, torch.bfloat16), nullcontext)
        assert isinstance(fast_convolutions(model[:1], 32, CPU, torch.bfloat16), nullcontext)
        assert isinstance(fast_convolutions(model, 32, CPU, torch.float32), nullcontext)
        assert isinstance(fast_convolutions(model, 32, torch.device("cuda"), torch.bfloat16), nullcontext)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # another kind of processor
    assert isinstance(fast_convolutions(model, 32, CPU, torch.bfloat16), nullcontext)
