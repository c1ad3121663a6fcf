"""Max-pooling, batch normalization and SiLU as one function, for training in bfloat16 on CPUs.

Memory limits the speed of these operators. The fused function reads and writes less than three, and takes a third to
two thirds of their time. It rounds only once, so output and gradients are closer to those in float32. The code is
fused_block.cpp, which is compiled on first use.
"""

import ctypes
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vision.core.device import has_native_bf16
from vision.core.shared_library import find_shared_library

CHANNEL_MULTIPLE = 32
"""The number of channels must be a multiple of it: that many bfloat16 numbers are a cache line."""


def is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused function can be used, and saves time, in a training on `device` in `dtype`.

    The first call in a process may compile. If that fails, a warning is logged, once.
    """
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and has_native_bf16(device)
        and platform.system() == "Linux"
        and _load() is not None
    )


def _load() -> ctypes.CDLL | None:
    return find_shared_library(Path(__file__).with_suffix(".cpp"), "train.fused_blocks")


def is_supported(features: Tensor, norm: nn.BatchNorm2d, pool: bool) -> bool:
    """Whether `pool_norm_silu` accepts these arguments. Otherwise, use PyTorch's operators."""
    return (
        not torch.compiler.is_compiling()  # torch.compile fuses by itself
        and norm.training
        and norm.momentum is not None
        and norm.affine
        and norm.track_running_stats
        and norm.weight.dtype == torch.float32
        and type(features) is Tensor  # not a subclass that records or imitates operators
        and features.device.type == "cpu"
        and features.dtype == torch.bfloat16
        and features.ndim == 4
        and features.shape[1] % CHANNEL_MULTIPLE == 0
        and features.is_contiguous(memory_format=torch.channels_last)
        and _count_values(features, pool) > 1
    )


def pool_norm_silu(features: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
    """Compute `F.silu(norm(F.max_pool2d(features, 2)))`, or without pooling `F.silu(norm(features))`, in training mode.

    `norm` updates its running statistics. Call it only if `is_available` and `is_supported`.

    Args:
        features: bfloat16 [N, C, H, W] in the memory format channels_last.
        norm: float32, of C channels.
        pool: whether to pool.

    Returns:
        bfloat16 [N, C, H // 2, W // 2], or [N, C, H, W] without pooling, in the memory format channels_last.
    """
    output, mean, variance = _PoolNormSiLU.apply(features, norm.weight, norm.bias, norm.eps, pool)
    count = _count_values(features, pool)
    assert norm.momentum is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.mul_(1 - norm.momentum).add_(mean, alpha=norm.momentum)
        norm.running_var.mul_(1 - norm.momentum).add_(variance, alpha=norm.momentum * count / (count - 1))
    return output


def _count_values(features: Tensor, pool: bool) -> int:
    """Return how many values per channel are normalized."""
    count, _, height, width = features.shape
    return count * (height // 2) * (width // 2) if pool else count * height * width


class _PoolNormSiLU(torch.autograd.Function):
    """Returns the output, and the mean and the variance (without Bessel's correction) of each channel."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, epsilon: float, pool: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, channels, height, width = features.shape
        shape = (count, channels, height // 2, width // 2) if pool else features.shape
        output = _empty_channels_last(shape)
        pooled = _empty_channels_last(shape) if pool else features
        places = torch.empty(output.numel() // 2 if pool else 0, dtype=torch.uint8)
        mean, variance = (torch.empty(channels, dtype=torch.float32) for _ in range(2))
        tensors = {"input": features, "weight": weight, "bias": bias, "pooled": pooled, "places": places}
        results = {"mean": mean, "variance": variance, "output": output}
        _call("fused_forward", features.shape, epsilon, pool, tensors | results)
        ctx.save_for_backward(weight, bias, pooled, places, mean, variance)
        ctx.arguments = features.shape, epsilon, pool
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor, grad_mean: Tensor, grad_variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        weight, bias, pooled, places, mean, variance = ctx.saved_tensors
        shape, epsilon, pool = ctx.arguments
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        grad_input = _empty_channels_last(shape)
        grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
        tensors = {"weight": weight, "bias": bias, "pooled": pooled, "places": places, "mean": mean}
        tensors |= {"variance": variance, "grad_output": grad_output}
        results = {"grad_input": grad_input, "grad_weight": grad_weight, "grad_bias": grad_bias}
        _call("fused_backward", shape, epsilon, pool, tensors | results)
        return grad_input, grad_weight, grad_bias, None, None


def _empty_channels_last(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


_NUMBERS = ("images", "channels", "height", "width", "pool", "threads")
_TENSORS = ("input", "weight", "bias", "pooled", "places", "mean", "variance", "output")
_GRADIENTS = ("grad_output", "grad_input", "grad_weight", "grad_bias")


class _Block(ctypes.Structure):
    """The structure of the same name in fused_block.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in (*_TENSORS, *_GRADIENTS)),
    )


def _call(function: str, shape: tuple[int, ...], epsilon: float, pool: bool, tensors: dict[str, Tensor]) -> None:
    """Call a function of the library with the shape [N, C, H, W] of the input, and tensors by their names there."""
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    block = _Block(*shape, pool, torch.get_num_threads(), epsilon, **addresses)
    getattr(_load(), function)(ctypes.byref(block))
