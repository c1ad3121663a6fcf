"""Random clouds by the diamond-square algorithm (Fournier, Fussell & Carpenter 1982), for whole batches."""

import torch
from torch import Tensor

from vision.evaluation.corruptions.pixels import uniform


def plasma(count: int, height: int, width: int, decay: float, generator: torch.Generator) -> Tensor:
    """Make one random cloud per image.

    The algorithm fills a square whose side is a power of two and whose opposite edges are joined. It sets the centers
    of squares, then those of diamonds, to the mean of their four corners plus noise, and goes on with half of the
    distance. The noise is uniform. Its range is divided by the square of `decay` each time, as in CIFAR-10-C.

    Args:
        count: number of images, N.
        height: of the images in pixels, H.
        width: of the images in pixels, W.
        decay: at least 1; more makes smoother clouds.
        generator: on the CPU.

    Returns:
        float32 [N, 1, H, W]; the whole square, which may be larger, has values from 0 to 1.
    """
    side = 1 << (max(height, width, 2) - 1).bit_length()
    cloud = torch.zeros(count, side, side)
    step, noise = side, 1.0
    while step >= 2:
        half = step // 2
        corners, centers = cloud[:, ::step, ::step], cloud[:, half::step, half::step]
        rows = corners + corners.roll(-1, 1)
        centers.copy_(_disturb(rows + rows.roll(-1, 2), noise, generator))
        across = corners + corners.roll(-1, 2) + centers + centers.roll(1, 1)
        along = corners + corners.roll(-1, 1) + centers + centers.roll(1, 2)
        cloud[:, ::step, half::step] = _disturb(across, noise, generator)
        cloud[:, half::step, ::step] = _disturb(along, noise, generator)
        step, noise = half, noise / decay**2
    flat = cloud.flatten(1)
    low, high = (extreme[:, None, None] for extreme in flat.aminmax(dim=1))
    return ((cloud - low) / (high - low))[:, None, :height, :width]


def _disturb(sums: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    return sums / 4 + uniform(tuple(sums.shape), -noise, noise, generator)
