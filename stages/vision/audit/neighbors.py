"""The nearest neighbors of every image, by comparing all pairs of images."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_CELLS = 2**23
"""Similarities that are computed at once."""


class Neighbors(NamedTuple):
    """The nearest neighbors of N images, the nearest first: `indices` int64 [N, k], `similarities` float32 [N, k]."""

    indices: Tensor
    similarities: Tensor


@torch.inference_mode()
def nearest_neighbors(
    count: int,
    k: int,
    similarity: Callable[[slice], Tensor],
    on_block: Callable[[int], object] = lambda num_images: None,
) -> Neighbors:
    """Find the most similar images of each image.

    Args:
        count: the number of images, N.
        k: neighbors of each image; less if there are too few images.
        similarity: returns the similarities of some images with all images, [n, N].
        on_block: called with the number of images of each step.
    """
    rows = max(1, _CELLS // max(count, 1))
    found = []
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        block = similarity(part)
        block.diagonal(start).fill_(-torch.inf)  # an image is no neighbor of its own
        found.append(block.topk(min(k, count - 1), dim=1))
        on_block(part.stop - start)
    return Neighbors(torch.cat([one.indices for one in found]), torch.cat([one.values for one in found]).float())
