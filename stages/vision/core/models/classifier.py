"""The classifier: a network together with its normalization."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network with its normalization, so that training, evaluation and serving normalize in the same way.

    Attributes:
        temperature: what logits are divided by, a scalar. It is 1 until the training has ended; see `core.temperature`.
    """

    scale: Tensor
    offset: Tensor
    temperature: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], input_scale: float = 1.0
    ) -> None:
        """Wrap a network.

        Args:
            network: maps normalized images [N, C, H, W] to logits [N, classes].
            mean: of each channel, for pixels in [0, 1].
            std: of each channel, for pixels in [0, 1].
            input_scale: factor by which images are resized before the network gets them.
        """
        super().__init__()
        self.network = network
        self.input_scale = input_scale
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, -1, 1, 1)))
        self.register_buffer("offset", -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, C], uint8 or float in [0, 255], to logits float32 [N, classes]."""
        return self.network(self.normalize(images)).float() / self.temperature

    def normalize(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, C] in [0, 255] to float32 [N, C, H, W] in the memory format channels_last."""
        # The computation is on whole rows [W * C], which is eight times faster on a CPU than on single pixels [C].
        scale, offset = (buffer.flatten().expand(images.shape[2], -1).flatten() for buffer in (self.scale, self.offset))
        pixels = torch.addcmul(offset, images.flatten(2).float(), scale).view(images.shape)
        # A permuted [N, H, W, C] tensor is channels_last already.
        pixels = pixels.permute(0, 3, 1, 2)
        if self.input_scale == 1:
            return pixels
        size = [round(self.input_scale * side) for side in images.shape[1:3]]
        return F.interpolate(pixels, size, mode="bilinear", antialias=True)

    @property
    def head(self) -> nn.Module:
        """The last linear or convolutional layer, which computes the logits."""
        return [module for module in self.network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]

    @property
    def has_normalization_layers(self) -> bool:
        """Whether the network contains batch, group or layer normalization."""
        layer_types = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
        return any(isinstance(module, layer_types) for module in self.network.modules())

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Initialize a network whose first weights depend on the data; does nothing for other networks.

        Args:
            images: uint8 [N, H, W, C], training images. The first ones are used, about five million pixels.
        """
        if initialize := getattr(self.network, "initialize_from", None):
            pixels = self.input_scale**2 * images.shape[1] * images.shape[2]
            initialize(self.normalize(images[: max(1, int(5000 * 32 * 32 / pixels))]))


@dataclass(frozen=True)
class InputSpec:
    """The images that a classifier is given.

    Attributes:
        image_shape: [H, W, C].
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        image_size: pixels of the shorter side that images are resized to inside the model. None does not resize.
    """

    image_shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int | None = None
