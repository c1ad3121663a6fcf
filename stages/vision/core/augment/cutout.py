"""Cutout: cover a random square of each training image."""

import torch
from torch import Tensor


def cut_out(images: Tensor, top: Tensor, left: Tensor, side: int, colour: Tensor) -> Tensor:
    """Cover a square of each image with one colour.

    Args:
        images: [N, H, W, C], any dtype.
        top: int64 [N], the square's first row; at least one of its rows must lie inside the image.
        left: int64 [N], its first column; the same holds.
        side: pixels, at least 1; what lies outside the image is cut off.
        colour: [C], the dtype of the images.

    Returns:
        [N, H, W, C], strided as the images are.
    """
    count, height, width, _ = images.shape
    along = torch.arange(side, device=images.device)
    # A row or column outside becomes the one at the edge, which is covered anyway.
    rows = (top[:, None] + along).clamp(0, height - 1)
    columns = (left[:, None] + along).clamp(0, width - 1)
    covered = images.clone()
    covered[torch.arange(count, device=images.device)[:, None, None], rows[:, :, None], columns[:, None]] = colour
    return covered


class Cutout:
    """Hide a square of each training image (DeVries & Taylor 2017, "Improved regularization of CNNs with cutout").

    Its centre is any pixel of the image, so that part of it may lie outside, as in the paper (arXiv:1708.04552). It has
    the mean colour of the training images, which normalisation per channel takes to 0 as nearly as bytes can. Smaller
    images get a smaller square: the same share of them is hidden.
    """

    def __init__(self, side: int, images: Tensor, generator: torch.Generator) -> None:
        """`side`, in pixels, is for images of the size of the training `images`, uint8 [N, H, W, C]; 0 is off."""
        self.share = side / images.shape[1]
        self.generator = generator
        if side:
            some = images[:: -(-len(images) // 5000)]  # enough to know the mean, and summed in no time
            self.colour = some.float().mean((0, 1, 2)).round().to(images.dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Cover a square of each of the images [N, H, W, C], uint8 or float."""
        if self.share == 0:
            return images
        count, height, width, _ = images.shape
        # A square of twice the image's size covers all of it already, wherever its centre is.
        side = min(max(1, round(self.share * height)), 2 * max(height, width))
        top, left = (
            torch.randint(size, (count,), generator=self.generator, device=self.generator.device) - side // 2
            for size in (height, width)
        )
        return cut_out(images, top, left, side, self.colour.to(images.dtype))
