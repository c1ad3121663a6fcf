"""Random brightness, contrast, saturation and hue of whole batches, as torchvision's ColorJitter.

Everything is computed in float32 without rounding. torchvision truncates uint8 images after each adjustment.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vision.core.augment.generators import make_cpu_generator

Adjustment = Literal["brightness", "contrast", "saturation", "hue"]


def adjust_colors(images: Tensor, adjustments: Sequence[tuple[Adjustment, Tensor]]) -> Tensor:
    """Apply color adjustments to each image, one after the other.

    Args:
        images: [N, H, W, C] in [0, 255], uint8 or float32; C is 3 (RGB) or 1 (gray, which ignores the hue).
        adjustments: name and amounts, float32 [N], of each adjustment. The amount of "hue" is a fraction of the color
            circle, in [-0.5, 0.5]. That of the others is a factor, at least 0: for "brightness" of the pixels, for
            "contrast" of their distance to the mean gray of the image, for "saturation" of their distance to their own
            gray.

    Returns:
        float32 [N, H, W, C] in [0, 255], a view that is contiguous as [N, C, H, W].
    """
    # The copy is changed in place: on a CPU, writing to other memory takes longer.
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    for name, amounts in adjustments:
        _ADJUSTMENTS[name](planes, amounts[:, None, None, None])
    return planes.permute(0, 2, 3, 1)


def _adjust_brightness(planes: Tensor, factors: Tensor) -> None:
    planes.mul_(factors).clamp_(0, 255)


def _adjust_contrast(planes: Tensor, factors: Tensor) -> None:
    mean = _to_gray(planes).mean((2, 3), keepdim=True)
    planes.mul_(factors).add_(mean * (1 - factors)).clamp_(0, 255)


def _adjust_saturation(planes: Tensor, factors: Tensor) -> None:
    gray = _to_gray(planes) * (1 - factors)
    planes.mul_(factors).add_(gray).clamp_(0, 255)


def _to_gray(planes: Tensor) -> Tensor:
    if planes.shape[1] == 1:
        return planes
    red, green, blue = planes.split(1, 1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _adjust_hue(planes: Tensor, shifts: Tensor) -> None:
    """Shift the hue of HSV; the value (maximum of the channels) and the chroma (maximum - minimum) stay."""
    if planes.shape[1] == 1:
        return
    red, green, blue = planes.split(1, 1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # The hue in sixths of the circle: red is 0, green 2, blue 4; gray has none and gets 0. `lerp` with a weight of 0 or
    # 1 selects exactly. On a CPU it is much faster than `where`, whose branches are unpredictable here.
    not_red, not_green = (value - red).sign_(), (value - green).sign_()
    per_chroma = chroma.clamp(min=1e-6).reciprocal_()
    hue_if_green, hue_if_blue = ((blue - red) * per_chroma).add_(2), ((red - green) * per_chroma).add_(4)
    hue = torch.lerp((green - blue) * per_chroma, hue_if_green.lerp_(hue_if_blue, not_green), not_red)
    hue = hue.div_(6).add_(shifts)
    # Around the circle each channel is `value` for a third, falls to the minimum, stays there for a third and rises.
    starts = torch.arange(5, 0, -2, device=planes.device).view(3, 1, 1) / 6
    torch.add(hue, starts + 1, out=planes).frac_()  # 1 is added so that no number is negative
    deficit = planes.sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
    torch.addcmul(value, deficit, chroma, value=-1, out=planes)


_ADJUSTMENTS: dict[Adjustment, Callable[[Tensor, Tensor], None]] = {
    "brightness": _adjust_brightness,
    "contrast": _adjust_contrast,
    "saturation": _adjust_saturation,
    "hue": _adjust_hue,
}


class ColorJitter:
    """Random brightness, contrast, saturation and hue, drawn as torchvision's ColorJitter draws them.

    The amounts are drawn for each image, the order of the adjustments for each batch.
    """

    def __init__(self, strengths: Sequence[float], generator: torch.Generator) -> None:
        """Set the strengths.

        Args:
            strengths: of brightness, contrast, saturation and hue, in this order; 0 is off. A factor is drawn from
                [max(0, 1 - strength), 1 + strength], a shift of the hue from [-strength, strength].
            generator: on the device of the images.
        """
        self.strengths: dict[Adjustment, float] = {
            name: strength for name, strength in zip(_ADJUSTMENTS, strengths, strict=True) if strength
        }
        self.generator = generator
        self.cpu_generator = make_cpu_generator(generator) if self.strengths else None

    def __call__(self, images: Tensor) -> Tensor:
        """Adjust the colors of images [B, H, W, C], uint8 or float32 in [0, 255]; the result is float32."""
        if not self.strengths:
            return images
        names = list(self.strengths)
        order = torch.randperm(len(names), generator=self.cpu_generator).tolist()
        return adjust_colors(images, [(names[i], self._random_amounts(names[i], len(images))) for i in order])

    def _random_amounts(self, name: Adjustment, count: int) -> Tensor:
        strength = self.strengths[name]
        center = 0.0 if name == "hue" else 1.0
        low = center - strength if name == "hue" else max(0.0, center - strength)
        uniform = torch.rand(count, generator=self.generator, device=self.generator.device)
        return low + (center + strength - low) * uniform
