"""Downscaling of whole batches, for progressive resizing."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_images(images: Tensor, scale: float) -> Tensor:
    """Downscale images by bilinear interpolation with antialiasing.

    Args:
        images: uint8 [N, H, W, C].
        scale: relative size, in (0, 1]; 1 returns `images`.

    Returns:
        uint8 [N, scale * H, scale * W, C]; sides are rounded, and at least 2 pixels long.
    """
    if scale == 1:
        return images
    size = [max(2, round(scale * side)) for side in images.shape[1:3]]
    resized_parts = []
    for part in images.permute(0, 3, 1, 2).split(1000):
        # Only the CPU resizes uint8; other devices need floats.
        pixels = part if part.device.type == "cpu" else part.float()
        resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        if resized.is_floating_point():
            resized = resized.round().clamp(0, 255).to(torch.uint8)
        resized_parts.append(resized)
    return torch.cat(resized_parts).permute(0, 2, 3, 1).contiguous()
