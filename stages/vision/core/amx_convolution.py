"""Faster weight gradients of convolutions on CPUs with AMX.

Small feature maps under-use AMX tiles, so several images share a row. oneDNN computes the gradient of a convolution's
weight in tiles of pixels of one row. A row of seven pixels leaves most of a tile empty, and a row of three nearly all
of it. With 256 channels, the gradient then takes two and six times as long as with rows of 64 pixels, including the
time of the copies.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

from vision.core.device import cpu_capabilities

logger = logging.getLogger(__name__)

_MAX_WIDTH, _PACKED_WIDTH = 8, 64
"""Feature maps of at most _MAX_WIDTH columns are packed into rows of about _PACKED_WIDTH pixels."""

_MIN_IMAGES, _MIN_CHANNEL_PAIRS = 32, 128 * 128
"""With fewer images, or input channels times output channels, the copies cost more time than they save."""


def convolution_context(
    model: nn.Module, batch_size: int, device: torch.device, dtype: torch.dtype
) -> AbstractContextManager[object]:
    """Return a context for the forward passes of `model`: AMXConvolutionMode if it saves time, else an empty one.

    The mode intercepts every function of PyTorch. That takes a twentieth of the time of a small step, so it is not used
    where it gains nothing. The context can be entered many times.

    Args:
        model: the network.
        batch_size: images per step.
        device: where the model is computed.
        dtype: what convolutions are computed in.
    """
    weights = (module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
    if (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and cpu_capabilities().get("amx_bf16", False)
        and batch_size >= _MIN_IMAGES
        and any(weight.shape[0] * weight.shape[1] >= _MIN_CHANNEL_PAIRS for weight in weights)
    ):
        logger.debug("weight gradients of small feature maps are computed with several images in a row")
        return AMXConvolutionMode()
    return nullcontext()


class AMXConvolutionMode(TorchFunctionMode):
    """A context in which the weight gradients of suitable convolutions are computed with several images in a row.

    Suitable are convolutions of narrow feature maps that keep the size of the map; see `_is_suitable`. They are
    computed in bfloat16, as under autocast. All other functions are unchanged.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `F.conv2d` as nn.Conv2d calls it, which is with all seven arguments by position."""
        if func is not F.conv2d or len(args) < 7 or not _is_suitable(args):
            return func(*args, **(kwargs or {}))
        features, weight, bias = args[:3]
        result = _Convolution.apply(features.bfloat16(), weight.bfloat16())
        return result if bias is None else result + bias.bfloat16().view(-1, 1, 1)


def _is_suitable(args: tuple[Any, ...]) -> bool:
    """Whether packing saves time for `F.conv2d(*args)`."""
    features, weight, _, stride, padding, dilation, groups = args
    height, width = weight.shape[2:]
    return (
        weight.requires_grad
        and weight.shape[0] * weight.shape[1] >= _MIN_CHANNEL_PAIRS
        and features.ndim == 4
        and len(features) >= _MIN_IMAGES
        and features.shape[3] <= _MAX_WIDTH
        and height == width
        and width % 2 == 1
        and width > 1
        and features.shape[2] >= width // 2  # oneDNN leaves part of the gradient uninitialized on smaller maps
        and stride == (1, 1)
        and dilation == (1, 1)
        and groups == 1
        and padding in ("same", (width // 2, width // 2))
    )


class _Convolution(torch.autograd.Function):
    """A convolution with stride 1 and "same" padding, without a bias."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return F.conv2d(features, weight, padding="same")

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor]:
        features, weight = ctx.saved_tensors
        padding = weight.shape[3] // 2
        grad_features = None
        if ctx.needs_input_grad[0]:
            grad_features = conv2d_input(features.shape, weight, grad_output, padding=padding)
        packed_features, packed_grad = pack_rows(features, padding), pack_rows(grad_output, padding)
        return grad_features, conv2d_weight(packed_features, weight.shape, packed_grad, padding=padding)


def pack_rows(images: Tensor, padding: int) -> Tensor:
    """Pack several images side by side into wider ones, with columns of zeros between them.

    Args:
        images: [N, C, H, W], any dtype.
        padding: columns of zeros after each image.

    Returns:
        [M, C, H, K * (W + padding)], about 64 pixels wide, in the memory format channels_last. Image K * m + k starts
        at column k * (W + padding) of the packed image m. Zeros fill the rest of the last one.
    """
    count, channels, height, width = images.shape
    per_row = max(1, min(count, _PACKED_WIDTH // (width + padding)))
    complete, rest = divmod(count, per_row)
    packed = images.new_zeros(complete + (rest > 0), height, per_row, width + padding, channels)
    channels_last = images.permute(0, 2, 3, 1)
    packed[:complete, :, :, :width] = (
        channels_last[: complete * per_row].unflatten(0, (complete, per_row)).transpose(1, 2)
    )
    if rest:
        packed[complete, :, :rest, :width] = channels_last[complete * per_row :].transpose(0, 1)
    return packed.flatten(2, 3).permute(0, 3, 1, 2)
