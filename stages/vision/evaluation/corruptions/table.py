"""The corruptions by name, and their application to images."""

import zlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vision.evaluation.corruptions import blur, digital, noise, weather

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
CHUNK = 1000
"""Images that are corrupted at a time. Random numbers depend on it, so it is not a parameter."""

SEVERITIES = (1, 2, 3, 4, 5)

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
"""The 15 corruptions of the paper, by name and in its order."""
EXTRA_CORRUPTIONS: dict[str, Corruption] = {
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": weather.spatter,
    "saturate": digital.saturate,
}
"""The paper's four further corruptions, for choices on validation images. The test does not use them."""


def corrupt(images: Tensor, name: str, severity: int) -> Iterator[Tensor]:
    """Corrupt images, the same way each time: the random numbers depend on the name and the severity alone.

    Args:
        images: uint8 [N, H, W, 3] on the CPU.
        name: a key of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: from 1 (little) to 5.

    Yields:
        uint8 [M, H, W, 3], the next at most 1000 corrupted images.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {severity}".encode()))
    function = (CORRUPTIONS | EXTRA_CORRUPTIONS)[name]
    for chunk in images.split(CHUNK):
        yield function(chunk, severity, generator)
