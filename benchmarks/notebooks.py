"""Five notebooks' trainings as their authors would write them, and this pipeline's recipes for the same networks.

    python benchmarks/notebooks.py                      # all five, in full: three quarters of an hour
    python benchmarks/notebooks.py tutorial --epochs 1  # one of them, cut short

The author's way is the loop of PyTorch's tutorial over a DataLoader with torchvision's transforms an image, layer after
layer in fp32; ours is the loop of the pipeline, in the recipe's precision. Both are on the CPU. Network, batch size,
optimiser, learning rate and kinds of augmentation are the recipe's for both; what comes in at the edges when an image
is shifted or rotated is black there and reflected here, and an average of the weights (`train.ema`) is ours alone. They
run in turn, each in a process of its own; after each epoch the test images are scored, which the seconds leave out.
Needs `data/raw` (`dvc repro download` makes it).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from speed import TrainConfig, network, settings
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vision.core import loop
from vision.core.data import ImageDataset
from vision.core.device import choose, flush_denormals, keep_freed_memory
from vision.core.inference import predict
from vision.core.models.classifier import Classifier

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("tutorial", "tutorial_improved", "two_conv", "three_conv", "conv16_32")
WORKERS = {"conv16_32": 0}
"""Processes that load; two, as in the tutorial, where the notebook says nothing else."""
WAYS = ("author", "ours")
HALF = [0.5, 0.5, 0.5]
OnEpoch = Callable[[float, float], None]
"""Is told the seconds of an epoch's training and the accuracy on the test images after it."""


