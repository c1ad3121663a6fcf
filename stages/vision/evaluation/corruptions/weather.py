"""Weather: each function maps uint8 images [N, H, W, 3] to new ones, at a severity from 1 to 5."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.evaluation.corruptions import filters
from vision.evaluation.corruptions.pixels import relative_size, to_gray, to_images, to_planes, uniform
from vision.evaluation.corruptions.plasma import plasma

_SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
)
"""By severity: mean and standard deviation of the flakes, their size, threshold, motion (radius, sigma), whitening."""


def snow(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Brighten the image and add two layers of falling flakes, one the other turned by 180 degrees."""
    mean, std, flake, threshold, radius, sigma, own = _SNOW[severity - 1]
    size = relative_size(images)
    count, height, width, _ = images.shape
    coarse = [math.ceil(side / max(1.0, flake * size)) for side in (height, width)]
    layer = torch.randn(count, 1, *coarse, generator=generator).mul_(std).add_(mean)
    layer = F.interpolate(layer, (height, width), mode="bilinear")
    layer = layer.masked_fill_(layer < threshold, 0).clamp_(0, 1)
    angles = uniform((count,), -135, -45, generator)
    fallen = filters.motion_blur(layer.view(count, height, width, 1), angles, radius * size, sigma * size)
    fallen = fallen.view(count, 1, height, width)
    planes = to_planes(images)
    bright = torch.maximum(planes, to_gray(planes).mul_(1.5).add_(0.5))
    return to_images(planes.mul_(own).add_(bright, alpha=1 - own).add_(fallen).add_(fallen.flip(2, 3)))


def frost(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Mix the image with ice.

    CIFAR-10-C uses photographs of ice. Here the ice is computed: bluish white ridges of a random cloud, on a lighter
    ground.
    """
    own, ice = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    count, height, width, _ = images.shape
    ridges = 1 - (2 * plasma(count, height, width, 1.3, generator) - 1).abs_()
    color = torch.tensor([0.85, 0.93, 1.0]).view(1, 3, 1, 1)
    texture = (0.3 + 0.7 * ridges**3) * color
    return to_images(to_planes(images).mul_(own).add_(texture, alpha=ice))


def fog(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add a random cloud, and darken the result so that the brightest value stays."""
    strength, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity - 1]
    count, height, width, _ = images.shape
    planes = to_planes(images)
    largest = planes.amax((1, 2, 3), keepdim=True)
    planes.add_(plasma(count, height, width, decay, generator), alpha=strength)
    return to_images(planes.mul_(largest / (largest + strength)))


def brightness(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Increase the value of HSV; hue and saturation stay. No random numbers are drawn."""
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    planes = to_planes(images)
    value = planes.amax(1, keepdim=True)
    brighter = (value + more).clamp_(max=1)
    return to_images(torch.where(value > 0, planes * (brighter / value), brighter))


def spatter(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Add drops of water (severity 1 to 3) or spots of mud (4 and 5).

    CIFAR-10-C shades drops by the distance to their edges, with functions of OpenCV. Here a drop is brighter where the
    layer that it is cut from is higher.
    """
    mean, std, sigma, threshold, strength = (
        (0.62, 0.1, 0.7, 0.7, 0.5),
        (0.65, 0.1, 0.8, 0.7, 0.5),
        (0.65, 0.3, 1.0, 0.69, 0.5),
        (0.65, 0.1, 0.7, 0.69, 0.6),
        (0.65, 0.1, 0.5, 0.68, 0.6),
    )[severity - 1]
    size = relative_size(images)
    count, height, width, _ = images.shape
    # At a larger size the noise is as coarse as at 32 pixels; otherwise the filter would average it away.
    coarse = [math.ceil(side / max(1.0, size)) for side in (height, width)]
    layer = torch.randn(count, 1, *coarse, generator=generator).mul_(std).add_(mean)
    layer = filters.gaussian_blur(F.interpolate(layer, (height, width), mode="bilinear"), sigma * size)
    planes = to_planes(images)
    if severity <= 3:
        drops = (layer - threshold).clamp_(min=0)
        mask = drops.div_(drops.amax((2, 3), keepdim=True).clamp_(min=1e-6)).mul_(strength)
        return to_images(planes.add_(mask * torch.tensor([175, 238, 238]).view(1, 3, 1, 1) / 255))
    mask = filters.gaussian_blur((layer > threshold).float(), strength * size)
    mask = mask.masked_fill_(mask < 0.8, 0)
    return to_images(torch.lerp(planes, torch.tensor([63.0, 42.0, 20.0]).view(1, 3, 1, 1) / 255, mask))
