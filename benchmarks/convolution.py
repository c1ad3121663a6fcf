"""A step's convolutions with the images of small feature maps side by side, and one by one, in turn on one machine.

    python benchmarks/convolution.py           # maps alone, then whole training steps: five minutes

Forwards and backwards in bf16, random images. Of the ratios, side by side / one by one, of all rounds the median is
told, the lowest and the highest: below 1 side by side is faster. Needs a processor with AMX: on others training takes
them one by one. Other programs on the machine spoil it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
import torch.nn.functional as F
from torch import nn

from vision.core.amx_convolution import SideBySide
from vision.core.device import keep_freed_memory
from vision.core.inference import autocast
from vision.core.models import classifier

CPU = torch.device("cpu")
MAPS = [(channels, side) for channels in (128, 256, 512) for side in (2, 3, 4, 6, 7, 8)]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("convnet", {"widths": [32, 128, 256], "depth": 2}),
    "speedrun94": ("convnet", {"widths": [64, 256, 256], "depth": 2}),
    "resnet18": ("resnet18", {"stem": "small"}),
}
Pass = Callable[[AbstractContextManager[object]], None]


def of_map(channels: int, side: int, count: int) -> Pass:
    """A convolution alone, with gradients of its filters and its input."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    shape = count, channels, side, side
    features, gradient = (
        torch.randn(shape, dtype=torch.bfloat16).to(memory_format=torch.channels_last) for _ in range(2)
    )
    features.requires_grad_()

    def once(way: AbstractContextManager[object]) -> None:
        with autocast(CPU, torch.bfloat16), way:
            made = layer(features)
        made.backward(gradient)

    return once


def of_network(name: str, side: int, count: int) -> Pass:
    """A whole network, without its optimiser."""
    kind, options = NETWORKS[name]
    model = classifier.build(kind, options, [side, side, 3], 10, [0.5] * 3, [0.25] * 3).train()
    images = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,))
    model.initialize_from(images)

    def once(way: AbstractContextManager[object]) -> None:
        with autocast(CPU, torch.bfloat16), way:
            logits = model(images)
        F.cross_entropy(logits, labels).backward()

    return once


def row(name: str, once: Pass, rounds: int) -> str:
    """A row of the table: medians of both ways, and of their ratios."""
    ways: dict[str, AbstractContextManager[object]] = {"one by one": nullcontext(), "side by side": SideBySide()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 2):
        for way, context in ways.items():
            started = time.perf_counter()
            once(context)
            times[way].append(time.perf_counter() - started)
    alone, together = (found[2:] for found in times.values())  # the first two warm up
    ratios = [b / a for a, b in zip(alone, together, strict=True)]
    return (
        f"| {name} | {1e3 * statistics.median(alone):.1f} | {1e3 * statistics.median(together):.1f} "
        f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}, {max(ratios):.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=500, help="images a step")
    options = parser.parse_args()
    if not torch.cpu.get_capabilities().get("amx_bf16", False):
        print("This processor has no AMX: training takes the images one by one here.", file=sys.stderr)
    keep_freed_memory()
    torch.manual_seed(0)
    print(f"| {options.images} images | one by one, ms | side by side, ms | ratio | from, to |\n|---|---|---|---|---|")
    for channels, side in MAPS:
        once = of_map(channels, side, options.images)
        print(row(f"{channels} channels, {side}x{side}", once, options.rounds), flush=True)
    for name in NETWORKS:
        for side in (20, 26, 32):
            once = of_network(name, side, options.images)
            print(row(f"{name}, {side}x{side}", once, options.rounds), flush=True)


if __name__ == "__main__":
    main()
