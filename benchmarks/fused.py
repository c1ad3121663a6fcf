"""Compare fused blocks with PyTorch's operators, in turn on one machine.

    python benchmarks/fused.py                # the fused functions alone, then training steps: about five minutes
    python benchmarks/fused.py --rounds 50    # for a machine that others use, too

Forward and backward passes in bf16 on random numbers. The ratios are fused / PyTorch: median, lowest and highest of all
rounds; below 1 the fused function is faster. The functions have the shapes of the default network and of speedrun94,
for images of 20, 24, 26, 28 and 32 pixels. Rows named "convolution" compare a fused block that computes the whole
convolution with one that leaves out the row and the column that pooling ignores. Needs only torch and a C++ compiler.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
import torch.nn.functional as F
from in_turn import format_row
from step import make_step
from torch import Tensor, nn

from vision.core.convolution import WeightGradientMode, select_weight_gradient
from vision.core.device import flush_denormals, keep_freed_memory
from vision.core.fused_block import is_available, pool_norm_silu
from vision.core.inference import autocast
from vision.core.models.convnet import convolve_to_even_size

CPU = torch.device("cpu")
NETWORKS = {"default": [32, 128, 256], "speedrun94": [64, 256, 256]}
SIZES = (20, 24, 26, 28, 32)

Pass = Callable[[], None]


def make_passes(channels: int, side: int, pool: bool, images: int) -> tuple[Pass, Pass]:
    """Return forward and backward passes by PyTorch's operators, and by the fused function."""
    features = torch.randn(images, side, side, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2).requires_grad_()
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    output_side = side // 2 if pool else side
    grad = torch.randn(images, output_side, output_side, channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)

    def pytorch(features: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
        return F.silu(norm(F.max_pool2d(features, 2) if pool else features))

    def run(function: Callable[[Tensor, nn.BatchNorm2d, bool], Tensor]) -> None:
        features.grad = None
        function(features, norm, pool).backward(grad)

    return lambda: run(pytorch), lambda: run(pool_norm_silu)


def make_convolution_passes(in_channels: int, out_channels: int, side: int, images: int) -> tuple[Pass, Pass]:
    """Return passes of the first convolution of a fused block, with all pixels and with those that pooling reads."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(out_channels, momentum=0.4)
    features = torch.randn(images, side, side, in_channels, dtype=torch.bfloat16).permute(0, 3, 1, 2).requires_grad_()
    grad = torch.randn(images, side // 2, side // 2, out_channels, dtype=torch.bfloat16).permute(0, 3, 1, 2)
    method = select_weight_gradient(conv, images, CPU, torch.bfloat16)

    def run(convolve: Callable[[Tensor], Tensor]) -> None:
        features.grad = conv.weight.grad = None
        with autocast(CPU, torch.bfloat16), WeightGradientMode(method) if method else nullcontext():
            output = convolve(features)
        pool_norm_silu(output, norm, True).backward(grad)

    return lambda: run(conv), lambda: run(lambda features: convolve_to_even_size(features, conv.weight))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=500, help="images per step")
    options = parser.parse_args()
    if not is_available(CPU, torch.bfloat16):
        sys.exit("Training uses PyTorch's operators on this machine.")
    keep_freed_memory()
    flush_denormals()
    torch.manual_seed(0)
    print(f"| {options.images} images, {options.rounds} rounds, {torch.get_num_threads()} threads ", end="")
    print("| PyTorch, ms | fused, ms | ratio | from, to |\n|---|---|---|---|---|")
    for network, widths in NETWORKS.items():
        for size in SIZES:
            side = size - 1  # of the whitening layer's output
            for channels in widths:
                for pool in (True, False):
                    name = f"{network}, {size}x{size}: {channels} channels, {side}x{side}"
                    passes = make_passes(channels, side, pool, options.images)
                    print(format_row(name + ", pooling" * pool, *passes, options.rounds), flush=True)
                    side = side // 2 if pool else side
    sides = {(size - 1) // 2**block for size in SIZES for block in (1, 2)}
    for side in sorted(side for side in sides if side % 2):
        for pair in sorted({pair for widths in NETWORKS.values() for pair in itertools.pairwise(widths)}):
            name = "convolution of {} to {} channels".format(*pair)
            print(
                format_row(
                    f"{name}, {side}x{side}", *make_convolution_passes(*pair, side, options.images), options.rounds
                )
            )
    for network, widths in NETWORKS.items():
        for size in SIZES:
            pytorch, fused = (make_step(widths, options.images, size, fused) for fused in (False, True))
            print(format_row(f"{network}, {size}x{size}: training step", pytorch, fused, options.rounds), flush=True)


if __name__ == "__main__":
    main()
