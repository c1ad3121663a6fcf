"""Time one training step of the default network, with and without keeping freed memory, and profile it.

    python benchmarks/step.py                       # 5 rounds; each measurement is a separate process
    python benchmarks/step.py --size 24             # smaller images
    python benchmarks/step.py --widths 64 256 256   # another network

The images are random, which costs the same as real ones. Needs only torch.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from vision.core.augment.crop_flip import RandomCropFlip
from vision.core.config import OptimizerConfig
from vision.core.convolution import WeightGradientMode, select_weight_gradient
from vision.core.data import ImageDataset, epoch_indices, iter_batches
from vision.core.device import keep_freed_memory, select_device
from vision.core.inference import autocast
from vision.core.models.classifier import InputSpec
from vision.core.models.convnet import fuse_blocks
from vision.core.models.registry import create_model
from vision.core.optim.optimizers import build_optimizers

CATEGORIES = {
    "convolution": ("convolution", "_Convolution"),
    "pooling": ("max_pool", "fill_", "amax"),
    "fused block": ("PoolNormSiLU",),
    "activation": ("silu",),
    "normalization": ("batch_norm",),
    "optimizer": ("bmm", "_foreach", "linalg_vector_norm", "Optimizer"),
}
"""Parts of the names of operations."""


def make_step(widths: list[int], batch_size: int, size: int, fused: bool = True) -> Callable[[], None]:
    """Return a function that does one step of the default recipe on random images of size x size pixels.

    With `fused`, as in training, blocks are fused where that saves time.
    """
    device, dtype = select_device("auto", "auto")
    torch.manual_seed(0)
    generator = torch.Generator(device).manual_seed(0)
    inputs = InputSpec([size, size, 3], [0.5] * 3, [0.25] * 3)
    model = create_model("convnet", {"widths": widths, "depth": 2}, inputs, 10).to(device)
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8, device=device, generator=generator)
    labels = torch.randint(0, 10, (batch_size,), device=device, generator=generator)
    model.initialize_from(images)
    config = OptimizerConfig("muon", adamw_lr=0.02, momentum=0.6, nesterov=True, weight_decay=0.0)
    optimizers = build_optimizers(model, config, 0.15, dtype)
    if fused:
        fuse_blocks(model, device, dtype)
    method = select_weight_gradient(model, batch_size, device, dtype)
    convolutions = WeightGradientMode(method) if method else nullcontext()
    augment = RandomCropFlip("alternate", 2, batch_size, generator)

    def step() -> None:
        indices = epoch_indices(torch.arange(batch_size, device=device), batch_size, generator)
        for (batch,) in iter_batches(ImageDataset(images, labels), indices, batch_size):
            augmented = augment(batch.images, batch.indices)
            with autocast(device, dtype), convolutions:
                logits = model(augmented)
            F.cross_entropy(logits, batch.labels, label_smoothing=0.1).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def seconds_per_step(step: Callable[[], None], steps: int) -> float:
    """Return the median of `steps` steps after three warm-up steps."""
    times = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def profile_fastest(step: Callable[[], None], steps: int = 10) -> dict[str, float]:
    """Return the CPU time of a step by category, in microseconds, of the fastest of `steps` steps after ten others.

    The profiler's records take memory that tensors had. In some steps new pages are mapped for tensors, and the first
    operation that writes to them seems slow.
    """
    for _ in range(10):
        step()
    return min((profile_step(step) for _ in range(steps)), key=lambda times: sum(times.values()))


def profile_step(step: Callable[[], None]) -> dict[str, float]:
    """Return the CPU time of one step by category, in microseconds."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    times: dict[str, float] = defaultdict(float)
    for event in record.key_averages():
        matches = (name for name, parts in CATEGORIES.items() if any(part in event.key for part in parts))
        times[next(matches, "other")] += event.self_cpu_time_total
    return times


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--memory", choices=["kept", "returned"], help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.memory:
        if options.memory == "kept":
            keep_freed_memory()
        step = make_step(options.widths, options.batch_size, options.size)
        print(seconds_per_step(step, options.steps))
        return

    times: dict[str, list[float]] = {"returned": [], "kept": []}
    for _ in range(options.rounds):
        for memory, seconds in times.items():
            command = [sys.executable, *sys.argv, "--memory", memory]
            seconds.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    size = f"{options.size}x{options.size}"
    print(f"{options.widths}, {options.batch_size} images of {size}, {options.rounds} rounds of {options.steps} steps")
    for memory, seconds in times.items():
        spread = f"{min(seconds):.4f} to {max(seconds):.4f} s"
        print(f"freed memory {memory}: median {statistics.median(seconds):.4f} s, {spread}")
    ratios = [kept / returned for kept, returned in zip(times["kept"], times["returned"], strict=True)]
    print(f"kept / returned: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    keep_freed_memory()
    categories = profile_fastest(make_step(options.widths, options.batch_size, options.size))
    for name, microseconds in sorted(categories.items(), key=lambda item: -item[1]):
        print(f"{name:15} {microseconds / sum(categories.values()):6.1%}")


if __name__ == "__main__":
    main()
