"""The fused pooling, normalization and activation: against float64, and when it is used."""

import copy
import io
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cpp_compiler import needs_compiler
from small_training import INPUTS, striped_images, train_config
from vision.core import fused_block, loop
from vision.core.fused_block import is_available, is_supported, pool_norm_silu
from vision.core.models import convnet
from vision.core.models.convnet import Block, ConvNet, fuse_blocks
from vision.core.models.registry import create_model
from vision.core.shared_library import find_shared_library
from vision.core.trainer import State
from vision.pipeline.paths import ROOT

CPU, BF16 = torch.device("cpu"), torch.bfloat16
SHAPES = [
    (5, 32, 8, 6),
    (5, 32, 7, 9),  # pooling drops the last row and column
    (3, 96, 2, 2),  # one pixel is left
    (1, 64, 10, 10),  # one image
    (40, 32, 31, 31),  # many chunks
    (2, 32, 4, 1100),  # a row is longer than a chunk
    (600, 128, 3, 3),
]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Libraries of these tests are compiled into a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        find_shared_library.cache_clear()
        yield
    find_shared_library.cache_clear()


@pytest.fixture
def _available(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused functions are available even if this CPU emulates bfloat16."""
    monkeypatch.setattr(fused_block, "has_native_bf16", lambda device: True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def channels_last(features: Tensor) -> Tensor:
    return features.to(BF16).contiguous(memory_format=torch.channels_last)


def make_norm(channels: int) -> nn.BatchNorm2d:
    """A layer with a random weight and bias, in training mode."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * noise(channels, seed=1))
        norm.bias.copy_(noise(channels, seed=2))
    return norm


def pytorch(features: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
    return F.silu(norm(F.max_pool2d(features, 2) if pool else features))


def relative_error(result: Tensor | None, exact: Tensor | None) -> float:
    assert result is not None
    assert exact is not None
    assert result.shape == exact.shape
    return ((result - exact).norm() / exact.norm()).item()


def gradients(
    function: Callable[[Tensor, nn.BatchNorm2d, bool], Tensor], features: Tensor, norm: nn.BatchNorm2d, pool: bool
) -> dict[str, Tensor | None]:
    """The output, and the gradients for a random gradient of the output."""
    features = features.detach().requires_grad_()
    output = function(features, norm, pool)
    output.backward(noise(*output.shape, seed=3).to(BF16).to(output.dtype))
    return {"output": output.detach(), "input": features.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}


@needs_compiler
@pytest.mark.parametrize(("function", "tolerance"), [(pool_norm_silu, 0.003), (pytorch, 0.01)], ids=["fused", "torch"])
@pytest.mark.parametrize("pool", [True, False], ids=["pool", "no_pool"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_close_to_those_in_float64(
    shape: tuple[int, ...], pool: bool, function: Any, tolerance: float
) -> None:
    """Closer than PyTorch's operators are, which round three times."""
    features, norm = channels_last(2 * noise(*shape) + 0.5), make_norm(shape[1])
    exact = gradients(pytorch, features.double(), copy.deepcopy(norm).double(), pool)
    results = gradients(function, features, norm, pool)
    assert results["output"].dtype == results["input"].dtype == BF16  # type: ignore[union-attr]
    assert results["output"].is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    for name, result in results.items():
        assert relative_error(result, exact[name]) < tolerance, name


@needs_compiler
@pytest.mark.parametrize("pool", [True, False])
def test_running_statistics_are_those_of_batch_norm(pool: bool) -> None:
    fused, reference = make_norm(32), make_norm(32).double()
    for seed in range(3):
        features = channels_last(noise(4, 32, 6, 7, seed=seed))
        pool_norm_silu(features, fused, pool)
        pytorch(features.double(), reference, pool)
    assert fused.num_batches_tracked == 3
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(fused, name).double(), getattr(reference, name), rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("mean", [100.0, -127.0, 5000.0])
def test_a_small_variance_around_a_large_mean_keeps_its_digits(mean: float) -> None:
    """Over 320,000 values. The sum of their squares in float32 would leave none."""
    features = channels_last(mean * (1 + noise(8, 32, 200, 200) / 100))
    norm, reference = make_norm(32), make_norm(32).double()
    result, exact = pool_norm_silu(features, norm, False), pytorch(features.double(), reference, False)
    torch.testing.assert_close(norm.running_var.double(), reference.running_var, rtol=1e-6, atol=0)  # type: ignore[union-attr]
    assert relative_error(result, exact) < 0.003


@needs_compiler
@pytest.mark.parametrize("pool", [True, False])
def test_the_bits_are_the_same_every_time_and_for_every_number_of_threads(pool: bool) -> None:
    features, threads = channels_last(noise(60, 64, 15, 15)), torch.get_num_threads()
    results = []
    for count in (1, 1, 2, 3):
        torch.set_num_threads(count)
        results.append(gradients(pool_norm_silu, features, make_norm(64), pool))
    torch.set_num_threads(threads)
    for name, first in results[0].items():
        assert first is not None
        assert all(torch.equal(first, result[name]) for result in results[1:]), name  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_not_lost(value: float, place: tuple[int, int]) -> None:
    features = channels_last(noise(2, 32, 4, 4))
    features[1, 5, 2 + place[0], 2 + place[1]] = value
    output = pool_norm_silu(features, make_norm(32), True)
    assert torch.equal(output.isnan(), pytorch(features, make_norm(32), True).isnan())
    assert output[:, 5].isnan().any()


@needs_compiler
@pytest.mark.parametrize("value", [-1e30, -300.0, -80.0, 80.0, 300.0, 1e30])
def test_values_of_any_size_are_activated(value: float) -> None:
    norm = make_norm(32)
    with torch.no_grad():
        norm.bias.fill_(value)
    features = channels_last(noise(2, 32, 4, 4)).requires_grad_()
    output = pool_norm_silu(features, norm, False)
    torch.testing.assert_close(output, pytorch(features, norm, False), rtol=0.02, atol=1e-6)
    output.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


UNSUPPORTED: dict[str, Callable[[Tensor, nn.BatchNorm2d], tuple[Tensor, nn.BatchNorm2d]]] = {
    "fp32": lambda features, norm: (features.float(), norm),
    "channels_first": lambda features, norm: (features.contiguous(), norm),
    "a part of the columns": lambda features, norm: (features[:, :, :, 1:], norm),
    "24 channels": lambda features, norm: (channels_last(noise(4, 24, 6, 6)), make_norm(24)),
    "evaluation": lambda features, norm: (features, norm.eval()),
    "bf16 weights": lambda features, norm: (features, norm.to(BF16)),
    "no running statistics": lambda features, norm: (features, nn.BatchNorm2d(32, track_running_stats=False)),
    "cumulative average": lambda features, norm: (features, nn.BatchNorm2d(32, momentum=None)),
    "no weights": lambda features, norm: (features, nn.BatchNorm2d(32, affine=False)),
    "no images": lambda features, norm: (features[:0], norm),
    "one value": lambda features, norm: (features[:1, :, :2, :2].contiguous(memory_format=torch.channels_last), norm),
    "meta": lambda features, norm: (features.to("meta"), norm),
    "fake": lambda features, norm: (FakeTensorMode().from_tensor(features), norm),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_other_arguments_are_not_supported(case: str) -> None:
    features, norm = channels_last(noise(4, 32, 6, 6)), make_norm(32)
    assert is_supported(features, norm, True)
    assert not is_supported(*UNSUPPORTED[case](features, norm), pool=True)


@needs_compiler
@pytest.mark.parametrize("size", [(9, 9), (8, 13), (3, 2), (2, 2)])
def test_a_fused_network_computes_the_same_up_to_rounding(size: tuple[int, int]) -> None:
    """Widths of 24 channels, and maps of one pixel, are left to PyTorch's operators."""
    torch.manual_seed(0)
    network = ConvNet(3, 4, [32, 24, 64], depth=2).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(network)
    for block in fused.blocks.children():
        assert isinstance(block, Block)
        block.fused = True
    images = noise(64, 3, *size).contiguous(memory_format=torch.channels_last)
    outputs = []
    for one in (network, fused):
        with torch.autocast("cpu", BF16):
            outputs.append(one(images).float())
        outputs[-1].square().mean().backward()
    assert relative_error(outputs[1], outputs[0]) < 0.05
    assert not torch.equal(outputs[1], outputs[0])
    assert list(fused.state_dict()) == list(network.state_dict())
    for (name, param), other in zip(fused.named_parameters(), network.parameters(), strict=True):
        if other.requires_grad:
            assert relative_error(param.grad, other.grad) < 0.15, name
    for (name, statistics), expected in zip(fused.named_buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(statistics, expected, rtol=0.02, atol=0.02, msg=name)
    for one in (network, fused):
        one.load_state_dict(network.state_dict())
    torch.testing.assert_close(fused.eval()(images), network.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "computed"), [((15, 15), (14, 14)), ((3, 8), (2, 8)), ((8, 5), (8, 4))])
def test_a_fused_block_does_not_compute_what_pooling_ignores(size: tuple[int, int], computed: tuple[int, int]) -> None:
    """The last row and column of an odd number. Output and gradients stay the same."""
    block = Block(32, 64, depth=1).double()
    nn.init.normal_(block.convs[0].weight, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    flops, outputs, grads = [], [], []
    for fused in (False, True):
        block.fused = fused
        features = noise(5, 32, *size).double().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            outputs.append(block(features))
        flops.append(counter.get_total_flops())
        outputs[-1].square().sum().backward()
        grads.append([features.grad, *(param.grad for param in block.parameters() if param.requires_grad)])
        block.zero_grad()
    assert flops == [2 * 5 * 32 * 64 * 9 * math.prod(sides) for sides in (size, computed)]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.usefixtures("_available")
@needs_compiler
def test_blocks_are_fused_in_bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(ConvNet(3, 4, [8, 32], depth=1))
    assert fuse_blocks(network, CPU, BF16)
    assert all(block.fused for block in network.modules() if isinstance(block, Block))
    assert not fuse_blocks(network, CPU, torch.float32)
    assert not any(block.fused for block in network.modules() if isinstance(block, Block))
    assert not fuse_blocks(network, torch.device("cuda"), BF16)
    assert not fuse_blocks(ConvNet(3, 4, [8, 16], depth=1), CPU, BF16)
    assert not fuse_blocks(nn.Conv2d(3, 32, 3), CPU, BF16)
    with monkeypatch.context() as patch:
        patch.setattr(fused_block, "has_native_bf16", lambda device: False)
        assert not fuse_blocks(network, CPU, BF16)
    with monkeypatch.context() as patch:
        patch.setattr(fused_block.platform, "system", lambda: "Darwin")
        assert not fuse_blocks(network, CPU, BF16)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is compiled")
@pytest.mark.usefixtures("_available")
def test_without_a_compiler_one_line_says_so_and_pytorch_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    find_shared_library.cache_clear()
    with caplog.at_level(logging.INFO):
        assert not is_available(CPU, BF16)
        assert not fuse_blocks(ConvNet(3, 4, [32], depth=1), CPU, BF16)
    (message,) = caplog.messages
    assert message == (
        "train.fused_blocks: no C++ compiler found (g++, c++, clang++); using PyTorch's operators; training is slower. "
        "Install a C++ compiler such as g++, or set train.fused_blocks to off."
    )
    find_shared_library.cache_clear()


def test_importing_the_core_compiles_nothing(tmp_path: Path) -> None:
    program = "import sys; sys.path.insert(0, 'stages'); import vision.core.trainer"
    environment = {"PATH": "/usr/bin:/bin", "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    assert not (tmp_path / "cache").exists()


def fit(
    on_checkpoint: Callable[[Callable[[], State]], None] = lambda make_state: None,
    state: State | None = None,
    **changes: Any,
) -> tuple[list[Tensor], loop.FitResult]:
    """Train a network whose blocks can be fused; return its state dict."""
    train, val = striped_images(150, seed=1), striped_images(60, seed=2)
    torch.manual_seed(0)
    model = create_model("convnet", {"widths": [32, 32], "depth": 2}, INPUTS, 4)
    model.initialize_from(train.images)
    config = train_config(dtype=BF16, epochs=2, keep="last", **changes)
    result = loop.fit(model, train, val, config, loop.Callbacks(on_checkpoint=on_checkpoint), state)
    return list(model.state_dict().values()), result


@needs_compiler
@pytest.mark.usefixtures("_available")
def test_training_uses_the_fused_function_on_auto_and_never_on_off(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def record(features: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
        calls.append(pool)
        return pool_norm_silu(features, norm, pool)

    monkeypatch.setattr(convnet.fused_block, "pool_norm_silu", record)
    expected = fit(fused_blocks="off")[1].history[-1]
    assert calls == []
    found = fit(fused_blocks="auto")[1].history[-1]
    assert calls == 6 * [True, False] * 2  # six steps, two blocks of two convolutions
    assert found.train_loss == pytest.approx(expected.train_loss, rel=0.05)


@needs_compiler
@pytest.mark.usefixtures("_available")
def test_a_training_with_fused_blocks_gives_the_same_bits_again_and_when_it_is_resumed() -> None:
    checkpoints: list[bytes] = []

    def save(make_state: Callable[[], State]) -> None:
        buffer = io.BytesIO()
        torch.save(make_state(), buffer)
        checkpoints.append(buffer.getvalue())

    expected, _ = fit(save)
    again, _ = fit()
    middle = torch.load(io.BytesIO(checkpoints[len(checkpoints) // 2]), weights_only=True)
    resumed, _ = fit(state=middle)
    for results in (again, resumed):
        assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))
