"""Convolutions over small feature maps, whose filters learn faster where the images stand side by side.

On processors with AMX oneDNN computes the gradient of filters in tiles of pixels of one row. Where a row has seven of
them most of a tile is empty, and where it has three nearly all: of 256 channels the gradient then takes twice and six
times as long as for rows of 64 pixels that several images share, the copies included.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

_NARROW, _WIDE = 8, 64
"""Pixels of a row that is worth filling up, and of one that is full."""

_IMAGES, _PAIRS = 32, 128 * 128
"""How many images, and pairs of channels; with fewer the copies cost more than they save."""


def fast_convolutions(
    model: nn.Module, images: int, device: torch.device, dtype: torch.dtype
) -> AbstractContextManager[object]:
    """What to run the forward pass of `model` in, so that its filters learn fast from so many images at a time.

    A context that can be entered again and again, for a model computed in `dtype` on `device`; it does nothing where
    nothing would be gained. (To look at each function that is called takes a twentieth of the time of a small step.)
    """
    tiles = device.type == "cpu" and dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16", False)
    filters = (module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
    worth_it = tiles and images >= _IMAGES and any(each.shape[0] * each.shape[1] >= _PAIRS for each in filters)
    return SideBySide() if worth_it else nullcontext()


class SideBySide(TorchFunctionMode):
    """In it, convolutions that keep a narrow map's size get the gradient of their filters from images side by side.

    They are computed in bf16, as under autocast. All other functions stay as they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Stand in for each function of torch that is called."""
        # nn.Conv2d gives all seven arguments by their places.
        if func is not F.conv2d or len(args) < 7 or not _fits(*args):
            return func(*args, **(kwargs or {}))
        features, filters, bias = args[:3]
        made = _Convolution.apply(features.bfloat16(), filters.bfloat16())
        return made if bias is None else made + bias.bfloat16().view(-1, 1, 1)


def _fits(
    features: Tensor, filters: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Whether these arguments, in the order that nn.Conv2d gives them in, are of a case that is faster side by side."""
    height, width = filters.shape[2:]
    return (
        filters.requires_grad
        and filters.shape[0] * filters.shape[1] >= _PAIRS
        and features.ndim == 4
        and len(features) >= _IMAGES
        and features.shape[3] <= _NARROW
        and height == width
        and width % 2 == 1
        and width > 1
        and stride == (1, 1)
        and dilation == (1, 1)
        and groups == 1
        and padding in ("same", (width // 2, width // 2))
    )


class _Convolution(torch.autograd.Function):
    """A convolution of stride 1 that keeps the size of the map, without a bias."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(features, filters)
        return F.conv2d(features, filters, padding="same")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        features, filters = ctx.saved_tensors
        margin = filters.shape[3] // 2
        of_features = None
        if ctx.needs_input_grad[0]:
            of_features = conv2d_input(features.shape, filters, gradient, padding=margin)
        strips = (side_by_side(images, margin) for images in (features, gradient))
        return of_features, conv2d_weight(next(strips), filters.shape, next(strips), padding=margin)


def side_by_side(images: Tensor, margin: int) -> Tensor:
    """Put several images into each strip, with `margin` columns of zeros after each, and zeros where images run out.

    Args:
        images: [N, C, H, W], any dtype.
        margin: pixels.

    Returns:
        [M, C, H, K * (W + margin)], about 64 pixels wide, in the memory order channels_last: image K * m + k of the
        strip m begins at its column k * (W + margin).
    """
    count, channels, height, width = images.shape
    across = max(1, min(count, _WIDE // (width + margin)))
    full, over = divmod(count, across)
    strips = images.new_zeros(full + (over > 0), height, across, width + margin, channels)
    rows = images.permute(0, 2, 3, 1)
    strips[:full, :, :, :width] = rows[: full * across].unflatten(0, (full, across)).transpose(1, 2)
    if over:
        strips[full, :, :over, :width] = rows[full * across :].transpose(0, 1)
    return strips.flatten(2, 3).permute(0, 3, 1, 2)
