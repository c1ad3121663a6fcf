"""One training step of the default network: how long it takes, where the time goes, what keeping freed memory saves.

    python benchmarks/step.py                # 5 rounds, with and without kept memory in turn, each a process of its own
    python benchmarks/step.py --size 24      # smaller images
    python benchmarks/step.py --widths 64 256 256   # another network

Random images stand in for the data: they cost the same. Needs torch alone.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from vision.core.amx_convolution import fast_convolutions
from vision.core.augment.crop_flip import RandomCropFlip
from vision.core.data import ImageDataset, epoch_indices, iter_batches
from vision.core.device import choose, keep_freed_memory
from vision.core.inference import autocast
from vision.core.models import classifier
from vision.core.optim.optimizers import optimizers

KINDS = {
    "convolution": ("convolution",),
    "pooling": ("max_pool", "fill_", "amax"),
    "activation": ("silu",),
    "normalisation": ("batch_norm",),
    "optimiser": ("bmm", "_foreach", "linalg_vector_norm", "Optimizer"),
}


def training_step(widths: list[int], batch_size: int, size: int) -> Callable[[], None]:
    """A function that does one step of the default recipe on random images of size x size pixels."""
    device, dtype = choose("auto", "auto")
    torch.manual_seed(0)
    generator = torch.Generator(device).manual_seed(0)
    model = classifier.build("convnet", {"widths": widths, "depth": 2}, [size, size, 3], 10, [0.5] * 3, [0.25] * 3)
    model.to(device)
    images = torch.randint(0, 256, (batch_size, size, size, 3), dtype=torch.uint8, device=device, generator=generator)
    labels = torch.randint(0, 10, (batch_size,), device=device, generator=generator)
    model.initialize_from(images)
    made = optimizers(model, "muon", 0.15, 0.02, 0.6, True, 0.0, dtype)
    convolutions = fast_convolutions(model, batch_size, device, dtype)
    augment = RandomCropFlip("alternate", 2, batch_size, generator)

    def step() -> None:
        order = epoch_indices(torch.arange(batch_size, device=device), batch_size, generator)
        for (batch,) in iter_batches(ImageDataset(images, labels), order, batch_size):
            shown = augment(batch.images, batch.numbers)
            with autocast(device, dtype), convolutions:
                logits = model(shown)
            F.cross_entropy(logits, batch.labels, label_smoothing=0.1).backward()
            for optimizer in made:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def seconds_a_step(widths: list[int], batch_size: int, size: int, steps: int) -> float:
    """Median of `steps` steps after three that warm up."""
    step = training_step(widths, batch_size, size)
    times = []
    for _ in range(steps + 3):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def costs(widths: list[int], batch_size: int, size: int, steps: int = 10) -> dict[str, float]:
    """Microseconds of the CPU of a step by kind of operation, in the fastest of `steps` after ten that warm up.

    What the profiler notes down takes up memory that tensors had, so that in some steps new pages are mapped for them,
    and the first operation that writes there looks slow.
    """
    step = training_step(widths, batch_size, size)
    for _ in range(10):
        step()
    return min((profiled(step) for _ in range(steps)), key=lambda spent: sum(spent.values()))


def profiled(step: Callable[[], None]) -> dict[str, float]:
    """The same of one step."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    spent: dict[str, float] = defaultdict(float)
    for event in record.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "all else")
        spent[kind] += event.self_cpu_time_total
    return spent


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--one", choices=["kept", "returned"], help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.one:
        if options.one == "kept":
            keep_freed_memory()
        print(seconds_a_step(options.widths, options.batch_size, options.size, options.steps))
        return

    times: dict[str, list[float]] = {"returned": [], "kept": []}
    for _ in range(options.rounds):
        for memory, found in times.items():
            command = [sys.executable, *sys.argv, "--one", memory]
            found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    size = f"{options.size}x{options.size}"
    print(f"{options.widths}, {options.batch_size} images of {size}, {options.rounds} rounds of {options.steps} steps")
    for memory, found in times.items():
        print(f"freed memory {memory}: median {statistics.median(found):.4f} s, {min(found):.4f} to {max(found):.4f} s")
    ratios = [kept / returned for kept, returned in zip(times["kept"], times["returned"], strict=True)]
    print(f"kept / returned: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    keep_freed_memory()
    spent = costs(options.widths, options.batch_size, options.size)
    for kind, time_of_kind in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"{kind:15} {time_of_kind / sum(spent.values()):6.1%}")


if __name__ == "__main__":
    main()
