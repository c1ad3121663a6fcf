"""Rotation of whole batches, on the device that the data is on: new pixels are interpolated, so they are floats."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its centre by bilinear interpolation; at the edge pixels it goes on mirrored.

    Args:
        images: [N, H, W, C] in [0, 255], uint8 or float32.
        degrees: float32 [N], counter-clockwise.

    Returns:
        float32 [N, H, W, C], a view that is contiguous in [N, C, H, W].
    """
    height, width = images.shape[1:3]
    # Half of what lies between the first and the last pixel's centres; grid_sample counts in this unit.
    half_height, half_width = ((max(size, 2) - 1) / 2 for size in (height, width))
    down = torch.arange(height, device=images.device) - (height - 1) / 2
    right = torch.arange(width, device=images.device) - (width - 1) / 2
    pixels = torch.stack((right.expand(height, -1), down[:, None].expand(-1, width))).view(2, -1)
    angles = degrees * (math.pi / 180)
    cos, sin = angles.cos(), angles.sin()
    # Where each output pixel comes from: the way back, so clockwise. Rows run downwards.
    back = torch.stack((cos / half_width, -sin / half_width, sin / half_height, cos / half_height), 1).view(-1, 2, 2)
    source = (back @ pixels).view(-1, 2, height, width)
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    grid = source.permute(0, 2, 3, 1)
    return F.grid_sample(planes, grid, padding_mode="reflection", align_corners=True).permute(0, 2, 3, 1)


class Rotate:
    """Rotate each image by a random angle of up to `degrees` either way, every angle equally likely; 0 is off."""

    def __init__(self, degrees: float, generator: torch.Generator) -> None:
        """Draw from `generator`, which is on the device of the images."""
        self.degrees = degrees
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Rotate images [N, H, W, C], uint8 or float32, to float32."""
        if self.degrees == 0:
            return images
        unit = torch.rand(len(images), generator=self.generator, device=self.generator.device)
        return rotated(images, self.degrees * (2 * unit - 1))
