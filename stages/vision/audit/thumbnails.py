"""Small versions of the images, which find candidates for near-duplicates by their pixels."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 8
"""Pixels of a side of a thumbnail. Each is the mean of a square, so a small shift of the image changes it little."""
_BATCH_SIZE = 4096
"""Images that are shrunk at once."""


class Thumbnails(NamedTuple):
    """The parts of each thumbnail that are the same and the opposite in its mirror image: float32 [N, D] each."""

    even: Tensor
    odd: Tensor

    def to(self, dtype: torch.dtype) -> "Thumbnails":
        """The thumbnails with another dtype."""
        return Thumbnails(self.even.to(dtype), self.odd.to(dtype))

    def select(self, indices: Tensor | slice) -> "Thumbnails":
        """Some of the thumbnails."""
        return Thumbnails(self.even[indices], self.odd[indices])


def make_thumbnails(images: Tensor) -> Thumbnails:
    """Make thumbnails that do not depend on brightness and contrast.

    Args:
        images: uint8 [N, H, W, C].
    """
    parts = [_shrink(batch) for batch in images.split(_BATCH_SIZE)]
    return Thumbnails(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _shrink(images: Tensor) -> Thumbnails:
    pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), size=(SIDE, SIDE), mode="area")
    pixels = pixels - pixels.mean((2, 3), keepdim=True)
    pixels = F.normalize(pixels.flatten(1)).view_as(pixels)
    mirrored = pixels.flip(3)
    half = SIDE // 2  # the other half of each part repeats it, so this one gets the factor sqrt(2)
    return Thumbnails(*((part[..., :half] / 2**0.5).flatten(1) for part in (pixels + mirrored, pixels - mirrored)))


def correlate(first: Thumbnails, second: Thumbnails) -> Tensor:
    """Compute the correlation of each thumbnail with each other one or its mirror image, whichever is higher.

    Returns:
        [N, M] for N first and M second thumbnails, in their dtype.
    """
    return torch.addmm((first.odd @ second.odd.T).abs_(), first.even, second.even.T)


def correlate_pairs(first: Thumbnails, second: Thumbnails) -> tuple[Tensor, Tensor]:
    """Compute the same for pairs of thumbnails.

    Returns:
        float32 [N], and bool [N]: whether the mirror image of the second thumbnail is more like the first one.
    """
    same, opposite = ((one * other).sum(1) for one, other in zip(first, second, strict=True))
    return same + opposite.abs(), opposite < 0
