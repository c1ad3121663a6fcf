"""Compare trainings of five notebooks, as their authors would write them, with this pipeline's recipes for them.

    python benchmarks/notebooks.py                      # all five, in full: three quarters of an hour
    python benchmarks/notebooks.py tutorial --epochs 1  # one of them, with one epoch

The author's training is the loop of PyTorch's tutorial over a DataLoader with torchvision's transforms of images, in
fp32. Ours is the loop of the pipeline, in the recipe's precision. Both use the CPU. Network, batch size, optimizer,
learning rate and kinds of augmentation are the recipe's for both. The edges of shifted and rotated images are black in
the author's and reflected in ours, and only ours has a moving average of the weights (`train.ema_decay`). They run in
turn, in separate processes. The test images are scored after each epoch; the seconds exclude that.
Needs `data/raw` (run `dvc repro download`).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from speed import Params, build_network, read_params, train_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vision.core import loop
from vision.core.data import ImageDataset
from vision.core.device import flush_denormals, keep_freed_memory, select_device
from vision.core.inference import predict
from vision.core.models.classifier import Classifier

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("tutorial", "tutorial_improved", "two_conv", "three_conv", "conv16_32")
WORKERS = {"conv16_32": 0}
"""Worker processes of the DataLoader; 2, as in the tutorial, unless the notebook sets another number."""
SIDES = ("author", "ours")
HALF = [0.5, 0.5, 0.5]
OnEpoch = Callable[[float, float], None]
"""Called with the seconds of an epoch's training, and the accuracy on the test images after it."""


class Cifar(Dataset[tuple[Tensor, int]]):
    """Like torchvision's data set: each PIL image is transformed when it is accessed."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> None:
        """Hold images uint8 [N, 32, 32, 3] and their labels."""
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return the transformed image and its label."""
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def build_authors_network(plain_cnn: dict[str, Any]) -> nn.Sequential:
    """Build a recipe's network, `model.plain_cnn`, for images [N, 3, 32, 32], as a notebook would write it."""
    layers: list[nn.Module] = []
    channels, size = 3, 32
    for width in plain_cnn["widths"]:
        for _ in range(plain_cnn["depth"]):
            layers.append(nn.Conv2d(channels, width, plain_cnn["kernel"], padding=plain_cnn["padding"]))
            layers += [nn.BatchNorm2d(width)] if plain_cnn["batch_norm"] else []
            layers.append(nn.ReLU())
            channels = width
            size -= plain_cnn["kernel"] - 1 if plain_cnn["padding"] == "valid" else 0
        layers.append(nn.MaxPool2d(2))
        size //= 2
    layers.append(nn.Flatten())
    features = channels * size**2
    for width in plain_cnn["hidden"]:
        layers += [nn.Dropout(plain_cnn["dropout"]), nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Dropout(plain_cnn["dropout"]), nn.Linear(features, 10))


@dataclass(frozen=True)
class Task:
    """A training of a recipe.

    Attributes:
        recipe: its name.
        params: params.yaml with the recipe's changes.
        images: uint8 [N, 32, 32, 3], the training images.
        labels: uint8 [N].
        test: the test split.
        on_epoch: called after each epoch.
    """

    recipe: str
    params: Params
    images: np.ndarray
    labels: np.ndarray
    test: ImageDataset
    on_epoch: OnEpoch


