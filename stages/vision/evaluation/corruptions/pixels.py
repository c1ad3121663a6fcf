"""Conversion between images and planes of floats, and lengths relative to CIFAR's 32 pixels."""

import torch
from torch import Tensor


def to_planes(images: Tensor) -> Tensor:
    """Convert uint8 images [N, H, W, C] to float32 [N, C, H, W] in [0, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def to_images(planes: Tensor) -> Tensor:
    """Convert float32 [N, C, H, W] to uint8 images [N, H, W, C], clipped to [0, 1].

    Values are rounded. CIFAR-10-C truncates them, so its images are half a level of 255 darker on average.
    """
    return planes.clamp(0, 1).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def relative_size(images: Tensor) -> float:
    """Return the shorter side of images [N, H, W, C], relative to CIFAR's 32 pixels.

    CIFAR-10-C gives lengths in pixels of its images. For other images they are multiplied by this factor.
    """
    return min(images.shape[1:3]) / 32


def to_gray(planes: Tensor) -> Tensor:
    """Compute the luma of RGB planes (ITU-R BT.601), float32 [N, 1, H, W]."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (planes * weights).sum(1, keepdim=True)


def uniform(size: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw float32 numbers uniformly from [low, high)."""
    return low + (high - low) * torch.rand(size, generator=generator)
