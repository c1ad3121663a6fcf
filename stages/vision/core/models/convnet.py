"""A small, fast convolutional network: a whitening layer, blocks of 3x3 convolutions, and a linear layer.

The ideas are those of the CIFAR-10 speed records (Page 2019, "How to Train Your ResNet"; Jordan 2024,
arXiv:2404.00498):

- A fixed whitening of patches comes first.
- Pooling comes before normalization, so that everything after a convolution works on a quarter of the pixels.
- Normalization learns a bias but no scale.
- Convolutions are initialized to the identity.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.core import fused_block


class ConvNet(nn.Module):
    """The network; `widths` holds the channels of each block, `depth` is the number of convolutions in a block.

    Each block halves the size of the image.
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[int], depth: int) -> None:
        """Initialize with random weights; call `initialize_from` before training."""
        super().__init__()
        # One filter for each principal component of the 2x2 patches, and one for its negative, because SiLU suppresses
        # negative outputs.
        whitened_channels = 2 * channels * 2 * 2
        # The whitening layer is not trained, so no gradient is computed at full size. That saves 10% of a step.
        self.first = nn.Conv2d(channels, whitened_channels, kernel_size=2, bias=False).requires_grad_(False)
        block_channels = [whitened_channels, *widths]
        self.blocks = nn.Sequential(*(Block(a, b, depth) for a, b in itertools.pairwise(block_channels)))
        self.last = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images [N, C, H, W] to logits [N, classes]."""
        features = self.blocks(F.silu(self.first(images)))
        # Not `amax`, whose gradient compares its input with its output. If torch.compile rounds only one of the two,
        # nothing is equal, and the gradient is not a number.
        return self.last(F.max_pool2d(features, features.shape[2:]).flatten(1))

    @torch.no_grad()
    def initialize_from(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Set the whitening layer so that its outputs are uncorrelated and have variance 1 on `images`.

        Args:
            images: normalized [N, C, H, W]; a few thousand are enough.
            epsilon: added to the variances, so that the components of the smallest variance, which are mostly noise,
                are not amplified.
        """
        weight = self.first.weight
        channels, (height, width) = weight.shape[1], weight.shape[2:]
        patches = images.float().unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
        flat = patches.reshape(-1, channels * height * width)
        # The decomposition is on the CPU, because not every device supports it.
        variances, components = torch.linalg.eigh((flat.T @ flat / len(flat)).cpu())
        filters = (components / (variances + epsilon).sqrt()).T.reshape(-1, channels, height, width)
        weight.copy_(torch.cat([filters, -filters]))


class Block(nn.Module):
    """`depth` 3x3 convolutions, each followed by batch normalization and SiLU; 2x2 pooling follows the first one.

    Attributes:
        fused: whether to train with the functions of `fused_block` where they support the features.
    """

    fused = False

    def __init__(self, in_channels: int, out_channels: int, depth: int) -> None:
        """Create the layers of `depth` convolutions."""
        super().__init__()
        self.channels = out_channels
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels if i == 0 else out_channels, out_channels, kernel_size=3, padding=1, bias=False)
            for i in range(depth)
        )
        for conv in self.convs:
            weight = cast(Tensor, conv.weight)
            nn.init.dirac_(weight[: weight.shape[1]].detach())
        # A running average over only the last few batches, because weights change fast in a short training.
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels, momentum=0.4) for _ in range(depth))
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H // 2, W // 2]; a side of one pixel stays."""
        norms = cast(Iterable[nn.BatchNorm2d], self.norms)
        for i, (conv, norm) in enumerate(zip(self.convs, norms, strict=True)):
            pool = i == 0
            crop = self.fused and pool and _pays_to_crop(features)
            features = convolve_to_even_size(features, cast(Tensor, conv.weight)) if crop else conv(features)
            if self.fused and fused_block.is_supported(features, norm, pool):
                features = fused_block.pool_norm_silu(features, norm, pool)
                continue
            if pool:
                features = F.max_pool2d(features, 2, ceil_mode=min(features.shape[2:]) < 2)
            features = F.silu(norm(features))
        return features


_MAX_CROPPED_SIDE = 15
"""On larger maps, a row and a column are so small a part that the copy takes longer than the convolution of them."""


def _pays_to_crop(features: Tensor) -> bool:
    """Whether 2x2 pooling ignores so large a part of the features [N, C, H, W] that not computing it saves time."""
    height, width = features.shape[2:]
    return min(height, width) >= 3 and max(height, width) <= _MAX_CROPPED_SIDE and (height % 2 == 1 or width % 2 == 1)


def convolve_to_even_size(features: Tensor, weight: Tensor) -> Tensor:
    """Convolve with "same" padding, but leave out the last row and the last column if their number is odd.

    Args:
        features: [N, in, H, W].
        weight: [out, in, 3, 3].

    Returns:
        [N, out, H // 2 * 2, W // 2 * 2].
    """
    height, width = features.shape[2:]
    padded = F.pad(features, (1, 1 - width % 2, 1, 1 - height % 2))
    # All arguments by position, as nn.Conv2d does, so that WeightGradientMode replaces this convolution too.
    return F.conv2d(padded, weight, None, (1, 1), (0, 0), (1, 1), 1)


def fuse_blocks(model: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Make the blocks of `model` train with the functions of `fused_block` if those save time.

    Args:
        model: any network; only the blocks of a ConvNet are changed. Weights and the keys of the state dict stay.
        device: where the model is computed.
        dtype: what convolutions are computed in.

    Returns:
        Whether the functions are used.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    supported = any(block.channels % fused_block.CHANNEL_MULTIPLE == 0 for block in blocks)
    fused = supported and fused_block.is_available(device, dtype)
    for block in blocks:
        block.fused = fused
    return fused
