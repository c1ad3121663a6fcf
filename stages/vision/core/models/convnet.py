"""A small, fast convolutional net: a whitening layer, blocks of 3x3 convolutions, one linear layer.

Built of ideas that are public knowledge from the CIFAR-10 speed records (Page 2019, "How to train your ResNet";
Jordan 2024, arXiv:2404.00498): fixed patch whitening first, pooling before normalisation so that all that follows a
convolution works on a quarter of the pixels, normalisation that learns a bias but no scale, and filters that begin by
passing their inputs on.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """`widths` holds the channels of each block, `depth` the convolutions in a block; each block halves the image."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int], depth: int) -> None:
        """Make the net with random weights; call `initialize_from` before training."""
        super().__init__()
        # Each principal direction of the 2x2 patches and its negative: SiLU keeps one sign of either.
        whitened = 2 * channels * 2 * 2
        # Nothing here is trained, so that no gradient has to be computed at full size: a tenth of a step's time.
        self.first = nn.Conv2d(channels, whitened, kernel_size=2, bias=False).requires_grad_(False)
        inputs = [whitened, *widths]
        self.blocks = nn.Sequential(*(Block(a, b, depth) for a, b in zip(inputs, widths, strict=False)))
        self.last = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [N, C, H, W] to logits [N, classes]."""
        features = self.blocks(F.silu(self.first(images)))
        return self.last(features.amax(dim=(2, 3)))

    @torch.no_grad()
    def initialize_from(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Whiten: set the first layer so that its outputs are uncorrelated, of variance 1, on these normalised images.

        Args:
            images: [N, C, H, W]; a few thousand are enough.
            epsilon: added to the variances, so that the weakest directions, mostly noise, are not blown up.
        """
        weight = self.first.weight
        channels, (height, width) = weight.shape[1], weight.shape[2:]
        patches = images.float().unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
        flat = patches.reshape(-1, channels * height * width)
        # A matrix so small is decomposed on the CPU: not every device can.
        variances, directions = torch.linalg.eigh((flat.T @ flat / len(flat)).cpu())
        filters = (directions / (variances + epsilon).sqrt()).T.reshape(-1, channels, height, width)
        weight.copy_(torch.cat([filters, -filters]))


class Block(nn.Module):
    """`depth` 3x3 convolutions, each normalised and bent by SiLU; the first is followed by 2x2 pooling."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        """Map [N, inputs, H, W] to [N, outputs, H // 2, W // 2]."""
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs if i == 0 else outputs, outputs, kernel_size=3, padding=1, bias=False)
            for i in range(depth)
        )
        for conv in self.convs:
            weight = cast(Tensor, conv.weight)
            nn.init.dirac_(weight[: weight.shape[1]].detach())
        # A running average over the last few batches only: weights move fast in a short training.
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs, momentum=0.4) for _ in range(depth))
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H // 2, W // 2]."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            features = conv(features)
            if i == 0:
                features = F.max_pool2d(features, 2, ceil_mode=min(features.shape[2:]) < 2)
            features = F.silu(norm(features))
        return features
