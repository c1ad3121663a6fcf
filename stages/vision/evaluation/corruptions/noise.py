"""Noise: each function maps uint8 images [N, H, W, 3] to new ones, at a severity from 1 to 5."""

import torch
from torch import Tensor

from vision.evaluation.corruptions.pixels import to_images, to_planes


def gaussian_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add noise of a normal distribution, as of a sensor in low light."""
    std = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    planes = to_planes(images)
    return to_images(planes.add_(torch.randn(planes.shape, generator=generator), alpha=std))


def shot_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Draw each pixel from a Poisson distribution, as when light is counted in photons."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return to_images(torch.poisson(to_planes(images) * photons, generator=generator).div_(photons))


def impulse_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Replace values by 0 or 255, each with half of the probability."""
    probability = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    drawn = torch.rand(images.shape, generator=generator)
    return images.masked_fill(drawn < probability, 255).masked_fill_(drawn < probability / 2, 0)


def speckle_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add noise of a normal distribution that is proportional to the pixel."""
    std = (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1]
    planes = to_planes(images)
    return to_images(planes.mul_(torch.randn(planes.shape, generator=generator).mul_(std).add_(1)))
