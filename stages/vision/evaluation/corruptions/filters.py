"""Filters and movements of pixels that several corruptions use."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(planes: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Blur by a Gaussian, with mirrored edges.

    Args:
        planes: float32 [N, C, H, W].
        sigma: standard deviation in pixels; at 0 nothing changes.
        truncate: radius of the filter, relative to sigma.

    Returns:
        float32 [N, C, H, W].
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return planes
    height, width = planes.shape[2:]
    # A product with a matrix is faster on a CPU than a convolution of a single channel.
    return _blur_matrix(height, sigma, radius) @ (planes @ _blur_matrix(width, sigma, radius).T)


def _blur_matrix(size: int, sigma: float, radius: int) -> Tensor:
    """Return the matrix [size, size] that blurs a column of pixels."""
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    period = torch.remainder(torch.arange(size)[:, None] + offsets, 2 * size)
    sources = torch.minimum(period, 2 * size - 1 - period)  # d c b a | a b c d | d c b a
    return torch.zeros(size, size).scatter_add_(1, sources, (weights / weights.sum()).expand(size, -1))


def motion_blur(images: Tensor, angles: Tensor, radius: float, sigma: float) -> Tensor:
    """Blur along a line from each pixel, as the motion blur of ImageMagick: one-sided, to whole pixels.

    Edges are repeated. Weights below a thousandth of the largest are left out.

    Args:
        images: float32 [N, H, W, C].
        angles: float32 [N], direction of the line in degrees; 0 is to the right, 90 downwards.
        radius: the line has 2 * radius + 1 pixels.
        sigma: standard deviation of the weights in pixels.

    Returns:
        float32 [N, H, W, C].
    """
    length = min(math.ceil(2 * radius), math.floor(sigma * math.sqrt(2 * math.log(1000))))
    steps = torch.arange(length + 1)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    radians = torch.deg2rad(angles)
    count, height, width, channels = images.shape
    rows, columns = (torch.arange(-length, size + length).clamp_(0, size - 1) for size in (height, width))
    padded = images.index_select(1, rows).index_select(2, columns)
    # Rows of pixels that start at each pixel. They overlap in memory. Gathering rows is faster than gathering pixels.
    windows = padded.as_strided((padded.numel() // channels - width + 1, width * channels), (channels, 1))
    first_rows = torch.arange(count)[:, None] * len(rows) + torch.arange(height) + length
    blurred = torch.zeros(count * height, width * channels)
    for step, weight in zip(steps.tolist(), (weights / weights.sum()).tolist(), strict=True):
        down, right = ((step * direction).round().long()[:, None] for direction in (radians.sin(), radians.cos()))
        starts = (first_rows + down) * len(columns) + length + right
        blurred.add_(windows.index_select(0, starts.flatten()), alpha=weight)
    return blurred.view(images.shape)


def zoom(planes: Tensor, factor: float) -> Tensor:
    """Enlarge the center of planes [N, C, H, W] to their size by bilinear interpolation; a factor of at least 1."""
    height, width = planes.shape[2:]
    inner_height, inner_width = (math.ceil(size / factor) for size in (height, width))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    center = planes[:, :, top : top + inner_height, left : left + inner_width]
    return F.interpolate(center, (height, width), mode="bilinear")


def warp(planes: Tensor, sources: Tensor) -> Tensor:
    """Take pixels from other places by bilinear interpolation, with reflected edges.

    Args:
        planes: float32 [N, C, H, W].
        sources: float32 [N, H, W, 2], the x and y in pixels from which each pixel of the result comes.

    Returns:
        float32 [N, C, H, W].
    """
    height, width = planes.shape[2:]
    last = torch.tensor([max(width - 1, 1), max(height - 1, 1)])
    return F.grid_sample(planes, 2 * sources / last - 1, padding_mode="reflection", align_corners=True)


def pixel_grid(height: int, width: int) -> Tensor:
    """Return the x and y of each pixel, float32 [H, W, 2]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y), 2).float()
