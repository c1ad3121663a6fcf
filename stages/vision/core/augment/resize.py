"""Downscale whole batches of images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_images(images: Tensor, scale: float) -> Tensor:
    """Shrink uint8 images [N, H, W, C], smoothed (antialiased), to uint8 [N, scale * H, scale * W, C].

    Sizes are rounded, and no less than two pixels.
    """
    if scale == 1:
        return images
    size = [max(2, round(scale * pixels)) for pixels in images.shape[1:3]]
    parts = []
    for part in images.permute(0, 3, 1, 2).split(1000):
        # On a CPU bytes are resized as they are, on other devices only floats can be.
        exact = part if part.device.type == "cpu" else part.float()
        resized = F.interpolate(exact, size, mode="bilinear", antialias=True)
        parts.append(resized.round().clamp(0, 255).to(torch.uint8) if resized.is_floating_point() else resized)
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()
