"""Preprocess: split the images, resize them, and compute the statistics for normalization."""

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.datasets import image_folder, splitting
from vision.datasets.decoding import load_images, size_error
from vision.datasets.groups import read_groups
from vision.datasets.sample_grid import sample_grid
from vision.pipeline.params import Params, load_params
from vision.pipeline.paths import ROOT, resolve_path
from vision.storage import arrays, atomic, tables
from vision.storage.arrays import SPLITS, Split, Stats

RAW = ROOT / "data/raw"


@dataclass(frozen=True)
class Selection:
    """The images of one split: the `indices` of `images` (an array or files), and their labels."""

    images: np.ndarray | Sequence[Path]
    indices: np.ndarray
    labels: np.ndarray

    def names(self) -> list[str]:
        """The name of each selected image, as `vision.storage.names` defines it."""
        return [raw_name(self.images, index) for index in self.indices]


def main() -> None:
    """Read data/raw; write data/processed, data/samples.png and metrics/dataset.json."""
    params = load_params()
    selections, classes = split_raw(params)
    splits = load_splits(selections, params.preprocess.image_size)
    stats = compute_stats(selections, splits, classes, params.preprocess.normalize)
    names = {name: selection.names() for name, selection in selections.items()}
    arrays.write_processed(ROOT / "data/processed", splits, names, stats)
    tables.write_json(ROOT / "metrics/dataset.json", splitting.count_images(splits, classes))
    draw_samples(splits["train"], classes, params.preprocess.samples_per_class)
    sizes = ", ".join(f"{len(splits[name].labels):,} {name}" for name in SPLITS)
    print(f"preprocess: {sizes}; mean {np.round(stats.mean, 4).tolist()}, std {np.round(stats.std, 4).tolist()}")


def raw_name(images: np.ndarray | Sequence[Path], index: int) -> str:
    """The file of an image relative to data/raw; its index if data/raw holds arrays."""
    return str(index) if isinstance(images, np.ndarray) else images[index].relative_to(RAW).as_posix()


def split_raw(params: Params) -> tuple[dict[str, Selection], list[str]]:
    """Choose the images of each split, without reading their pixels; returns them with the class names."""
    is_folder = (RAW / "train").is_dir()
    train, test, all_classes = image_folder.read_raw(RAW) if is_folder else arrays.read_raw(RAW)
    settings = params.preprocess
    kept, labels = splitting.filter_classes(train.labels, all_classes, settings.classes)
    classes = settings.classes or all_classes
    config = splitting.SplitConfig(
        test_fraction=settings.test_fraction if test is None else 0,
        val_fraction=settings.val_fraction,
        folds=settings.folds,
        fold=settings.fold,
        train_limit=settings.train_limit,
        seed=params.seed,
    )
    groups = None
    if settings.groups is not None:
        names = [raw_name(train.images, index) for index in range(len(train.labels))]
        groups = read_groups(resolve_path(settings.groups), names, has_test_split=test is not None)[kept]
    split = zip(("train", "val", "test"), splitting.split_indices(labels, classes, config, groups), strict=True)
    selections = {name: Selection(train.images, kept[indices], labels[indices]) for name, indices in split}
    if test is not None:
        selections["test"] = Selection(
            test.images, *splitting.filter_classes(test.labels, all_classes, settings.classes)
        )
    return selections, classes


def load_splits(selections: dict[str, Selection], size: int | None) -> dict[str, Split]:
    """Load and resize the images of each split."""
    splits = {
        name: Split(load_images(selection.images, selection.indices, size, f"read {name}"), selection.labels)
        for name, selection in selections.items()
    }
    train_shape, test_shape = splits["train"].images.shape[1:], splits["test"].images.shape[1:]
    if train_shape != test_shape:
        raise size_error(train_shape[1::-1], test_shape[1::-1])
    return splits


def compute_stats(
    selections: dict[str, Selection], splits: dict[str, Split], classes: list[str], normalize: str
) -> Stats:
    """Describe the splits for the stages that follow."""
    images = splits["train"].images
    mean, std = splitting.FIXED_STATISTICS.get(normalize) or splitting.pixel_statistics(images)
    train, val = selections["train"], selections["val"]
    return Stats(
        classes=classes,
        image_shape=list(images.shape[1:]),
        mean=mean,
        std=std,
        split_digest=hashlib.sha256(train.indices.tobytes() + b"|" + val.indices.tobytes()).hexdigest(),
    )


def draw_samples(train: Split, classes: list[str], per_class: int) -> None:
    """Write a picture of some training images of each class."""
    figure = sample_grid(train, classes, per_class)
    with atomic.atomic_write(ROOT / "data/samples.png") as temporary:
        figure.savefig(temporary, format="png")


if __name__ == "__main__":
    run_stage(main)
