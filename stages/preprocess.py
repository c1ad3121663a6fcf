"""Split the training images into training and validation, and find what pixels are normalised with."""

from vision.stage import ROOT, run_stage

# isort: split
# What follows takes seconds to import; vision.stage stands before it so that Ctrl-C is one line even then.
import hashlib

import numpy as np

from vision import arrays, figures, splits
from vision.arrays import SPLITS, Split, Stats
from vision.params import load_params


def main() -> None:
    """data/raw -> data/processed, data/samples.png, metrics/dataset.json."""
    params = load_params()
    settings = params.preprocess
    raw, test, classes = arrays.read_raw(ROOT / "data/raw")

    train_rows, val_rows = splits.split_rows(raw.labels, settings.val_fraction, settings.train_limit, params.seed)
    chosen = {
        "train": Split(raw.images[train_rows], raw.labels[train_rows]),
        "val": Split(raw.images[val_rows], raw.labels[val_rows]),
        "test": test,
    }
    mean, std = splits.pixel_statistics(chosen["train"].images) if settings.normalize == "per_channel" else splits.HALF
    stats = Stats(
        classes=classes,
        image_shape=list(raw.images.shape[1:]),
        mean=mean,
        std=std,
        split_digest=hashlib.sha256(train_rows.tobytes() + b"|" + val_rows.tobytes()).hexdigest(),
    )
    arrays.write_processed(ROOT / "data/processed", chosen, stats)
    arrays.write_json(ROOT / "metrics/dataset.json", splits.counts(chosen, classes))

    picture = figures.sample_grid(
        chosen["train"].images, chosen["train"].labels, classes, per_class=settings.samples_per_class
    )
    with arrays.replaced_file(ROOT / "data/samples.png") as temporary:
        picture.savefig(temporary, format="png")
    sizes = ", ".join(f"{len(chosen[name].labels):,} {name}" for name in SPLITS)
    print(f"preprocess: {sizes}; mean {np.round(mean, 4).tolist()}, std {np.round(std, 4).tolist()}")


if __name__ == "__main__":
    run_stage(main)
