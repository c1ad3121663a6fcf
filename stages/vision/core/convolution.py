"""Convolutions whose weight gradients are computed faster than by PyTorch, in training in bfloat16 on CPUs.

A method is chosen by the instruction sets of the CPU. Each has a module of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from vision.core import amx_weight_gradient, avx512_weight_gradient
from vision.core.device import cpu_capabilities

_MIN_IMAGES = 32
"""Smaller batches gain less than intercepting PyTorch's functions costs."""


class WeightGradient(NamedTuple):
    """How to compute the weight gradient of a convolution with stride 1 and an odd kernel size.

    Attributes:
        name: of the instruction set.
        is_faster: whether to use it for the shapes of features [N, C, H, W] and of a weight [out, C, K, K].
        compute: maps features, the gradient of the output (both bfloat16) and the kernel size to the gradient.
    """

    name: str
    is_faster: Callable[[tuple[int, ...], tuple[int, ...]], bool]
    compute: Callable[[Tensor, Tensor, int], Tensor]


AMX = WeightGradient("amx_bf16", amx_weight_gradient.is_faster, amx_weight_gradient.weight_gradient)
AVX512 = WeightGradient("avx512_bf16", avx512_weight_gradient.is_faster, avx512_weight_gradient.weight_gradient)


def select_weight_gradient(
    model: nn.Module, batch_size: int, device: torch.device, dtype: torch.dtype
) -> WeightGradient | None:
    """Return the method that saves time in a training of `model`; None means PyTorch's.

    WeightGradientMode intercepts every function of PyTorch. That takes a twentieth of the time of a small step, so no
    method is used where it gains nothing. The first call in a process may compile. If that fails, a warning is logged,
    once.

    Args:
        model: the network.
        batch_size: images per step.
        device: where the model is computed.
        dtype: what convolutions are computed in.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or batch_size < _MIN_IMAGES:
        return None
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, nn.Conv2d)]
    method = AMX if cpu_capabilities().get("amx_bf16", False) else AVX512
    if not any(shape[2] > 1 and method.is_faster((batch_size, shape[1], 8, 8), shape) for shape in shapes):
        return None
    return method if method is AMX or avx512_weight_gradient.is_available() else None


class WeightGradientMode(TorchFunctionMode):
    """A context in which a method computes the weight gradients of suitable convolutions.

    Suitable are convolutions with "same" padding or none, where the method is faster; see `_is_suitable`.
    They are computed in bfloat16, as under autocast. All other functions are unchanged.
    """

    def __init__(self, method: WeightGradient) -> None:
        """For a method that this CPU supports."""
        super().__init__()
        self.method = method

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `F.conv2d` as nn.Conv2d calls it, which is with all seven arguments by position."""
        if func is not F.conv2d or len(args) < 7 or not _is_suitable(self.method, args):
            return func(*args, **(kwargs or {}))
        features, weight, bias = args[:3]
        padding = 0 if args[4] in ("valid", (0, 0)) else weight.shape[3] // 2
        result = _Convolution.apply(features.bfloat16(), weight, padding, self.method)
        return result if bias is None else result + bias.bfloat16().view(-1, 1, 1)


def _is_suitable(method: WeightGradient, args: tuple[Any, ...]) -> bool:
    """Whether the method saves time for `F.conv2d(*args)`."""
    features, weight, _, stride, padding, dilation, groups = args
    height, width = weight.shape[2:]
    return (
        weight.requires_grad
        and features.ndim == 4
        and len(features) >= _MIN_IMAGES
        and height == width
        and width % 2 == 1
        and width > 1
        and stride == (1, 1)
        and dilation == (1, 1)
        and groups == 1
        and padding in ("same", "valid", (width // 2, width // 2), (0, 0))
        and method.is_faster(features.shape, weight.shape)
    )


class _Convolution(torch.autograd.Function):
    """A convolution with stride 1, without a bias."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, padding: int, method: WeightGradient) -> Tensor:
        rounded_weight = weight.bfloat16()
        ctx.save_for_backward(features, rounded_weight)
        ctx.arguments = padding, method, weight.dtype  # type: ignore[attr-defined]
        return F.conv2d(features, rounded_weight, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        features, weight = ctx.saved_tensors
        padding, method, dtype = ctx.arguments
        kernel_size = weight.shape[3]
        grad_features = None
        if ctx.needs_input_grad[0]:
            grad_features = conv2d_input(features.shape, weight, grad_output, padding=padding)
        return grad_features, method.compute(features, grad_output, kernel_size).to(dtype), None, None
