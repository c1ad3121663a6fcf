"""Our augmentation of whole batches beside torchvision's, image by image in a DataLoader, in turn on one machine.

    python benchmarks/augment.py                # 10,000 images an epoch, 5 rounds, every kind alone and all together
    python benchmarks/augment.py --kinds rotation everything
    python benchmarks/augment.py --threads 1    # on a busy machine, as threads that wait for each other lose most

CPU time is told beside the clock's, as it says more where other programs compute as well; ours should have one thread
then, as waiting counts.

Both begin with bytes in memory and end with shuffled batches of normalised floats, as the network takes them. The
DataLoader gets PIL images, as from torchvision's data sets, and has a worker a core, started before the clock. Random
images stand in for the data: they cost the same.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from vision.core.augment.color_jitter import ColorJitter
from vision.core.augment.crop_flip import RandomCropFlip
from vision.core.augment.cutout import Cutout
from vision.core.augment.mixup import Mix
from vision.core.augment.rotate import Rotate
from vision.core.data import ImageDataset, epoch_indices, iter_batches
from vision.core.device import choose, keep_freed_memory
from vision.core.models.classifier import Classifier

SIZE, SHIFT, DEGREES, JITTER, SQUARE = 32, 2, 15, (0.2, 0.2, 0.2, 0.05), 8
HALF = [0.5, 0.5, 0.5]

EACH: dict[str, v2.Transform] = {
    "flip": v2.RandomHorizontalFlip(),
    "shift": v2.RandomCrop(SIZE, padding=SHIFT, padding_mode="reflect"),
    "rotation": v2.RandomRotation(DEGREES, interpolation=v2.InterpolationMode.BILINEAR),
    "color_jitter": v2.ColorJitter(*JITTER),
    "cutout": v2.RandomErasing(p=1, scale=(SQUARE**2 / SIZE**2,) * 2, ratio=(1, 1)),
}
"""What torchvision does to one image."""

BATCH: dict[str, v2.Transform] = {"mixup": v2.MixUp(num_classes=10), "cutmix": v2.CutMix(num_classes=10)}
"""What it does to a batch, in the workers."""


class Augmented(Dataset[tuple[Tensor, int]]):
    """Images and labels, the images transformed one by one."""

    def __init__(self, examples: ImageDataset, transform: v2.Transform) -> None:
        """Hold the images as torchvision's data sets do."""
        self.images = examples.images.numpy()
        self.labels = examples.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        """One image, float32 [C, H, W], and its label."""
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


class Collate:
    """A batch of images and labels, mixed."""

    def __init__(self, mixes: list[v2.Transform]) -> None:
        """Each batch gets one of `mixes`."""
        self.mix = v2.RandomChoice(mixes)

    def __call__(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Stack and mix."""
        images, labels = default_collate(samples)
        return self.mix(images, labels)


def theirs(kinds: set[str], examples: ImageDataset, batch_size: int) -> Callable[[], None]:
    """An epoch of a DataLoader, its workers started."""
    mixes = [transform for kind, transform in BATCH.items() if kind in kinds]
    transforms = [transform for kind, transform in EACH.items() if kind in kinds]
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(HALF, HALF)]
    loader = DataLoader(
        Augmented(examples, v2.Compose([v2.ToImage(), *transforms, *normalise])),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        collate_fn=Collate(mixes) if mixes else None,
    )

    def epoch() -> None:
        for _ in loader:
            pass

    epoch()
    return epoch


def ours(kinds: set[str], examples: ImageDataset, batch_size: int) -> Callable[[], None]:
    """An epoch of batches augmented as the training loop does, on the device."""
    device = examples.images.device
    generator = torch.Generator(device).manual_seed(0)
    everything = torch.arange(len(examples.labels), device=device)
    augment = RandomCropFlip(
        "random" if "flip" in kinds else "none", SHIFT if "shift" in kinds else 0, len(everything), generator
    )
    rotate = Rotate(DEGREES if "rotation" in kinds else 0, generator)
    jitter = ColorJitter(JITTER if "color_jitter" in kinds else (0, 0, 0, 0), generator)
    cutout = Cutout(SQUARE if "cutout" in kinds else 0, examples.images, generator)
    mix = Mix(float("mixup" in kinds), float("cutmix" in kinds), generator)

    model = Classifier(nn.Identity(), HALF, HALF).to(device)

    def batches() -> Iterator[Tensor]:
        for handful in iter_batches(examples, epoch_indices(everything, batch_size, generator), batch_size):
            for images, labels, numbers in handful:
                yield model.normalized(mix(cutout(jitter(rotate(augment(images, numbers)))), labels).images)

    def epoch() -> None:
        for _ in batches():
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()

    epoch()
    return epoch


def cpu_seconds() -> float:
    """CPU time that this process and its workers have used so far, on Linux; else not a number."""
    ticks = 0
    for worker in multiprocessing.active_children():
        try:
            stat = Path(f"/proc/{worker.pid}/stat").read_text()
        except OSError:
            return math.nan
        ticks += sum(int(field) for field in stat.rsplit(") ", 1)[1].split()[11:13])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


class Speed(NamedTuple):
    """Images a second that passed, and a second that a core computed."""

    images_per_s: float
    images_per_cpu_s: float


def timed(epoch: Callable[[], None], images: int) -> Speed:
    """Time whole epochs of so many images, together of half a second at least."""
    done, seconds, started, used = 0, 0.0, time.perf_counter(), cpu_seconds()
    while seconds < 0.5:
        epoch()
        done += images
        seconds = time.perf_counter() - started
    return Speed(done / seconds, done / (cpu_seconds() - used))


def main() -> None:
    """Print a Markdown table, a row a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = [*EACH, *BATCH, "everything"]
    parser.add_argument("--images", type=int, default=10_000, help="an epoch")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="ours; the DataLoader has a worker a core")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    device, _ = choose("auto", "fp32")
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.images, SIZE, SIZE, 3), dtype=torch.uint8)
    examples = ImageDataset(images, torch.randint(0, 10, (options.images,)))
    here = ImageDataset(*(part.to(device) for part in examples))
    done = options.images // options.batch_size * options.batch_size
    print(f"{done} images, batches of {options.batch_size}; {os.cpu_count()} workers beside {options.threads} threads")
    print(f"ours on {device}; random images of {SIZE}x{SIZE}\n")
    print("| kind | DataLoader, images/s | ours, images/s | ratio | from, to | ratio by CPU time | from, to (n) |")
    print("|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        chosen = {kind} if kind != "everything" else {*EACH, *BATCH}
        their_epoch = theirs(chosen, examples, options.batch_size)
        our_epoch = ours(chosen, here, options.batch_size)
        pairs = [(timed(their_epoch, done), timed(our_epoch, done)) for _ in range(options.rounds)]
        cells = [f"{statistics.median(side.images_per_s for side in sides):,.0f}" for sides in zip(*pairs, strict=True)]
        for ratios in zip(*([b / a for a, b in zip(*pair, strict=True)] for pair in pairs), strict=True):
            cells += [f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}, {max(ratios):.1f}"]
        print(f"| {kind} | {' | '.join(cells)} ({len(pairs)}) |", flush=True)


if __name__ == "__main__":
    main()
