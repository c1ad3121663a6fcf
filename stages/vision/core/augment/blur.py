"""Random Gaussian blur of whole batches. The result is float32."""

import torch
from torch import Tensor


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image by a Gaussian. At the edges, only pixels of the image are averaged.

    Args:
        images: [N, H, W, C] in [0, 255], uint8 or float32.
        sigmas: float32 [N], the standard deviations in pixels; 0 leaves an image as it is.

    Returns:
        float32 [N, H, W, C], a view that is contiguous as [N, C, H, W].
    """
    count, height, width, channels = images.shape
    vertical, horizontal = (_weights(size, sigmas) for size in (height, width))
    # Products of small matrices, because each image has a filter of its own.
    columns = torch.bmm(vertical, images.float().reshape(count, height, -1)).view(images.shape)
    rows = columns.permute(0, 3, 1, 2).reshape(count, -1, width)
    blurred = torch.bmm(rows, horizontal.transpose(1, 2))
    return blurred.view(count, channels, height, width).permute(0, 2, 3, 1)


def _weights(size: int, sigmas: Tensor) -> Tensor:
    """Return the matrices [N, size, size] that blur a column of pixels."""
    position = torch.arange(size, device=sigmas.device)
    distance = (position[:, None] - position) / sigmas.clamp(min=1e-3)[:, None, None]
    weights = (-0.5 * distance**2).exp()
    return weights / weights.sum(2, keepdim=True)


class GaussianBlur:
    """Blur the first half of a batch, with a strength that is drawn for each image.

    Batches are shuffled, so these are random images; noise in every second image is independent of it. The standard
    deviation is uniform in [0, largest]. Smaller images get a proportionally smaller one.
    """

    def __init__(self, largest: float, height: int, generator: torch.Generator) -> None:
        """Set the strength.

        Args:
            largest: standard deviation in pixels, for images of `height`; 0 is off.
            height: of the training images at full size.
            generator: on the device of the images.
        """
        self.relative_size = largest / height
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Blur images [B, H, W, C], uint8 or float32 in [0, 255]; the result is float32."""
        if self.relative_size == 0:
            return images
        half = (len(images) + 1) // 2
        uniform = torch.rand(half, generator=self.generator, device=self.generator.device)
        sigmas = self.relative_size * images.shape[1] * uniform
        return torch.cat((blur(images[:half], sigmas), images[half:].float()))
