"""Compare convolutions whose weight gradients the project computes with PyTorch's, in turn on one machine.

    python benchmarks/convolution.py           # single layers, then training steps of networks: five minutes

Forward and backward passes in bf16 on random images, with the method that training uses on this CPU. The ratios are
fast weight gradients / PyTorch: median, lowest and highest of all rounds; below 1 the project's code is faster. Other
programs on the machine distort the result.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
import torch.nn.functional as F
from in_turn import format_row
from torch import nn

from vision.core.convolution import WeightGradient, WeightGradientMode, select_weight_gradient
from vision.core.device import keep_freed_memory
from vision.core.inference import autocast
from vision.core.models.classifier import InputSpec
from vision.core.models.registry import create_model

CPU = torch.device("cpu")
MAPS = [
    *((64, side) for side in (9, 12, 15)),
    *((channels, side) for channels in (128, 256, 512) for side in (2, 3, 4, 6, 7, 8)),
]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("convnet", {"widths": [32, 128, 256], "depth": 2}),
    "speedrun94": ("convnet", {"widths": [64, 256, 256], "depth": 2}),
    "resnet18": ("resnet18", {"stem": "small"}),
}
Pass = Callable[[AbstractContextManager[object]], None]
"""A forward and backward pass, whose convolutions are computed in the given context."""


def make_layer_pass(channels: int, side: int, count: int) -> Pass:
    """Return a pass of a single convolution, with the gradients of its weight and of its input."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    shape = count, channels, side, side
    features, grad_output = (
        torch.randn(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last) for _ in range(2)
    )
    features.requires_grad_()

    def run(context: AbstractContextManager[object]) -> None:
        with autocast(CPU, torch.bfloat16), context:
            output = layer(features)
        output.backward(grad_output)

    return run


def make_network_pass(name: str, side: int, count: int) -> Pass:
    """Return a pass of a whole network, without its optimizer."""
    network, options = NETWORKS[name]
    inputs = InputSpec([side, side, 3], [0.5] * 3, [0.25] * 3)
    model = create_model(network, options, inputs, 10).train()
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    model.initialize_from(images)

    def run(context: AbstractContextManager[object]) -> None:
        with autocast(CPU, torch.bfloat16), context:
            logits = model(images)
        F.cross_entropy(logits, labels).backward()

    return run


def format_both(name: str, run: Pass, method: WeightGradient, rounds: int) -> str:
    """Time a pass in both ways, in turn, and return a row of the table."""
    return format_row(name, lambda: run(nullcontext()), lambda: run(WeightGradientMode(method)), rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=500, help="images per step")
    options = parser.parse_args()
    method = select_weight_gradient(nn.Conv2d(128, 128, 3), options.images, CPU, torch.bfloat16)
    if method is None:
        sys.exit("convolution.py: training uses PyTorch's convolution on this CPU")
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"| {options.images} images | PyTorch, ms | {method.name}, ms | ratio | from, to |\n|---|---|---|---|---|")
    for channels, side in MAPS:
        run = make_layer_pass(channels, side, options.images)
        print(format_both(f"{channels} channels, {side}x{side}", run, method, options.rounds), flush=True)
    for name in NETWORKS:
        for side in (20, 26, 32):
            run = make_network_pass(name, side, options.images)
            print(format_both(f"{name}, {side}x{side}", run, method, options.rounds), flush=True)


if __name__ == "__main__":
    main()
