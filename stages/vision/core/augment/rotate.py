"""Random rotation of whole batches. Pixels are interpolated, so the result is float32."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its center by bilinear interpolation, with reflected edges.

    Args:
        images: [N, H, W, C] in [0, 255], uint8 or float32.
        degrees: float32 [N], counter-clockwise.

    Returns:
        float32 [N, H, W, C], a view that is contiguous as [N, C, H, W].
    """
    height, width = images.shape[1:3]
    # Half the distance between the centers of the first and the last pixel, the unit of `grid_sample`.
    half_height, half_width = ((max(size, 2) - 1) / 2 for size in (height, width))
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    coordinates = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width))).view(2, -1)
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    # The inverse rotation, which maps an output pixel to its source. The y axis points downwards.
    inverse = torch.stack((cos / half_width, -sin / half_width, sin / half_height, cos / half_height), 1)
    sources = (inverse.view(-1, 2, 2) @ coordinates).view(-1, 2, height, width)
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    grid = sources.permute(0, 2, 3, 1)
    return F.grid_sample(planes, grid, padding_mode="reflection", align_corners=True).permute(0, 2, 3, 1)


class RandomRotation:
    """Rotate each image by an angle that is drawn uniformly from [-degrees, degrees]; 0 is off."""

    def __init__(self, degrees: float, generator: torch.Generator) -> None:
        """Draw angles from `generator`, which is on the device of the images."""
        self.degrees = degrees
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Rotate images [B, H, W, C], uint8 or float32 in [0, 255]; the result is float32."""
        if self.degrees == 0:
            return images
        uniform = torch.rand(len(images), generator=self.generator, device=self.generator.device)
        return rotate(images, self.degrees * (2 * uniform - 1))