def train_author(task: Task) -> None:
    """Train as PyTorch's tutorial does."""
    train = task.params["train"]
    network = build_authors_network(task.params["model"]["plain_cnn"])
    model = Classifier(network, HALF, HALF)
    loader = DataLoader(
        Cifar(task.images, task.labels, authors_transform(train["augment"])),
        train["batch_size"],
        shuffle=True,
        num_workers=WORKERS.get(task.recipe, 2),
    )
    criterion = nn.CrossEntropyLoss()
    optimizer: torch.optim.Optimizer
    if train["optimizer"]["name"] == "adam":
        optimizer = torch.optim.Adam(network.parameters(), lr=train["lr"])
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=train["lr"], momentum=train["optimizer"]["momentum"])
    for _ in range(train["epochs"]):
        start = time.perf_counter()
        network.train()
        running_loss = 0.0
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(network(inputs), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        seconds = time.perf_counter() - start
        predicted = predict(model, task.test.images, 1000, torch.float32).argmax(1)
        task.on_epoch(seconds, (predicted == task.test.labels).float().mean().item())


def authors_transform(augment: dict[str, Any]) -> T.Compose:
    """Return torchvision's transforms of an image."""
    transforms: list[Any] = []
    if augment["flip"] != "none":
        transforms.append(T.RandomHorizontalFlip())
    if augment["crop_padding"]:
        transforms.append(T.RandomCrop(32, padding=augment["crop_padding"]))
    if augment["rotation"]:
        transforms.append(T.RandomRotation(augment["rotation"]))
    return T.Compose([*transforms, T.ToTensor(), T.Normalize(HALF, HALF)])


def train_ours(task: Task) -> None:
    """Train as the pipeline does, from arrays in memory to the last weights."""
    _, dtype = select_device("cpu", task.params["train"]["precision"])
    model = build_network(task.params, HALF, HALF)
    train = ImageDataset(torch.tensor(task.images), torch.tensor(task.labels, dtype=torch.int64))

    def on_epoch(epoch: loop.EpochMetrics) -> None:
        assert epoch.val_accuracy is not None
        task.on_epoch(epoch.images / epoch.images_per_s, epoch.val_accuracy)

    # The last weights are kept, so that the test images decide nothing.
    config = replace(train_config(task.params, 0, dtype), keep="last")
    loop.fit(model, train, task.test, config, loop.Callbacks(on_epoch=on_epoch))


def run_side(side: str, recipe: str, data: Path, epochs: int | None) -> None:
    """Train a recipe in one of the two ways; print a line of JSON per epoch."""
    params = read_params(ROOT / "params.yaml", ROOT / "recipes" / recipe)
    if epochs:
        params["train"]["epochs"] = min(epochs, params["train"]["epochs"])
    images, labels, test_images, test_labels = (
        np.load(data / f"{split}_{name}.npy") for split in ("train", "test") for name in ("images", "labels")
    )
    # As many random images are left out as the recipe holds out for validation.
    held_out = round(params["preprocess"]["val_fraction"] * len(labels))
    indices = np.random.default_rng(0).permutation(len(labels))[held_out:]
    # As stages/train.py does, for both sides, before the first tensor is copied, which starts threads.
    keep_freed_memory()
    flush_denormals()
    torch.manual_seed(0)

    def on_epoch(seconds: float, accuracy: float) -> None:
        print(json.dumps({"seconds": seconds, "accuracy": accuracy}), flush=True)

    test = ImageDataset(torch.tensor(test_images), torch.tensor(test_labels, dtype=torch.int64))
    task = Task(recipe, params, images[indices], labels[indices], test, on_epoch)
    {"author": train_author, "ours": train_ours}[side](task)


def seconds_to_accuracy(history: list[dict[str, float]], target: float) -> float | None:
    """Return the seconds of training until the first epoch with at least the accuracy `target`, or None."""
    seconds = 0.0
    for epoch in history:
        seconds += epoch["seconds"]
        if epoch["accuracy"] >= target:
            return seconds
    return None


def format_row(recipe: str, histories: dict[str, list[dict[str, float]]], target: float) -> str:
    """Return a row of the table.

    Its cells are accuracies, seconds per epoch, seconds to the target, and the ratios ours / author's of the total time
    and of the time to the author's final accuracy.
    """
    seconds = {side: sum(epoch["seconds"] for epoch in histories[side]) for side in SIDES}
    times = [seconds_to_accuracy(histories[side], target) for side in SIDES]
    to_same_accuracy = seconds_to_accuracy(histories["ours"], histories["author"][-1]["accuracy"])
    cells = [
        *(f"{histories[side][-1]['accuracy']:.2%}" for side in SIDES),
        *(f"{seconds[side] / len(histories[side]):.1f}" for side in SIDES),
        *("never" if time_to_target is None else f"{time_to_target:.0f}" for time_to_target in times),
        f"{seconds['ours'] / seconds['author']:.2f}",
        "never" if to_same_accuracy is None else f"{to_same_accuracy / seconds['author']:.2f}",
    ]
    return f"| `{recipe}`, {len(histories['ours'])} epochs | {' | '.join(cells)} |"


def main() -> None:
    """Run all notebooks in both ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", default=list(NOTEBOOKS), metavar="recipe")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw")
    parser.add_argument("--epochs", type=int, help="at most this many")
    parser.add_argument("--target", type=float, default=0.6, help="accuracy that the notebooks report")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.notebooks) - set(NOTEBOOKS):
        sys.exit(f"notebooks.py: no notebook {', '.join(sorted(unknown))}; choose from {', '.join(NOTEBOOKS)}")
    if not (options.data / "train_images.npy").exists():
        sys.exit(f"notebooks.py: {options.data}/train_images.npy: not found; run `dvc repro download`")
    try:
        for name in options.notebooks:
            read_params(ROOT / "params.yaml", ROOT / "recipes" / name)
    except ValueError as error:
        sys.exit(f"notebooks.py: {error}")
    if options.side:
        run_side(options.side, options.notebooks[0], options.data, options.epochs)
        return
    print(
        f"seconds of training on {os.cpu_count()} cores; ratios are ours / author's: of the total time, and of the "
        "time to reach the author's final accuracy"
    )
    print(
        "| recipe | accuracy, author's | ours | seconds per epoch, author's | ours "
        f"| seconds to {options.target:.0%}, author's | ours | ratio | to the author's accuracy |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name in options.notebooks:
        histories: dict[str, list[dict[str, float]]] = {}
        for side in SIDES:
            extra = ["--epochs", str(options.epochs)] if options.epochs else []
            command = [sys.executable, sys.argv[0], name, "--side", side, "--data", str(options.data), *extra]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if process.returncode:
                sys.exit(f"notebooks.py: {name}, {side}: failed")
            histories[side] = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
        print(format_row(name, histories, options.target), flush=True)


if __name__ == "__main__":
    main()
