"""Faster weight gradients of convolutions: against PyTorch's in float64, and when they are used."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cpp_compiler import needs_compiler
from vision.core import avx512_weight_gradient, convolution
from vision.core.amx_weight_gradient import pack_rows
from vision.core.convolution import AMX, AVX512, WeightGradient, WeightGradientMode, select_weight_gradient
from vision.core.device import cpu_capabilities

CPU, BF16 = torch.device("cpu"), torch.bfloat16
needs_avx512_bf16 = pytest.mark.skipif(not cpu_capabilities().get("avx512_bf16", False), reason="needs AVX512_BF16")
METHODS = [pytest.param(AMX, id="amx"), pytest.param(AVX512, id="avx512", marks=[needs_avx512_bf16, needs_compiler])]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls() -> list[torch.Size]:
    """The shapes of the features whose gradients methods of `recorded` have computed."""
    return []


def recorded(method: WeightGradient, calls: list[torch.Size]) -> WeightGradient:
    def compute(features: Tensor, grad_output: Tensor, kernel_size: int) -> Tensor:
        calls.append(features.shape)
        return method.compute(features, grad_output, kernel_size)

    return method._replace(compute=compute)


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "padding", "shape"),
    [
        *((kernel, "same", shape) for kernel in (3, 5) for shape in [(33, 7, 7), (40, 3, 3), (37, 2, 8)]),
        (3, "same", (256, 1, 1)),
        (3, "valid", (33, 8, 7)),
        (3, "valid", (40, 4, 3)),
        (5, "valid", (37, 6, 8)),
    ],
)
def test_outputs_and_gradients_are_those_of_the_convolution(
    calls: list[torch.Size], method: WeightGradient, kernel: int, padding: str, bias: bool, shape: tuple[int, int, int]
) -> None:
    layer = nn.Conv2d(128, 160, kernel, padding=padding, bias=bias)
    count, height, width = shape
    features = noise(count, 128, height, width).requires_grad_()
    with torch.autocast("cpu", BF16), WeightGradientMode(recorded(method, calls)):
        result = layer(features)
    grad = noise(*result.shape, seed=1)
    (result.float() * grad).sum().backward()
    assert calls == [features.shape]

    parts = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    exact_features = features.detach().double().requires_grad_()
    exact = F.conv2d(exact_features, parts["weight"], parts.get("bias"), padding=padding)
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


@pytest.mark.parametrize("method", [AMX, AVX512], ids=["amx", "avx512"])
@pytest.mark.parametrize(
    ("layer", "side", "count"),
    [
        (nn.Conv2d(128, 128, 3, stride=2, padding=1), 8, 32),
        (nn.Conv2d(128, 128, 5, padding=1), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=2, dilation=2), 8, 32),
        (nn.Conv2d(256, 256, 3, padding=1, groups=2), 8, 32),
        (nn.Conv2d(128, 128, 1), 8, 32),
        (nn.Conv2d(128, 128, 2, padding=1), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=1).requires_grad_(False), 8, 32),
        (nn.Conv2d(128, 128, 3, padding=1), 8, 31),  # too few images
        (nn.Conv2d(24, 128, 3, padding=1), 8, 32),  # too few channels for AMX, and no multiple of 32
    ],
)
def test_unsuitable_convolutions_are_unchanged(
    calls: list[torch.Size], method: WeightGradient, layer: nn.Conv2d, side: int, count: int
) -> None:
    features = noise(count, layer.in_channels, side, side).requires_grad_()
    with torch.autocast("cpu", BF16):
        expected = layer(features)
        with WeightGradientMode(recorded(method, calls)):
            result = layer(features)
    result.sum().backward()
    assert torch.equal(result, expected)
    assert calls == []


@pytest.mark.parametrize(
    ("method", "features", "weight", "faster"),
    [
        (AMX, (32, 128, 8, 8), (128, 128, 3, 3), True),
        (AMX, (32, 128, 9, 9), (128, 128, 3, 3), False),  # rows are wide enough
        (AMX, (32, 64, 4, 4), (128, 64, 3, 3), False),  # too few channels
        (AMX, (32, 128, 1, 1), (128, 128, 5, 5), False),  # too few rows for the kernel
        (AVX512, (32, 64, 9, 9), (48, 64, 3, 3), True),
        (AVX512, (32, 48, 9, 9), (64, 48, 3, 3), False),
        (AVX512, (32, 64, 9, 9), (72, 64, 3, 3), False),
        (AVX512, (32, 32, 9, 9), (32, 32, 3, 3), False),  # too few channels
        (AVX512, (32, 64, 9, 9), (64, 64, 7, 7), False),
        (AVX512, (32, 64, 2, 2), (64, 64, 3, 3), False),  # too few pixels
    ],
)
def test_a_method_is_used_for_the_shapes_for_which_it_is_faster(
    method: WeightGradient, features: tuple[int, ...], weight: tuple[int, ...], faster: bool
) -> None:
    assert method.is_faster(features, weight) == faster


def test_functional_calls_are_unchanged(calls: list[torch.Size]) -> None:
    features, weight = noise(32, 128, 8, 8), noise(128, 128, 3, 3).requires_grad_()
    with WeightGradientMode(recorded(AMX, calls)):
        assert F.conv2d(features, weight).shape == (32, 128, 6, 6)
        assert F.conv2d(features, weight, padding="same").shape == features.shape
    assert calls == []


@needs_avx512_bf16
@needs_compiler
@given(
    count=st.integers(1, 70),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    in_vectors=st.integers(1, 3),
    out_vectors=st.integers(1, 3),
    kernel=st.sampled_from([3, 5]),
    padded=st.booleans(),
    threads=st.integers(1, 5),
)
def test_the_avx512_gradient_is_exact_to_float32_and_has_the_same_bits_with_any_number_of_threads(
    count: int, height: int, width: int, in_vectors: int, out_vectors: int, kernel: int, padded: bool, threads: int
) -> None:
    padding = kernel // 2 if padded else 0
    lost = kernel - 1 - 2 * padding
    features = noise(count, 32 * in_vectors, height + lost, width + lost).to(BF16)
    grad = noise(count, 16 * out_vectors, height, width, seed=1).to(BF16)
    found = avx512_weight_gradient.weight_gradient(features, grad, kernel)
    shape = (grad.shape[1], features.shape[1], kernel, kernel)
    exact = torch.nn.grad.conv2d_weight(features.double(), shape, grad.double(), padding=padding)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(avx512_weight_gradient.weight_gradient(features, grad, kernel), found)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The AVX512 code counts as compiled."""
    monkeypatch.setattr(avx512_weight_gradient, "_load", lambda: object())
    monkeypatch.setattr(avx512_weight_gradient.platform, "system", lambda: "Linux")


@pytest.mark.usefixtures("_compiled")
def test_the_method_is_selected_by_the_cpu_for_large_bf16_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 128, 3))
    cases: list[tuple[dict[str, bool], WeightGradient | None]] = [
        ({"amx_bf16": True, "avx512_bf16": True}, AMX),
        ({"amx_bf16": False, "avx512_bf16": True}, AVX512),
        ({"amx_bf16": False, "avx512_bf16": False}, None),
        ({}, None),
    ]
    for capabilities, method in cases:
        for module in (convolution, avx512_weight_gradient):
            monkeypatch.setattr(module, "cpu_capabilities", lambda capabilities=capabilities: capabilities)
        assert select_weight_gradient(model, 32, CPU, BF16) == method
        assert select_weight_gradient(model, 31, CPU, BF16) is None
        assert select_weight_gradient(model[:1], 32, CPU, BF16) is None
        assert select_weight_gradient(model, 32, CPU, torch.float32) is None
        assert select_weight_gradient(model, 32, torch.device("cuda"), BF16) is None
    monkeypatch.setattr(avx512_weight_gradient, "cpu_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(avx512_weight_gradient.platform, "system", lambda: "Darwin")
    assert select_weight_gradient(model, 32, CPU, BF16) is None
