"""Compare augmentation of whole batches with torchvision's in a DataLoader, in turn on one machine.

    python benchmarks/augment.py                # 10,000 images per epoch, 5 rounds, each method and all together
    python benchmarks/augment.py --methods rotation all
    python benchmarks/augment.py --threads 1    # on a busy machine, where threads wait for each other

Both start with uint8 images in memory and end with shuffled batches of normalized floats. The DataLoader gets PIL
images, as torchvision's data sets return them, and has a worker per core, which are started before the clock. The
images are random, which costs the same as real ones.

The CPU time is shown too, because it says more on a busy machine; use one thread then, because waiting counts.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from vision.core.augment.pipeline import Augmentation
from vision.core.config import AugmentConfig
from vision.core.data import ImageDataset, epoch_indices, iter_batches
from vision.core.device import keep_freed_memory, select_device
from vision.core.models.classifier import Classifier

SIZE, SHIFT, DEGREES, JITTER, SQUARE = 32, 2, 15, (0.2, 0.2, 0.2, 0.05), 8
HALF = [0.5, 0.5, 0.5]

IMAGE_TRANSFORMS: dict[str, v2.Transform] = {
    "flip": v2.RandomHorizontalFlip(),
    "shift": v2.RandomCrop(SIZE, padding=SHIFT, padding_mode="reflect"),
    "rotation": v2.RandomRotation(DEGREES, interpolation=v2.InterpolationMode.BILINEAR),
    "color_jitter": v2.ColorJitter(*JITTER),
    "cutout": v2.RandomErasing(p=1, scale=(SQUARE**2 / SIZE**2,) * 2, ratio=(1, 1)),
}
"""torchvision's transforms of one image."""

BATCH_TRANSFORMS: dict[str, v2.Transform] = {"mixup": v2.MixUp(num_classes=10), "cutmix": v2.CutMix(num_classes=10)}
"""torchvision's transforms of a batch, applied in the workers."""


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images and labels; each image is transformed when it is accessed."""

    def __init__(self, dataset: ImageDataset, transform: v2.Transform) -> None:
        """Hold the images as torchvision's data sets do."""
        self.images = dataset.images.numpy()
        self.labels = dataset.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, float32 [C, H, W], and its label."""
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class MixingCollate:
    """Collates a batch and mixes its images."""

    def __init__(self, transforms: list[v2.Transform]) -> None:
        """Apply one of `transforms` to each batch."""
        self.mix = v2.RandomChoice(transforms)

    def __call__(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Stack and mix."""
        images, labels = default_collate(samples)
        return self.mix(images, labels)


def make_torchvision_epoch(methods: set[str], dataset: ImageDataset, batch_size: int) -> Callable[[], None]:
    """Return an epoch of a DataLoader whose workers are started."""
    mixes = [transform for method, transform in BATCH_TRANSFORMS.items() if method in methods]
    transforms = [transform for method, transform in IMAGE_TRANSFORMS.items() if method in methods]
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF)]
    loader = DataLoader(
        TransformedImages(dataset, v2.Compose([v2.ToImage(), *transforms, *normalize])),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        collate_fn=MixingCollate(mixes) if mixes else None,
    )

    def epoch() -> None:
        for _ in loader:
            pass

    epoch()
    return epoch


def make_our_epoch(methods: set[str], dataset: ImageDataset, batch_size: int) -> Callable[[], None]:
    """Return an epoch of batches that are augmented as in training, on the device."""
    device = dataset.images.device
    generator = torch.Generator(device).manual_seed(0)
    indices = torch.arange(len(dataset.labels), device=device)
    config = AugmentConfig(
        flip="random" if "flip" in methods else "none",
        crop_padding=SHIFT if "shift" in methods else 0,
        rotation=DEGREES if "rotation" in methods else 0,
        color_jitter=JITTER if "color_jitter" in methods else (0, 0, 0, 0),
        cutout=SQUARE if "cutout" in methods else 0,
        mixup=float("mixup" in methods),
        cutmix=float("cutmix" in methods),
    )
    augmentation = Augmentation(config, dataset.images, generator)
    model = Classifier(nn.Identity(), HALF, HALF).to(device)

    def epoch() -> None:
        order = epoch_indices(indices, batch_size, generator)
        for batches in iter_batches(dataset, order, batch_size, augmentation):
            for batch in batches:
                model.normalize(batch.images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    epoch()
    return epoch


def cpu_seconds() -> float:
    """Return the CPU time of this process and its workers so far, on Linux; elsewhere NaN if there are workers."""
    ticks = 0
    for worker in multiprocessing.active_children():
        try:
            stat = Path(f"/proc/{worker.pid}/stat").read_text()
        except OSError:
            return math.nan
        ticks += sum(int(field) for field in stat.rsplit(") ", 1)[1].split()[11:13])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


class Speed(NamedTuple):
    """Images per second of wall-clock time, and per second of CPU time."""

    images_per_s: float
    images_per_cpu_s: float


def measure(epoch: Callable[[], None], images: int) -> Speed:
    """Time epochs of so many images, at least half a second in total."""
    total, seconds, start, cpu_start = 0, 0.0, time.perf_counter(), cpu_seconds()
    while seconds < 0.5:
        epoch()
        total += images
        seconds = time.perf_counter() - start
    return Speed(total / seconds, total / (cpu_seconds() - cpu_start))


def main() -> None:
    """Print a Markdown table with a row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = [*IMAGE_TRANSFORMS, *BATCH_TRANSFORMS, "all"]
    parser.add_argument("--images", type=int, default=10_000, help="per epoch")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="ours; the DataLoader has a worker per core"
    )
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    options = parser.parse_args()

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    device, _ = select_device("auto", "fp32")
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.images, SIZE, SIZE, 3), dtype=torch.uint8)
    dataset = ImageDataset(images, torch.randint(0, 10, (options.images,)))
    on_device = ImageDataset(*(tensor.to(device) for tensor in dataset))
    count = options.images // options.batch_size * options.batch_size
    print(f"{count} images, batches of {options.batch_size}; {os.cpu_count()} workers, {options.threads} threads")
    print(f"ours on {device}; random images of {SIZE}x{SIZE}\n")
    print("| method | DataLoader, images/s | ours, images/s | ratio | from, to | ratio by CPU time | from, to (n) |")
    print("|---|---|---|---|---|---|---|")
    for method in options.methods:
        selected = {method} if method != "all" else {*IMAGE_TRANSFORMS, *BATCH_TRANSFORMS}
        epochs = (
            make_torchvision_epoch(selected, dataset, options.batch_size),
            make_our_epoch(selected, on_device, options.batch_size),
        )
        rounds = [[measure(epoch, count) for epoch in epochs] for _ in range(options.rounds)]
        print(format_row(method, rounds), flush=True)


def format_row(method: str, rounds: list[list[Speed]]) -> str:
    """Return a row of the table; each round has torchvision's speed and ours."""
    cells = [f"{statistics.median(speed.images_per_s for speed in side):,.0f}" for side in zip(*rounds, strict=True)]
    for field in range(2):
        ratios = [ours[field] / torchvision[field] for torchvision, ours in rounds]
        cells += [f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}, {max(ratios):.1f}"]
    return f"| {method} | {' | '.join(cells)} ({len(rounds)}) |"


if __name__ == "__main__":
    main()
