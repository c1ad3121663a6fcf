"""The convolutional network of textbooks and tutorials: convolutions with ReLU and pooling, then linear layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainCNNConfig:
    """The shape of a plain CNN (`model.plain_cnn` in params.yaml)."""

    widths: Sequence[int]
    depth: int
    kernel: int
    padding: str
    batch_norm: bool
    hidden: Sequence[int]
    dropout: float


class PlainCNN(nn.Module):
    """A block for each of `config.widths`: `depth` convolutions to that many channels with ReLU, then 2x2 pooling.

    The features are flattened and go through linear layers with ReLU of the sizes `hidden`, and a last one to the
    classes, with dropout before each. Therefore it accepts images of one size only.
    """

    def __init__(self, image_shape: Sequence[int], classes: int, config: PlainCNNConfig) -> None:
        """Initialize with random weights.

        Args:
            image_shape: [H, W, C].
            classes: number of classes.
            config: the layers; `padding` is "same" or "valid".

        Raises:
            ValueError: the image is too small for so many blocks. The message names the parameter.
        """
        super().__init__()
        *size, channels = image_shape
        layers: list[nn.Module] = []
        for width in config.widths:
            for i in range(config.depth):
                layers.append(
                    nn.Conv2d(channels, width, config.kernel, padding=config.padding, bias=not config.batch_norm)
                )
                if config.batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                if i == config.depth - 1:
                    # Pooling before ReLU gives the same result, and ReLU has a quarter of the work.
                    layers.append(nn.MaxPool2d(2))
                layers.append(nn.ReLU())
                channels = width
                size = [side - (config.kernel - 1 if config.padding == "valid" else 0) for side in size]
            size = [side // 2 for side in size]
            if min(size) < 1:
                raise ValueError(
                    f"model.plain_cnn.widths: an image of {image_shape[0]}x{image_shape[1]} pixels is too small for "
                    f"{len(config.widths)} blocks; use fewer, or padding: same"
                )
        self.features = nn.Sequential(*layers)
        sizes = [channels * size[0] * size[1], *config.hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, config.hidden, strict=False))
        self.last = nn.Linear(sizes[-1], classes)
        self.dropout = FastDropout(config.dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images [N, C, H, W] to logits [N, classes]."""
        features = self.features(images).flatten(1)
        for layer in self.hidden:
            features = F.relu(layer(self.dropout(features)))
        return self.last(self.dropout(features))


class FastDropout(nn.Module):
    """nn.Dropout, three times as fast on a CPU; `p` is the probability of a feature to be dropped.

    PyTorch draws a random number for each feature on a CPU. Here each 64-bit number decides about four features.
    """

    def __init__(self, p: float) -> None:
        """Set the probability, in [0, 1)."""
        super().__init__()
        self.p = p

    def forward(self, features: Tensor) -> Tensor:
        """Set features of any shape to 0 at random in training, and scale up the others."""
        if self.p == 0 or not self.training:
            return features
        if features.device.type != "cpu":
            return F.dropout(features, self.p)
        count = features.numel()
        random_words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        random_shorts = random_words.view(torch.int16)[:count].view(features.shape)
        keep = random_shorts > max(0, round(self.p * 2**16) - 1) - 2**15
        return features * (keep * (1 / (1 - self.p)))
