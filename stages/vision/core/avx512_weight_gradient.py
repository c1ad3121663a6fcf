"""The weight gradient of a convolution on CPUs with AVX512_BF16 and without AMX.

Here oneDNN's weight gradient is slower than its forward pass: typically 0.7 instead of 0.95 TFLOP/s on two cores. The
code in avx512_weight_gradient.cpp reaches about 0.85. It is compiled on first use. It adds in float32 and returns
float32; PyTorch's convolution rounds the gradient to bfloat16.
"""

import ctypes
import platform
from pathlib import Path

import torch
from torch import Tensor

from vision.core.device import cpu_capabilities
from vision.core.shared_library import find_shared_library

_IN_MULTIPLE, _OUT_MULTIPLE = 32, 16
"""The numbers of input and output channels must be multiples of these: the code works on whole vectors."""

_MIN_CHANNEL_PAIRS = 32 * 64
"""With fewer input channels times output channels, most of the time goes into rearranging numbers."""

_MIN_PIXELS = 256
"""Pixels of a block. With fewer in all images, most of the work would be on zeros."""


def is_available() -> bool:
    """Whether the code can be used on this machine. The first call in a process may compile."""
    supported = cpu_capabilities().get("avx512_bf16", False) and platform.system() == "Linux"
    return bool(supported) and _load() is not None


def is_faster(features_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> bool:
    """Whether the code supports, and is faster for, features [N, C, H, W] and a weight [out, C, K, K]."""
    count, channels, height, width = features_shape
    return (
        channels % _IN_MULTIPLE == 0
        and weight_shape[0] % _OUT_MULTIPLE == 0
        and channels * weight_shape[0] >= _MIN_CHANNEL_PAIRS
        and weight_shape[2] <= 5  # a filter has up to 32 pixels
        and count * height * width >= _MIN_PIXELS
    )


def weight_gradient(features: Tensor, grad_output: Tensor, kernel_size: int) -> Tensor:
    """Compute the weight gradient of a convolution with stride 1.

    The bits of the result depend on the arguments only, not on the number of threads.

    Args:
        features: bfloat16 [N, in, H, W], the input.
        grad_output: bfloat16 [N, out, H', W'], the gradient of the output, whose size tells the padding.
        kernel_size: side of the filters in pixels.

    Returns:
        float32 [out, in, kernel_size, kernel_size], in the memory format channels_last.
    """
    count, in_channels, height, width = features.shape
    out_channels = grad_output.shape[1]
    features, grad_output = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (features, grad_output))
    result = torch.empty(out_channels, kernel_size, kernel_size, in_channels)
    padding = (grad_output.shape[2] - height + kernel_size - 1) // 2
    numbers = (count, height, width, in_channels, out_channels, kernel_size, padding, torch.get_num_threads())
    addresses = (tensor.data_ptr() for tensor in (features, grad_output, result))
    library = _load()
    assert library is not None  # `is_available` was called before
    library.weight_gradient(ctypes.byref(_Convolution(*numbers, *addresses)))
    return result.permute(0, 3, 1, 2)


class _Convolution(ctypes.Structure):
    """The structure of the same name in avx512_weight_gradient.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "in_channels", "out_channels")),
        *((name, ctypes.c_int64) for name in ("kernel", "padding", "threads")),
        *((name, ctypes.c_void_p) for name in ("input", "grad_output", "grad_weight")),
    )


def _load() -> ctypes.CDLL | None:
    return find_shared_library(Path(__file__).with_suffix(".cpp"), "train.fast_weight_gradients")
