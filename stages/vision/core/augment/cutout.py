"""Cutout: erase a random square of each training image."""

import torch
from torch import Tensor


def erase(images: Tensor, top: Tensor, left: Tensor, size: int, color: Tensor) -> Tensor:
    """Fill a square of each image with one color.

    Args:
        images: [N, H, W, C], any dtype.
        top: int64 [N], first row of the square, in [1 - size, H - 1].
        left: int64 [N], first column of the square, in [1 - size, W - 1].
        size: pixels, at least 1. What lies outside the image is cut off.
        color: [C], of the dtype of the images.

    Returns:
        [N, H, W, C] with the strides of `images`.
    """
    count, height, width, _ = images.shape
    offsets = torch.arange(size, device=images.device)
    # A row or column outside the image becomes the one at the edge, which is filled anyway.
    rows = (top[:, None] + offsets).clamp(0, height - 1)
    columns = (left[:, None] + offsets).clamp(0, width - 1)
    erased = images.clone()
    erased[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None]] = color
    return erased


class Cutout:
    """Erase a random square of each image (DeVries & Taylor 2017, arXiv:1708.04552).

    The center of the square is any pixel of the image, so part of the square may lie outside, as in the paper. The
    color is the mean of the training images, which normalization maps to about 0. Smaller images get a proportionally
    smaller square.
    """

    def __init__(self, size: int, train_images: Tensor, generator: torch.Generator) -> None:
        """Compute the mean color.

        Args:
            size: side of the square in pixels, for images of the size of `train_images`; 0 is off.
            train_images: uint8 [N, H, W, C].
            generator: on the device of the images.
        """
        self.relative_size = size / train_images.shape[1]
        self.generator = generator
        if size:
            sample = train_images[:: -(-len(train_images) // 5000)]  # at most 5000 images are enough for a mean
            self.color = sample.float().mean((0, 1, 2)).round().to(train_images.dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Erase a square of each of the images [B, H, W, C], uint8 or float32."""
        if self.relative_size == 0:
            return images
        count, height, width, _ = images.shape
        # A square of twice the image's size covers all of it, wherever its center is.
        size = min(max(1, round(self.relative_size * height)), 2 * max(height, width))
        top, left = (
            torch.randint(side, (count,), generator=self.generator, device=self.generator.device) - size // 2
            for side in (height, width)
        )
        return erase(images, top, left, size, self.color.to(images.dtype))
