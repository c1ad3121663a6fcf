"""A small trained model with its images, in the folders that the stages write."""

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from small_training import INPUTS, striped_images
from vision.artifacts.trained_model import ModelConfig, build_model, save_model
from vision.core.models.classifier import Classifier
from vision.storage.arrays import Split, Stats, write_processed

CLASSES = ["horizontal", "vertical", "red", "blue"]


def make_config(widths: list[int]) -> ModelConfig:
    """Describe a ConvNet for `striped_images`."""
    options = {"widths": widths, "depth": 1}
    return ModelConfig(CLASSES, list(INPUTS.image_shape), list(INPUTS.mean), list(INPUTS.std), "convnet", options)


@functools.cache
def train_striped(width: int = 128) -> Classifier:
    """Return a ConvNet with the widths [width, width] that classifies striped images without mistakes."""
    torch.manual_seed(0)
    model = build_model(make_config([width, width]))
    data = striped_images(1000, seed=1)
    model.initialize_from(data.images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(2):
        for images, labels in zip(data.images.split(50), data.labels.split(50), strict=True):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def write_striped(folder: Path, width: int = 128, validation: int = 1000) -> None:
    """Write `models` and `data/processed` below `folder`, as the stages do, with so many validation images."""
    (folder / "models").mkdir(parents=True)
    save_model(folder / "models", train_striped(width), make_config([width, width]))
    splits, names = {}, {}
    for seed, (name, count) in enumerate({"train": 300, "val": validation, "test": 10}.items()):
        images, labels = striped_images(count, seed=10 + seed)
        splits[name] = Split(images.numpy(), labels.numpy().astype(np.uint8))
        names[name] = [str(index) for index in range(count)]
    stats = Stats(CLASSES, list(INPUTS.image_shape), list(INPUTS.mean), list(INPUTS.std), split_digest="ab" * 32)
    write_processed(folder / "data" / "processed", splits, names, stats)
