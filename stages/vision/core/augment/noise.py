"""Random Gaussian noise of whole batches. The result is float32."""

import torch
from torch import Tensor


def add_noise(images: Tensor, stds: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of a normal distribution to each image, clipped to [0, 255].

    Args:
        images: [N, H, W, C] in [0, 255], uint8 or float32.
        stds: float32 [N], the standard deviations of the noise, for pixels in [0, 255].
        generator: on the device of the images.

    Returns:
        float32 [N, H, W, C].
    """
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return noise.mul_(stds[:, None, None, None]).add_(images).clamp_(0, 255)


class GaussianNoise:
    """Add noise to every second image of a batch, with a strength that is drawn for each image.

    Batches are shuffled, so these are random images. The standard deviation is uniform in [0, largest]. Rusak et al.
    2020 (arXiv:2001.06057) show that such noise makes a network robust to other corruptions too.
    """

    def __init__(self, largest: float, generator: torch.Generator) -> None:
        """Set the largest standard deviation, for pixels in [0, 1]; 0 is off. Draw from `generator`."""
        self.largest = largest
        self.generator = generator

    def __call__(self, images: Tensor) -> Tensor:
        """Add noise to images [B, H, W, C], uint8 or float32 in [0, 255]; the result is float32."""
        if self.largest == 0:
            return images
        noisy = images.to(torch.float32, copy=True)
        chosen = noisy[::2]
        uniform = torch.rand(len(chosen), generator=self.generator, device=self.generator.device)
        noisy[::2] = add_noise(chosen, 255 * self.largest * uniform, self.generator)
        return noisy