class Cifar(Dataset[tuple[Tensor, int]]):
    """Like torchvision's: a PIL image at a time, transformed when it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> None:
        """Hold images uint8 [N, 32, 32, 3] and their labels."""
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        """How many images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The transformed image and its label."""
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def authors_network(plain: dict[str, Any]) -> nn.Sequential:
    """The network of a recipe, `model.plain` of its parameters, for images [N, 3, 32, 32], as one writes it down."""
    layers: list[nn.Module] = []
    channels, size = 3, 32
    for width in plain["widths"]:
        for _ in range(plain["depth"]):
            layers.append(nn.Conv2d(channels, width, plain["kernel"], padding=plain["padding"]))
            layers += [nn.BatchNorm2d(width)] if plain["batch_norm"] else []
            layers.append(nn.ReLU())
            channels = width
            size -= plain["kernel"] - 1 if plain["padding"] == "valid" else 0
        layers.append(nn.MaxPool2d(2))
        size //= 2
    layers.append(nn.Flatten())
    features = channels * size**2
    for width in plain["hidden"]:
        layers += [nn.Dropout(plain["dropout"]), nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Dropout(plain["dropout"]), nn.Linear(features, 10))


def author(
    name: str, given: TrainConfig, images: np.ndarray, labels: np.ndarray, test: ImageDataset, on_epoch: OnEpoch
) -> None:
    """Train as the tutorial does."""
    train = given["train"]
    steps: list[Any] = []
    if train["flip"] != "none":
        steps.append(T.RandomHorizontalFlip())
    if train["crop_padding"]:
        steps.append(T.RandomCrop(32, padding=train["crop_padding"]))
    if train["rotation"]:
        steps.append(T.RandomRotation(train["rotation"]))
    transform = T.Compose([*steps, T.ToTensor(), T.Normalize(HALF, HALF)])
    loader = DataLoader(
        Cifar(images, labels, transform), train["batch_size"], shuffle=True, num_workers=WORKERS.get(name, 2)
    )
    net = authors_network(given["model"]["plain"])
    model = Classifier(net, HALF, HALF)
    criterion = nn.CrossEntropyLoss()
    optimizer: torch.optim.Optimizer
    if train["optimizer"] == "adam":
        optimizer = torch.optim.Adam(net.parameters(), lr=train["lr"])
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=train["lr"], momentum=train["momentum"])
    for _ in range(train["epochs"]):
        started = time.perf_counter()
        net.train()
        running_loss = 0.0
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(net(inputs), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        seconds = time.perf_counter() - started
        predicted = predict(model, test.images, 1000, torch.float32).argmax(1)
        on_epoch(seconds, (predicted == test.labels).float().mean().item())


def ours(
    name: str, given: TrainConfig, images: np.ndarray, labels: np.ndarray, test: ImageDataset, on_epoch: OnEpoch
) -> None:
    """Train as the pipeline does, from arrays in memory to the last weight."""
    _, dtype = choose("cpu", given["train"]["precision"])
    model = network(given, HALF, HALF)
    train = ImageDataset(torch.tensor(images), torch.tensor(labels, dtype=torch.int64))
    others = ("device", "precision", "deterministic", "checkpoint_seconds")
    chosen = {key: value for key, value in given["train"].items() if key not in others}

    def tell(epoch: loop.EpochMetrics) -> None:
        assert epoch.val_accuracy is not None  # of the weights that would be kept, an average if the recipe says so
        on_epoch(epoch.images / epoch.images_per_s, epoch.val_accuracy)

    # The last weights are kept, so that the test images decide nothing.
    last = loop.TrainConfig(seed=0, dtype=dtype, freeze=0, **{**chosen, "keep": "last"})
    loop.fit(model, train, test, last, on_epoch=tell)


def run_one(way: str, name: str, data: Path, epochs: int | None) -> None:
    """Train one recipe one way; print a line of JSON an epoch."""
    given = settings(ROOT / "params.yaml", ROOT / "recipes" / name)
    if epochs:
        given["train"]["epochs"] = min(epochs, given["train"]["epochs"])
    images, labels, test_images, test_labels = (
        np.load(data / f"{split}_{kind}.npy") for split in ("train", "test") for kind in ("images", "labels")
    )
    # What is held out for validation: some, whichever.
    kept = np.random.default_rng(0).permutation(len(labels))[round(given["preprocess"]["val_fraction"] * len(labels)) :]
    if way == "ours":  # as stages/train.py does; before the first tensor, as its copying starts threads
        keep_freed_memory()
        flush_denormals()
    torch.manual_seed(0)

    test = ImageDataset(torch.tensor(test_images), torch.tensor(test_labels, dtype=torch.int64))

    def on_epoch(seconds: float, accuracy: float) -> None:
        print(json.dumps({"seconds": seconds, "accuracy": accuracy}), flush=True)

    {"author": author, "ours": ours}[way](name, given, images[kept], labels[kept], test, on_epoch)


def reached(history: list[dict[str, float]], target: float) -> float | None:
    """Seconds of training until the first epoch whose accuracy is at least `target`."""
    seconds = 0.0
    for epoch in history:
        seconds += epoch["seconds"]
        if epoch["accuracy"] >= target:
            return seconds
    return None


def row(name: str, found: dict[str, list[dict[str, float]]], target: float) -> str:
    """A row of the table.

    Accuracies; seconds an epoch; seconds to the target; seconds in all, ours also to the author's accuracy; ratios.
    """
    seconds = {way: sum(epoch["seconds"] for epoch in found[way]) for way in WAYS}
    times = [reached(found[way], target) for way in WAYS]
    as_good = reached(found["ours"], found["author"][-1]["accuracy"])
    cells = [
        *(f"{found[way][-1]['accuracy']:.2%}" for way in WAYS),
        *(f"{seconds[way] / len(found[way]):.1f}" for way in WAYS),
        *("never" if took is None else f"{took:.0f}" for took in times),
        f"{seconds['ours'] / seconds['author']:.2f}",
        "never" if as_good is None else f"{as_good / seconds['author']:.2f}",
    ]
    return f"| `{name}`, {len(found['ours'])} epochs | {' | '.join(cells)} |"


def main() -> None:
    """Run every notebook both ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", default=list(NOTEBOOKS), metavar="recipe")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw")
    parser.add_argument("--epochs", type=int, help="at most so many")
    parser.add_argument("--target", type=float, default=0.6, help="accuracy that the notebooks claim")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.notebooks) - set(NOTEBOOKS):
        sys.exit(f"notebooks.py: no notebook {', '.join(sorted(unknown))}; there are {', '.join(NOTEBOOKS)}")
    if not (options.data / "train_images.npy").exists():
        sys.exit(f"notebooks.py: {options.data}/train_images.npy is not there; `dvc repro download` makes it")
    try:
        for name in options.notebooks:
            settings(ROOT / "params.yaml", ROOT / "recipes" / name)
    except ValueError as error:
        sys.exit(f"notebooks.py: {error}")
    if options.one:
        run_one(options.one, options.notebooks[0], options.data, options.epochs)
        return
    print(
        f"seconds of training on {os.cpu_count()} cores; ratios are ours / author's: of all epochs, and of ours until "
        "the first epoch that is as good as the author's last"
    )
    print(
        "| recipe | accuracy, author's | ours | seconds an epoch, author's | ours "
        f"| seconds to {options.target:.0%}, author's | ours | ratio | to the author's accuracy |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name in options.notebooks:
        found: dict[str, list[dict[str, float]]] = {}
        for way in WAYS:
            extra = ["--epochs", str(options.epochs)] if options.epochs else []
            command = [sys.executable, sys.argv[0], name, "--one", way, "--data", str(options.data), *extra]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if process.returncode:
                sys.exit(f"notebooks.py: {name}, {way}: failed")
            found[way] = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
        print(row(name, found, options.target), flush=True)


if __name__ == "__main__":
    main()
