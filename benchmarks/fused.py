"""Compare fused blocks with PyTorch's operators, in turn on one machine.

    python benchmarks/fused.py                # the fused functions alone, then training steps: about five minutes
    python benchmarks/fused.py --rounds 50    # for a machine that others use, too

Forward and backward passes in bf16 on random numbers. The ratios are fused / PyTorch: median, lowest and highest of all
rounds; below 1 the fused function is faster. The functions have the shapes of the default network and of speedrun94,
for images of 20, 26 and 32 pixels. Needs only torch and a C++ compiler.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
import torch.nn.functional as F
from in_turn import format_row
from step import make_step
from torch import Tensor, nn

from vision.core.device import flush_denormals, keep_freed_memory
from vision.core.fused_block import is_available, pool_norm_silu

NETWORKS = {"default": [32, 128, 256], "speedrun94": [64, 256, 256]}
SIZES = (20, 26, 32)


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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=500, help="images per step")
    options = parser.parse_args()
    if not is_available(torch.device("cpu"), torch.bfloat16):
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
    for network, widths in NETWORKS.items():
        for size in SIZES:
            pytorch, fused = (make_step(widths, options.images, size, fused) for fused in (False, True))
            print(format_row(f"{network}, {size}x{size}: training step", pytorch, fused, options.rounds), flush=True)


if __name__ == "__main__":
    main()
