"""Near-duplicates: copies of an image that may be mirrored, shifted, compressed, or brighter or darker."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from vision.audit.neighbors import Neighbors, nearest_neighbors
from vision.audit.thumbnails import correlate, correlate_pairs, make_thumbnails

MIN_CORRELATION = 0.9
"""Least correlation of the pixels of two near-duplicates."""
MIN_DETAIL_CORRELATION = 0.7
"""Least correlation of their details. Without it, any two ships on a horizon would be near-duplicates."""
SIDE = 32
"""Pixels of a side of the images that are compared; others are resized first."""
MAX_SHIFT = 3
"""How far one of two near-duplicates may be shifted, in pixels of the compared images."""
_MIN_THUMBNAIL_CORRELATION = 0.5
"""Least correlation of the thumbnails. A shift by 2 pixels down and to the right leaves about 0.6."""
_MIN_COARSE_CORRELATION = 0.8
"""The same for gray images of half the size, which are compared first because that is faster."""
_NEIGHBORS = 5
"""Candidates for each image by features, and likewise by thumbnails."""
_CANDIDATES_PER_STEP = 2**16
_PAIRS_PER_STEP = 256
_MIN_DEVIATION = 0.5
"""Standard deviation of the pixels, of 255, below which an image counts as blank. Blank images have no correlation."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images: `first` < `second` are int64 [P], `correlation` is float32 [P]."""

    first: np.ndarray
    second: np.ndarray
    correlation: np.ndarray

    def select(self, rows: np.ndarray) -> "Pairs":
        """Some of the pairs, by a mask or indices."""
        return Pairs(self.first[rows], self.second[rows], self.correlation[rows])


@torch.inference_mode()
def find_candidates(
    features: Neighbors,
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    on_block: Callable[[int], object] = lambda num_images: None,
) -> tuple[Tensor, Tensor]:
    """Find pairs of images that may be near-duplicates.

    These are the pairs that are near each other in the features of a network or in their thumbnails.

    Args:
        features: the nearest neighbors in the features of a network, of which the first few are used.
        images: uint8 [N, H, W, C].
        dtype: what thumbnails are compared in.
        on_block: called with the number of images of each step.

    Returns:
        int64 [P, 2] with distinct rows of ascending indices, and bool [P]: whether the second image is to be mirrored.
    """
    thumbnails = make_thumbnails(images)
    rounded = thumbnails.to(dtype)
    near = nearest_neighbors(len(images), _NEIGHBORS, lambda part: correlate(rounded.select(part), rounded), on_block)
    pairs = _unique_pairs(torch.cat([features.indices[:, :_NEIGHBORS], near.indices], 1))
    likely, mirrored = [], []
    for first, second in (part.T for part in pairs.split(_CANDIDATES_PER_STEP)):
        correlation, flip = correlate_pairs(thumbnails.select(first), thumbnails.select(second))
        likely.append(correlation >= _MIN_THUMBNAIL_CORRELATION)
        mirrored.append(flip)
    selected = torch.cat(likely)
    return pairs[selected], torch.cat(mirrored)[selected]


