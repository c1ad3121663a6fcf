"""The networks, by name: one file a family; each maps normalised images [N, C, H, W] to logits [N, classes]."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vision.models.convnet import ConvNet

FAMILIES: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet}


class Classifier(nn.Module):
    """A network with its normalisation, so that training, testing and serving cannot disagree about it."""

    scale: Tensor
    offset: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap `network`; `mean` and `std` hold a figure a channel, for pixels in [0, 1]."""
        super().__init__()
        self.network = network
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, -1, 1, 1)))
        self.register_buffer("offset", -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, C], uint8 or float in [0, 255], to float logits [N, classes]."""
        return self.network(self.normalized(images)).float()

    def normalized(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, C] in [0, 255] to float32 [N, C, H, W] in the memory order channels_last."""
        # Seen as [N, C, H, W], images that lie in memory as [N, H, W, C] are channels_last already.
        pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
        return pixels * self.scale + self.offset

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Let a network whose first weights depend on the data see some training images, uint8 [N, H, W, C]."""
        if initialize := getattr(self.network, "initialize_from", None):
            initialize(self.normalized(images))


def build(
    name: str, options: dict[str, Any], channels: int, classes: int, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """Make a classifier of the family `name`, its weights random (seed with `torch.manual_seed`)."""
    network = FAMILIES[name](channels=channels, classes=classes, **options)
    return Classifier(network, mean, std).to(memory_format=torch.channels_last)
