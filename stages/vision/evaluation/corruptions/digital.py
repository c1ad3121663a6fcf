"""Digital changes: each function maps uint8 images [N, H, W, 3] to new ones, at a severity from 1 to 5."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision.evaluation.corruptions import filters
from vision.evaluation.corruptions.pixels import relative_size, to_images, to_planes, uniform


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Move each channel towards its mean over the image. No random numbers are drawn."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    planes = to_planes(images)
    mean = planes.mean((2, 3), keepdim=True)
    return to_images(torch.lerp(mean, planes, factor))


def elastic_transform(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Move three points of the image at random (an affine map), then each pixel by a smooth random distance.

    Source: Simard et al. 2003, "Best Practices for Convolutional Neural Networks". Severity 1 is the affine map alone,
    with the largest movement of all severities.
    """
    amount, smoothness, movement = (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[severity - 1]
    count, height, width, _ = images.shape
    side = min(height, width)
    planes, grid = to_planes(images), filters.pixel_grid(height, width)
    moved = filters.warp(planes, _random_affine(grid, count, movement * side, generator))
    if amount:
        noise = uniform((count, 2, height, width), -1, 1, generator)
        distances = filters.gaussian_blur(noise, smoothness * side, truncate=3).mul_(amount * side)
        moved = filters.warp(moved, grid + distances.permute(0, 2, 3, 1))
    return to_images(moved)


def _random_affine(grid: Tensor, count: int, movement: float, generator: torch.Generator) -> Tensor:
    """Map the pixels [H, W, 2] so that three points around the center move by up to `movement` pixels each.

    Returns:
        float32 [N, H, W, 2], the places that the pixels come from.
    """
    height, width, _ = grid.shape
    third = min(height, width) // 3
    center = torch.tensor([width // 2, height // 2])
    points = center + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    targets = points + uniform((count, 3, 2), -movement, movement, generator)
    ones = torch.ones(count, 3, 1)
    inverse = torch.linalg.solve(torch.cat((targets, ones), 2), points.expand(count, -1, -1))  # [N, 3, 2]
    sources = grid.view(1, -1, 2) @ inverse[:, :2] + inverse[:, 2:]
    return sources.view(count, height, width, 2)


def pixelate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Resize to fewer pixels and back, both by the mean over boxes (Pillow's BOX). No random numbers are drawn.

    At severity 5 the smaller image has 20 pixels on its shorter side, whatever the size of the image is.
    """
    scale = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = images.shape[1:3]
    small = (int(scale * width / relative_size(images)), int(scale * height / relative_size(images)))
    box = Image.Resampling.BOX
    pictures = (Image.fromarray(image).resize(small, box).resize((width, height), box) for image in images.numpy())
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def jpeg_compression(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Compress by Pillow's JPEG, with the quality of the severity. No random numbers are drawn."""
    quality = (80, 65, 58, 50, 40)[severity - 1]
    decoded = np.empty(images.shape, dtype=np.uint8)
    for target, image in zip(decoded, images.numpy(), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        target[:] = Image.open(file)
    return torch.from_numpy(decoded)


def saturate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Change the saturation of HSV; hue and value stay. No random numbers are drawn.

    As in CIFAR-10-C, gray has the hue of red, so severity 4 and 5 tint it.
    """
    factor, more = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[severity - 1]
    planes = to_planes(images)
    value = planes.amax(1, keepdim=True)
    chroma = value - planes.amin(1, keepdim=True)
    saturation = torch.where(value > 0, chroma / value, 0.0)
    red = torch.tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    hue = torch.where(chroma > 0, (value - planes) / chroma, red)  # distance from the value, relative to the chroma
    return to_images(value - hue * value * (saturation * factor + more).clamp_(0, 1))
