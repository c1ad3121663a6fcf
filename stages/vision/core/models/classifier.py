"""The networks, by name: one file a family; each maps normalised images [N, C, H, W] to logits [N, classes]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.core.models.convnet import ConvNet
from vision.core.models.plain_cnn import PlainCNN, PlainCNNConfig
from vision.core.models.torchvision_models import build_torchvision

MOST_PARAMETERS = 10**9
"""Of a network of this project; torchvision's have up to 644 million. With more, memory is likelier to end first."""


class Classifier(nn.Module):
    """A network with its normalisation, so that training, testing and serving cannot disagree about it."""

    scale: Tensor
    offset: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], input_scale: float = 1.0
    ) -> None:
        """Wrap `network`; `mean` and `std` hold a figure a channel, for pixels in [0, 1].

        Images are enlarged `zoom` times before the network sees them.
        """
        super().__init__()
        self.network = network
        self.input_scale = input_scale
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(1, -1, 1, 1)))
        self.register_buffer("offset", -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, C], uint8 or float in [0, 255], to float logits [N, classes]."""
        return self.network(self.normalized(images)).float()

    def normalized(self, images: Tensor) -> Tensor:
        """Map images [N, H, W, C] in [0, 255] to float32 [N, C, H, W] in the memory order channels_last."""
        # A row of pixels at a time: on a CPU eight times faster than a pixel at a time, as [C] against [W, C].
        scale, offset = (one.flatten().expand(images.shape[2], -1).flatten() for one in (self.scale, self.offset))
        pixels = torch.addcmul(offset, images.flatten(2).float(), scale).view(images.shape)
        # Seen as [N, C, H, W], images that lie in memory as [N, H, W, C] are channels_last already.
        pixels = pixels.permute(0, 3, 1, 2)
        if self.input_scale == 1:
            return pixels
        size = [round(self.input_scale * side) for side in images.shape[1:3]]
        return F.interpolate(pixels, size, mode="bilinear", antialias=True)

    @property
    def head(self) -> nn.Module:
        """The last layer that has weights: it makes the logits."""
        return [module for module in self.network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]

    @property
    def normalizes(self) -> bool:
        """Whether the network has layers that normalise features."""
        kinds = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
        return any(isinstance(module, kinds) for module in self.network.modules())

    @torch.no_grad()
    def initialize_from(self, images: Tensor) -> None:
        """Let a network whose first weights depend on the data see some of the training images, uint8 [N, H, W, C]."""
        if initialize := getattr(self.network, "initialize_from", None):
            pixels = self.input_scale**2 * images.shape[1] * images.shape[2]
            initialize(self.normalized(images[: max(1, int(5000 * 32 * 32 / pixels))]))


@dataclass(frozen=True)
class InputSpec:
    """The images that a classifier is given.

    Attributes:
        image_shape: [H, W, C].
        mean: of each channel, for pixels in [0, 1].
        std: of each channel.
        image_size: pixels of the shorter side that images are resized to inside the model. None leaves them.
    """

    image_shape: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int | None = None


def build(name: str, options: dict[str, Any], inputs: InputSpec, classes: int) -> Classifier:
    """Make a classifier, its weights random (seed with `torch.manual_seed`).

    Args:
        name: "convnet", "plain_cnn" or what torchvision calls a classifier of its own.
        options: what the family's class or function takes beside the shape and the classes.
        inputs: the images that it is given.
        classes: how many.

    Raises:
        ValueError: there is no such network, or not for such images; the message names the parameter.
    """
    input_scale = 1.0 if inputs.image_size is None else inputs.image_size / min(inputs.image_shape[:2])
    *size, channels = inputs.image_shape
    seen = [*(round(input_scale * pixels) for pixels in size), channels]

    def made() -> nn.Module:
        if name == "convnet":
            return ConvNet(channels, classes, **options)
        return PlainCNN(seen, classes, PlainCNNConfig(**options))

    if name in ("convnet", "plain_cnn"):
        with torch.device("meta"):  # where tensors have a shape, and take no memory
            parameters = sum(p.numel() for p in made().parameters())
        if parameters > MOST_PARAMETERS:
            raise ValueError(f"model.{name}: {parameters:,} parameters are more than {MOST_PARAMETERS:,}; use fewer")
    network = made() if name in ("convnet", "plain_cnn") else build_torchvision(name, seen, classes, **options)
    return Classifier(network, inputs.mean, inputs.std, input_scale).to(memory_format=torch.channels_last)
