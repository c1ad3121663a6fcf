"""MixUp and CutMix of whole batches: each image is mixed with another one, and has two labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from vision.core.augment.generators import make_cpu_generator


class Mixed(NamedTuple):
    """The result of mixing a batch.

    Attributes:
        images: [B, H, W, C].
        other_labels: int64 [B], the label of the image that was mixed in; None if nothing was mixed.
        weights: float32 [B] in [0.5, 1], the weight of the image's own label; None if nothing was mixed.
    """

    images: Tensor
    other_labels: Tensor | None = None
    weights: Tensor | None = None


def mixup(images: Tensor, weights: Tensor) -> Tensor:
    """Average each image with the previous one of the batch, the first one with the last.

    Args:
        images: [N, H, W, C], uint8 or float32.
        weights: float32 [N], the weight of the image itself.

    Returns:
        float32 [N, H, W, C].
    """
    pixels = images.flatten(1).float()
    other_pixels = _previous(pixels)
    own_weights = weights[:, None]
    return other_pixels.mul_(1 - own_weights).addcmul_(pixels, own_weights).view(images.shape)


def cutmix(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Replace a box of each image by the same box of the previous image, in the first one by that of the last.

    Args:
        images: [N, H, W, C], any dtype.
        top: int64 [N], first row of the box.
        bottom: int64 [N], end of its rows (exclusive).
        left: int64 [N], first column of the box.
        right: int64 [N], end of its columns (exclusive).

    Returns:
        [N, H, W, C] of the same dtype.
    """
    count, height, width, channels = images.shape
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = ((columns >= left[:, None]) & (columns < right[:, None])).repeat_interleave(channels, 1)
    mask = in_rows.to(images.dtype)[:, :, None] * in_columns.to(images.dtype)[:, None]
    pixels = images.flatten(1).view(count, height, width * channels)
    # Products with 0 and 1 are exact, and several times faster than `where` on a CPU.
    return _previous(pixels).mul_(mask).add_(pixels * (1 - mask)).view(images.shape)


def sample_mix_weights(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw the larger of x and 1 - x, where x has the distribution Beta(alpha, alpha).

    Args:
        alpha: greater than 0.
        count: numbers to draw.
        generator: on the CPU.

    Returns:
        float32 [count] in [0.5, 1], on the CPU.
    """
    # torch.distributions draws from the global generator only, which therefore gets the state of `generator`.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        pairs = torch.distributions.Dirichlet(torch.full((count, 2), alpha)).sample()
        generator.set_state(torch.get_rng_state())
    return pairs.amax(1)


def _previous(values: Tensor) -> Tensor:
    """Move each row of [N, ...] to the next position, the last one to the first."""
    return torch.cat((values[-1:], values[:-1]))  # faster than `roll`


class MixupCutmix:
    """Mix each image of a shuffled batch with the previous one, by MixUp or CutMix.

    MixUp (Zhang et al. 2017, arXiv:1710.09412) averages pixels. CutMix (Yun et al. 2019, arXiv:1905.04899) pastes a box
    of the other image. A weight is drawn from Beta(alpha, alpha) for each image. The larger of the weight and its
    complement is that of the image itself. Pairs are random, so this does not change the distribution of mixed images,
    and the first label is always that of the larger part.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, generator: torch.Generator) -> None:
        """Set the alphas; 0 is off. With both on, each batch gets one of the two, with equal probability.

        `generator` is on the device of the images.
        """
        methods = ((self._mixup, mixup_alpha), (self._cutmix, cutmix_alpha))
        self.methods = [(method, alpha) for method, alpha in methods if alpha]
        self.generator = generator
        self.cpu_generator = make_cpu_generator(generator) if self.methods else None

    def __call__(self, images: Tensor, labels: Tensor) -> Mixed:
        """Mix images [B, H, W, C], uint8 or float32, with labels int64 [B]. MixUp returns float32 images."""
        if self.cpu_generator is None:
            return Mixed(images)
        method, alpha = self.methods[int(torch.randint(len(self.methods), (), generator=self.cpu_generator))]
        weights = sample_mix_weights(alpha, len(images), self.cpu_generator).to(images.device)
        mixed_images, weights = method(images, weights)
        return Mixed(mixed_images, labels.roll(1), weights)

    def _mixup(self, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return mixup(images, weights), weights

    def _cutmix(self, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Paste boxes whose area is 1 - weight; the weights returned are those of the area inside the image."""
        edges = []
        for size in images.shape[1:3]:
            center = torch.randint(size, (len(images),), generator=self.generator, device=self.generator.device)
            half = (0.5 * size * (1 - weights).sqrt()).long()
            edges += [(center - half).clamp(min=0), (center + half).clamp(max=size)]
        top, bottom, left, right = edges
        area = (bottom - top) * (right - left)
        return cutmix(images, top, bottom, left, right), 1 - area / (images.shape[1] * images.shape[2])