def _unique_pairs(neighbors: Tensor) -> Tensor:
    """The pairs of each image and its neighbors [N, k], once each and in ascending order, int64 [P, 2]."""
    count = len(neighbors)
    own = torch.arange(count, device=neighbors.device)[:, None]
    keys = torch.minimum(own, neighbors) * count + torch.maximum(own, neighbors)
    unique = torch.unique(keys)
    return torch.stack([unique // count, unique % count], 1)


@torch.inference_mode()
def compare_pixels(
    images: Tensor,
    pairs: Tensor,
    mirrored: Tensor,
    on_step: Callable[[int], object] = lambda num_pairs: None,
) -> Tensor:
    """Compute the highest correlation of the pixels of each pair over all shifts of up to `MAX_SHIFT`.

    It is 0 if the gray images of half the size, the pixels or the details differ too much for near-duplicates.

    Args:
        images: uint8 [N, H, W, C].
        pairs: int64 [P, 2].
        mirrored: bool [P], whether to mirror the second image.
        on_step: called with the number of pairs of each step.

    Returns:
        float32 [P].
    """
    table = images.flatten(1)  # faster to index than `images`
    result = [torch.zeros(0, device=images.device)]
    for part, flip in zip(pairs.split(_PAIRS_PER_STEP), mirrored.split(_PAIRS_PER_STEP), strict=True):
        rows = (table.index_select(0, column).view(-1, *images.shape[1:]) for column in part.T)
        first, second = map(_to_pixels, rows)
        second = torch.where(flip[:, None, None, None], second.flip(3), second)
        result.append(_correlate(first, second))
        on_step(len(part))
    return torch.cat(result)


def _to_pixels(images: Tensor) -> Tensor:
    """Images as float32 [N, C, SIDE, SIDE]."""
    pixels = images.permute(0, 3, 1, 2).float()
    return pixels if pixels.shape[2:] == (SIDE, SIDE) else F.interpolate(pixels, size=(SIDE, SIDE), mode="area")


def _correlate(first: Tensor, second: Tensor) -> Tensor:
    """The highest correlation over all shifts; 0 if it, or that of a faster or a stricter comparison, is too low."""
    result = torch.zeros(len(first), device=first.device)
    likely = torch.arange(len(first), device=first.device)
    for view, max_shift, least in (
        (_shrink, (MAX_SHIFT + 1) // 2, _MIN_COARSE_CORRELATION),
        (_keep_details, MAX_SHIFT, MIN_DETAIL_CORRELATION),
        (lambda pixels: pixels, MAX_SHIFT, MIN_CORRELATION),
    ):
        correlation = shifted_correlation(view(first[likely]), view(second[likely]), max_shift)
        likely, correlation = likely[correlation >= least], correlation[correlation >= least]
    result[likely] = correlation
    return result


def _shrink(pixels: Tensor) -> Tensor:
    """Halve the size and remove the colors, [N, 1, H / 2, W / 2]."""
    return F.avg_pool2d(pixels.mean(1, keepdim=True), 2)


def _keep_details(pixels: Tensor) -> Tensor:
    """Remove the colors, and subtract the mean of the 5x5 pixels around each pixel, [N, 1, H, W]."""
    gray = pixels.mean(1, keepdim=True)
    return gray - F.avg_pool2d(F.pad(gray, (2, 2, 2, 2), mode="reflect"), 5, 1)


def shifted_correlation(first: Tensor, second: Tensor, max_shift: int) -> Tensor:
    """Compute the highest correlation of the center of the first image with a window of the second one.

    The windows are all of that size, so the center is compared at all shifts of up to `max_shift` pixels in each
    direction (normalized cross-correlation; Lewis 1995, "Fast Normalized Cross-Correlation"). The mean of each channel
    is subtracted, so that neither brightness nor contrast nor the main color counts.

    Args:
        first: float32 [N, C, H, W].
        second: likewise.
        max_shift: in pixels.

    Returns:
        float32 [N], in [-1, 1]; 0 if an image is blank.
    """
    height, width = (side - 2 * max_shift for side in first.shape[2:])
    center = first[..., max_shift : max_shift + height, max_shift : max_shift + width]
    center = center - center.mean((2, 3), keepdim=True)
    second = second - second.mean((2, 3), keepdim=True)
    # The center has no value beyond its size, so the cyclic correlation that the Fourier transform computes does not
    # wrap around at these shifts.
    size, shifts = first.shape[2:], 2 * max_shift + 1
    spectrum = torch.fft.rfft2(center, s=size).conj() * torch.fft.rfft2(second)
    products = torch.fft.irfft2(spectrum.sum(1), s=size)[:, :shifts, :shifts]
    means, squares = (F.avg_pool2d(values, (height, width), 1) for values in (second, second.square()))
    energy = (squares - means.square()).sum(1) * (height * width)
    own = center.square().sum((1, 2, 3))[:, None, None]
    blank = _MIN_DEVIATION**2 * first.shape[1] * height * width
    correlation = products * (own * energy).clamp(min=blank**2).rsqrt()
    return torch.where((energy < blank) | (own < blank), 0.0, correlation).amax((1, 2))


def select_pairs(pairs: Tensor, correlation: Tensor) -> Pairs:
    """The near-duplicates among candidates, by what `compare_pixels` returned; the highest correlation first."""
    keep = torch.nonzero(correlation).flatten()
    keep = keep[correlation[keep].argsort(descending=True, stable=True)]
    first, second = pairs[keep].cpu().numpy().T
    return Pairs(first, second, correlation[keep].cpu().numpy())


def find_groups(pairs: Pairs, count: int) -> np.ndarray:
    """Number the groups of images that are connected by pairs.

    Returns:
        int64 [count]: the number of each image's group, from 1, in the order of the groups' first images; 0 for an
        image without near-duplicates.
    """
    graph = coo_array((np.ones(len(pairs.first)), (pairs.first, pairs.second)), shape=(count, count))
    _, components = connected_components(graph, directed=False)
    paired = np.zeros(count, dtype=bool)
    paired[pairs.first] = paired[pairs.second] = True
    indices = np.flatnonzero(paired)
    _, first, numbers = np.unique(components[indices], return_index=True, return_inverse=True)
    groups = np.zeros(count, dtype=np.int64)
    groups[indices] = np.argsort(np.argsort(first))[numbers] + 1
    return groups
