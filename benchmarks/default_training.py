"""Train with the parameters of params.yaml on some of CIFAR-10's images, as stages/train.py does, without recording."""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))

import numpy as np
import torch
from torch import Tensor

from train import train_config
from vision.artifacts.initial_model import make_model
from vision.core import inference, loop
from vision.core.data import ImageDataset
from vision.core.device import flush_denormals
from vision.core.models.classifier import Classifier
from vision.datasets.splitting import pixel_statistics
from vision.pipeline.device import set_up_device
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.storage.arrays import Split, Stats, read_raw


class Data(NamedTuple):
    """The training and test splits of CIFAR-10, and the names of its classes."""

    train: Split
    test: Split
    classes: list[str]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the scripts share."""
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default: 3)")
    parser.add_argument("--data", type=Path, default=ROOT / "data/raw")
    parser.add_argument("--epochs", type=int, help="default: those of params.yaml")


def read_data(folder: Path) -> Data:
    """Read data/raw, which `dvc repro download` makes."""
    return Data(*read_raw(folder))


def select(split: Split, indices: np.ndarray, new_labels: np.ndarray | None = None) -> ImageDataset:
    """Take some images of a split, as tensors; `new_labels` are of the selected images."""
    labels = split.labels[indices] if new_labels is None else new_labels
    return ImageDataset(torch.from_numpy(split.images[indices]), torch.from_numpy(labels.astype(np.int64)))


def train_model(train: ImageDataset, classes: list[str], seed: int, **changes: Any) -> Classifier:
    """Train a network with the parameters of params.yaml; keep the weights of the last epoch.

    Args:
        train: the images, uint8 [N, H, W, 3], and labels.
        classes: their names.
        seed: of the initial weights, the image order and the augmentation.
        **changes: parameters of the section `train`.
    """
    params = load_params()
    changes = {name: value for name, value in changes.items() if value is not None}
    params = params.model_copy(update={"seed": seed, "train": params.train.model_copy(update=changes)})
    device, dtype = set_up_device(params.train)
    flush_denormals()
    images = train.images.numpy()
    stats = Stats(classes, list(images.shape[1:]), *pixel_statistics(images), split_digest="")
    on_device = ImageDataset(*(tensor.to(device) for tensor in train))
    model, _ = make_model(params, stats, on_device.images)
    nothing = ImageDataset(on_device.images[:0], on_device.labels[:0])
    loop.fit(model, on_device, nothing, train_config(params, dtype))
    return model


def predict(model: Classifier, images: Tensor) -> Tensor:
    """Compute the logits, float32 [N, classes] on the CPU, of one view of images, uint8 [N, H, W, 3]."""
    device, dtype = set_up_device(load_params().train)
    return inference.predict(model, images.to(device), 1000, dtype).cpu()
