"""Two images in one, with two labels, of whole batches on the device that the data is on: MixUp and CutMix."""

from typing import NamedTuple

import torch
from torch import Tensor

from vision.core.augment.generators import host_generator


class Mixed(NamedTuple):
    """Mixed images [N, H, W, C], the labels int64 [N] of what was mixed in, and each image's own weight, float32 [N].

    The weights are None where nothing was mixed.
    """

    images: Tensor
    others: Tensor
    weights: Tensor | None


def blended(images: Tensor, weights: Tensor) -> Tensor:
    """Mix each image [N, H, W, C] with the one before it, pixel by pixel: `weights`, float32 [N], of its own.

    Returns:
        float32 [N, H, W, C].
    """
    pixels = images.flatten(1).float()
    others = _before(pixels)
    own = weights[:, None]
    return others.mul_(1 - own).addcmul_(pixels, own).view(images.shape)


def pasted(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Paste a box of the image before it into each image, at the same place.

    Args:
        images: [N, H, W, C], any dtype.
        top: int64 [N], the first row of each box.
        bottom: int64 [N], the row after its last.
        left: int64 [N], its first column.
        right: int64 [N], the column after its last.

    Returns:
        [N, H, W, C].
    """
    count, height, width, channels = images.shape
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = ((columns >= left[:, None]) & (columns < right[:, None])).repeat_interleave(channels, 1)
    inside = in_rows.to(images.dtype)[:, :, None] * in_columns.to(images.dtype)[:, None]
    pixels = images.flatten(1).view(count, height, width * channels)
    # Products with 0 and 1 are exact, and on a CPU several times faster than `where`.
    return _before(pixels).mul_(inside).add_(pixels * (1 - inside)).view(images.shape)


def _before(values: Tensor) -> Tensor:
    """Move each row of [N, ...] to the next place, the last one to the first."""
    return torch.cat((values[-1:], values[:-1]))  # faster than `roll`


class Mix:
    """Mix each image of a shuffled batch with the one before it, of which it shows at most half.

    MixUp (Zhang et al. 2017, arXiv:1710.09412) adds up their pixels, CutMix (Yun et al. 2019, arXiv:1905.04899) pastes
    a box of the other one. The weights come from Beta(alpha, alpha), drawn for each image; `mixup` and `cutmix` are the
    alphas, 0 is off, and with both on each batch gets one of the two. Of a weight and its complement the image itself
    has the larger one: as the pairs are random, the pictures are as likely as without it, and the label that comes
    first is the one of which more is seen.
    """

    def __init__(self, mixup: float, cutmix: float, generator: torch.Generator) -> None:
        """Draw from `generator`, which is on the device of the images."""
        self.alphas = [(mix, alpha) for mix, alpha in ((self._mixup, mixup), (self._cutmix, cutmix)) if alpha]
        self.generator = generator
        self.host = host_generator(generator) if self.alphas else None

    def __call__(self, images: Tensor, labels: Tensor) -> Mixed:
        """Mix images [N, H, W, C], uint8 or float32; MixUp makes them float32."""
        if not self.alphas:
            return Mixed(images, labels, None)
        mix, alpha = self.alphas[int(torch.randint(len(self.alphas), (), generator=self.host))]
        drawn = torch._sample_dirichlet(torch.full((len(images), 2), alpha), generator=self.host)
        images, weights = mix(images, drawn.amax(1).to(images.device))
        return Mixed(images, labels.roll(1), weights)

    def _mixup(self, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return blended(images, weights), weights

    def _cutmix(self, images: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        ends = []
        for size in images.shape[1:3]:
            centre = torch.randint(size, (len(images),), generator=self.generator, device=self.generator.device)
            half = (0.5 * size * (1 - weights).sqrt()).long()
            ends += [(centre - half).clamp(min=0), (centre + half).clamp(max=size)]
        top, bottom, left, right = ends
        hidden = (bottom - top) * (right - left)
        return pasted(images, top, bottom, left, right), 1 - hidden / (images.shape[1] * images.shape[2])
