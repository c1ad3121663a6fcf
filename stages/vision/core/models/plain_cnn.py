"""The convolutional net of the textbooks and tutorials: convolutions with ReLU and pooling, then linear layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainCNNConfig:
    """The shape of a plain CNN. params.yaml describes each value."""

    widths: Sequence[int]
    depth: int
    kernel: int
    padding: str
    batch_norm: bool
    hidden: Sequence[int]
    dropout: float


class PlainCNN(nn.Module):
    """A block for each of `widths`: `depth` convolutions to so many channels, each followed by ReLU, then 2x2 pooling.

    What is left is flattened and goes through linear layers with ReLU of the sizes in `hidden`, and a last one to the
    classes, with dropout before each. So it takes images of one size alone.
    """

    def __init__(self, image_shape: Sequence[int], classes: int, config: PlainCNNConfig) -> None:
        """Make the net with random weights, for images of `image_shape` [H, W, C].

        Raises:
            ValueError: nothing is left of the image; the message names the parameter.
        """
        super().__init__()
        *size, channels = image_shape
        layers: list[nn.Module] = []
        for width in config.widths:
            for place in range(config.depth):
                layers.append(
                    nn.Conv2d(channels, width, config.kernel, padding=config.padding, bias=not config.batch_norm)
                )
                if config.batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                if place == config.depth - 1:
                    # The same as after ReLU, which then has a quarter of the work.
                    layers.append(nn.MaxPool2d(2))
                layers.append(nn.ReLU())
                channels = width
                size = [pixels - (config.kernel - 1 if config.padding == "valid" else 0) for pixels in size]
            size = [pixels // 2 for pixels in size]
            if min(size) < 1:
                raise ValueError(
                    f"model.plain_cnn.widths: nothing is left of an image of {image_shape[0]}x{image_shape[1]} pixels "
                    f"after {len(config.widths)} blocks; use fewer, or padding: same"
                )
        self.features = nn.Sequential(*layers)
        sizes = [channels * size[0] * size[1], *config.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, config.hidden, strict=False))
        self.last = nn.Linear(sizes[-1], classes)
        self.dropout = config.dropout

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [N, C, H, W] to logits [N, classes]."""
        features = self.features(images).flatten(1)
        for layer in self.hidden:
            features = F.relu(layer(self.dropped(features)))
        return self.last(self.dropped(features))

    def dropped(self, features: Tensor) -> Tensor:
        """Set a share of the features to 0 in training, and scale up the others."""
        if self.dropout == 0 or not self.training:
            return features
        if features.device.type != "cpu":
            return F.dropout(features, self.dropout)
        # The same; torch tosses its coins one by one on a CPU, which takes three times as long. Here each number that
        # the generator draws holds four of them, of 16 bits.
        count = features.numel()
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        coins = drawn.view(torch.int16)[:count].view(features.shape)
        kept = coins > max(0, round(self.dropout * 2**16) - 1) - 2**15
        return features * (kept * (1 / (1 - self.dropout)))
