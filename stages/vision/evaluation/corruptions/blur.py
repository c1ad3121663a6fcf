"""Blur: each function maps uint8 images [N, H, W, 3] to new ones, at a severity from 1 to 5."""

import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.evaluation.corruptions import filters
from vision.evaluation.corruptions.pixels import relative_size, to_images, to_planes, uniform


def defocus_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur by a disk with a soft edge, as a lens that is out of focus. No random numbers are drawn."""
    radius, softness = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity - 1]
    size = relative_size(images)
    kernel = _disk(radius * size, softness * size, math.ceil(size))
    planes = to_planes(images)
    singles = planes.flatten(0, 1)[:, None]  # the kernel is the same for each channel
    pad = len(kernel) // 2
    padded = F.pad(singles, (pad, pad, pad, pad), mode="replicate")
    return to_images(F.conv2d(padded, kernel[None, None]).view_as(planes))


def _disk(radius: float, sigma: float, sigma_radius: int) -> Tensor:
    """Return a disk that is blurred by a Gaussian of (2 * sigma_radius + 1)^2 pixels, float32 [K, K] with sum 1."""
    half = math.ceil(radius) + sigma_radius
    squares = torch.arange(-half, half + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).float()
    offsets = torch.arange(-sigma_radius, sigma_radius + 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = F.conv2d(disk[None, None], torch.outer(weights, weights)[None, None], padding=sigma_radius)[0, 0]
    return kernel / kernel.sum()


def glass_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur, give each pixel the color of a random neighbor, and blur again, as behind frosted glass.

    The neighbor is the pixel itself, the one above it, to its left, or both; in larger images up to as many pixels away
    as an image is larger than 32 pixels. The paper exchanges pixels. The code that made CIFAR-10-C copies them, and so
    does this function. CIFAR-10-C leaves two rows and columns at the edges as they are; here none are left.
    """
    sigma, iterations = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity - 1]
    sigma *= relative_size(images)
    distance = max(1, round(relative_size(images)))
    count, height, width, _ = images.shape
    planes = filters.gaussian_blur(to_planes(images), sigma)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    for _ in range(iterations):
        moves = torch.randint(-distance, distance, (2, count, height, width), generator=generator)
        sources = (y + moves[0]).clamp_(0, height - 1) * width + (x + moves[1]).clamp_(0, width - 1)
        planes = planes.flatten(2).gather(2, sources.view(count, 1, -1).expand(-1, 3, -1)).view_as(planes)
    return to_images(filters.gaussian_blur(planes, sigma))


def motion_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur along a line of a random direction within 45 degrees of the horizontal, as of a moving camera."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity - 1]
    size = relative_size(images)
    angles = uniform((len(images),), -45, 45, generator)
    blurred = filters.motion_blur(images.float(), angles, radius * size, sigma * size)
    return blurred.round_().clamp_(0, 255).to(torch.uint8)


def zoom_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Average the image and enlargements of its center, as of a camera that moves forward. Nothing is random.

    The factors are 1, 1.01, ... up to 1.06, 1.11, 1.15, 1.20 or 1.25, and the image itself counts once more. An
    enlarged center has a whole number of pixels, so several factors give the same picture.
    """
    largest = (6, 11, 15, 20, 25)[severity - 1]
    factors = {percent: 1 + percent / 100 for percent in range(largest + 1)}
    planes = to_planes(images)
    sizes = Counter(tuple(math.ceil(side / factor) for side in images.shape[1:3]) for factor in factors.values())
    total = planes.clone()
    for factor in factors.values():
        size = tuple(math.ceil(side / factor) for side in images.shape[1:3])
        if times := sizes.pop(size, 0):
            total.add_(filters.zoom(planes, factor), alpha=times)
    return to_images(total.div_(len(factors) + 1))


def gaussian_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur by a Gaussian. No random numbers are drawn."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    return to_images(filters.gaussian_blur(to_planes(images), sigma * relative_size(images)))
