"""Split the images, bring them to one size, and find what pixels are normalised with."""

from vision.pipeline.stage import run_stage, start_stage

if __name__ == "__main__":
    start_stage()  # before the slow imports, so that Ctrl-C during them prints one line

import hashlib

import numpy as np

from vision.datasets import image_folder, splitting
from vision.datasets.decoding import different_sizes, resized
from vision.datasets.sample_grid import sample_grid
from vision.pipeline.params import load_params
from vision.pipeline.paths import ROOT
from vision.pipeline.schemas import DatasetMetrics
from vision.storage import arrays, atomic, tables
from vision.storage.arrays import SPLITS, Split, Stats


def main() -> None:
    """data/raw -> data/processed, data/samples.png, metrics/dataset.json."""
    params = load_params()
    settings = params.preprocess
    directory = ROOT / "data/raw"
    holds_files = (directory / "train").is_dir()
    raw, test, classes = image_folder.read_raw(directory) if holds_files else arrays.read_raw(directory)

    kept, labels = splitting.filter_classes(raw.labels, classes, settings.classes)
    names = settings.classes or classes
    train_rows, val_rows, test_rows = splitting.split_rows(
        labels,
        names,
        test_fraction=settings.test_fraction if test is None else 0,
        val_fraction=settings.val_fraction,
        folds=settings.folds,
        fold=settings.fold,
        train_limit=settings.train_limit,
        seed=params.seed,
    )
    parts = {
        name: (raw.images, kept[rows], labels[rows])
        for name, rows in {"train": train_rows, "val": val_rows, "test": test_rows}.items()
    }
    if test is not None:
        parts["test"] = test.images, *splitting.filter_classes(test.labels, classes, settings.classes)
    chosen = {
        name: Split(resized(images, rows, settings.image_size, f"read {name}"), labels)
        for name, (images, rows, labels) in parts.items()
    }
    train_shape, test_shape = (chosen[name].images.shape[1:] for name in ("train", "test"))
    if train_shape != test_shape:
        raise different_sizes(train_shape[1::-1], test_shape[1::-1])
    mean, std = splitting.KNOWN.get(settings.normalize) or splitting.pixel_statistics(chosen["train"].images)
    pictures, rows, _ = parts["test"]
    stats = Stats(
        classes=names,
        image_shape=list(train_shape),
        mean=mean,
        std=std,
        split_digest=hashlib.sha256(kept[train_rows].tobytes() + b"|" + kept[val_rows].tobytes()).hexdigest(),
        test_files=[pictures[row].relative_to(directory).as_posix() for row in rows] if holds_files else None,
    )
    arrays.write_processed(ROOT / "data/processed", chosen, stats)
    tables.write_json(ROOT / "metrics/dataset.json", DatasetMetrics.model_validate(splitting.counts(chosen, names)))

    picture = sample_grid(chosen["train"], names, per_class=settings.samples_per_class)
    with atomic.atomic_write(ROOT / "data/samples.png") as temporary:
        picture.savefig(temporary, format="png")
    sizes = ", ".join(f"{len(chosen[name].labels):,} {name}" for name in SPLITS)
    print(f"preprocess: {sizes}; mean {np.round(mean, 4).tolist()}, std {np.round(std, 4).tolist()}")


if __name__ == "__main__":
    run_stage(main)
