"""Random changes of colour of whole batches, on the device that the data is on, as in torchvision's ColorJitter.

All is computed in floats and never rounded, where torchvision rounds the bytes down after each change.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vision.core.augment.generators import host_generator

Change = Literal["brightness", "contrast", "saturation", "hue"]


def recoloured(images: Tensor, changes: Sequence[tuple[Change, Tensor]]) -> Tensor:
    """Change the colours of each image, by one change after the other.

    Args:
        images: [N, H, W, C] in [0, 255], uint8 or float32; red, green and blue, or gray, which has no hue to change.
        changes: name and float32 [N] of each. For the hue, the part of the circle of colours that it moves on by, in
            [-0.5, 0.5]; for the others a factor of at least 0: of the pixels, of their distance to the mean gray of
            the image, of their distance to their own gray.

    Returns:
        float32 [N, H, W, C] in [0, 255], a view that is contiguous in [N, C, H, W].
    """
    # Changed in place from here on: on a CPU a pass that writes to other memory takes longer.
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    for name, amounts in changes:
        _CHANGES[name](planes, amounts[:, None, None, None])
    return planes.permute(0, 2, 3, 1)


def _brighten(planes: Tensor, factors: Tensor) -> None:
    planes.mul_(factors).clamp_(0, 255)


def _contrast(planes: Tensor, factors: Tensor) -> None:
    mean = _gray(planes).mean((2, 3), keepdim=True)
    planes.mul_(factors).add_(mean * (1 - factors)).clamp_(0, 255)


def _saturate(planes: Tensor, factors: Tensor) -> None:
    gray = _gray(planes) * (1 - factors)
    planes.mul_(factors).add_(gray).clamp_(0, 255)


def _gray(planes: Tensor) -> Tensor:
    if planes.shape[1] == 1:
        return planes
    red, green, blue = planes.split(1, 1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _turn_hue(planes: Tensor, turns: Tensor) -> None:
    """Turn the hue of HSV: its value (largest channel) and chroma (largest less smallest) stay."""
    if planes.shape[1] == 1:
        return
    red, green, blue = planes.split(1, 1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # In sixths of the circle: red is 0, green 2, blue 4; gray, which has none, gets 0. `lerp` with a weight of 0 or 1
    # chooses exactly, and on a CPU much faster than `where`, whose branches cannot be predicted here.
    not_red, not_green = (value - red).sign_(), (value - green).sign_()
    per_chroma = chroma.clamp(min=1e-6).reciprocal_()
    of_green, of_blue = ((blue - red) * per_chroma).add_(2), ((red - green) * per_chroma).add_(4)
    hue = torch.lerp((green - blue) * per_chroma, of_green.lerp_(of_blue, not_green), not_red)
    hue = hue.div_(6).add_(turns)
    # Around the circle each channel is `value` for a third, falls, is the smallest for a third and rises again.
    starts = torch.arange(5, 0, -2, device=planes.device).view(3, 1, 1) / 6
    torch.add(hue, starts + 1, out=planes).frac_()  # with 1 more none is negative
    lacking = planes.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
    torch.addcmul(value, lacking, chroma, value=-1, out=planes)


_CHANGES: dict[Change, Callable[[Tensor, Tensor], None]] = {
    "brightness": _brighten,
    "contrast": _contrast,
    "saturation": _saturate,
    "hue": _turn_hue,
}


class ColorJitter:
    """Random brightness, contrast, saturation and hue of each image, as torchvision's ColorJitter draws them.

    `strengths` are the four in this order: the largest change of a factor from 1 (which stays at 0 or above), and of
    the hue, in turns; 0 leaves out. The order in which they are applied is drawn for each batch, all else an image.
    """

    def __init__(self, strengths: Sequence[float], generator: torch.Generator) -> None:
        """Draw from `generator`, which is on the device of the images."""
        self.strengths: dict[Change, float] = {
            name: strength for name, strength in zip(_CHANGES, strengths, strict=True) if strength
        }
        self.generator = generator
        self.host = host_generator(generator) if self.strengths else None

    def __call__(self, images: Tensor) -> Tensor:
        """Change the colours of images [N, H, W, C], uint8 or float32, to float32."""
        if not self.strengths:
            return images
        names = list(self.strengths)
        order = torch.randperm(len(names), generator=self.host).tolist()
        return recoloured(images, [(names[place], self._drawn(names[place], len(images))) for place in order])

    def _drawn(self, name: Change, count: int) -> Tensor:
        strength = self.strengths[name]
        middle = 0.0 if name == "hue" else 1.0
        lowest = middle - strength if name == "hue" else max(0.0, middle - strength)
        unit = torch.rand(count, generator=self.generator, device=self.generator.device)
        return lowest + (middle + strength - lowest) * unit
