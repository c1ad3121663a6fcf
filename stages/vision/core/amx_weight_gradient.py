"""The weight gradient of a convolution on CPUs with AMX, with several images in a row.

oneDNN computes the gradient in tiles of pixels of one row. A row of seven pixels leaves most of a tile empty, and a row
of three nearly all of it. Packed into rows of 64 pixels, with 256 channels, the gradient takes half of the time for
rows of seven pixels and a sixth for rows of three. That includes the copies.
"""

from torch import Tensor
from torch.nn.grad import conv2d_weight

_MAX_WIDTH, _PACKED_WIDTH = 8, 64
"""Feature maps of at most _MAX_WIDTH columns are packed into rows of about _PACKED_WIDTH pixels."""

_MIN_CHANNEL_PAIRS = 128 * 128
"""With fewer input channels times output channels, the copies cost more time than they save."""


def is_faster(features_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> bool:
    """Whether packing saves time, for features [N, C, H, W] and a weight [out, C, K, K]."""
    height, width = features_shape[2:]
    return (
        weight_shape[0] * weight_shape[1] >= _MIN_CHANNEL_PAIRS
        and width <= _MAX_WIDTH
        and height >= weight_shape[2] // 2  # oneDNN leaves part of the gradient uninitialized on smaller maps
    )


def weight_gradient(features: Tensor, grad_output: Tensor, kernel_size: int) -> Tensor:
    """Compute the weight gradient of a convolution with stride 1.

    Args:
        features: bfloat16 [N, in, H, W], the input.
        grad_output: bfloat16 [N, out, H', W'], the gradient of the output, whose size tells the padding.
        kernel_size: side of the filters in pixels.

    Returns:
        bfloat16 [out, in, kernel_size, kernel_size].
    """
    width, out_width = features.shape[3], grad_output.shape[3]
    padding = (out_width - width + kernel_size - 1) // 2
    packed = pack_rows(features, padding)
    packed_grad = pack_rows(grad_output, width + padding - out_width)
    shape = (grad_output.shape[1], features.shape[1], kernel_size, kernel_size)
    packed_grad = packed_grad[..., : packed.shape[3] + 2 * padding - kernel_size + 1]
    return conv2d_weight(packed, shape, packed_grad, padding=padding)


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
