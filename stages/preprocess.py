"""Split the training images into training and validation, and find what pixels are normalised with."""

import hashlib

import numpy as np
from sklearn.model_selection import train_test_split

from vision import arrays, figures
from vision.arrays import SPLITS, Split, Stats
from vision.params import load_params
from vision.stage import ROOT, UserError, run_stage


def main() -> None:
    """data/raw -> data/processed, data/samples.png, metrics/dataset.json."""
    params = load_params()
    settings = params.preprocess
    raw, test, classes = arrays.read_raw(ROOT / "data/raw")

    train_rows, val_rows = split_rows(raw.labels, settings.val_fraction, settings.train_limit, params.seed)
    splits = {
        "train": Split(raw.images[train_rows], raw.labels[train_rows]),
        "val": Split(raw.images[val_rows], raw.labels[val_rows]),
        "test": test,
    }
    mean, std = (
        pixel_statistics(splits["train"].images) if settings.normalize == "per_channel" else ([0.5] * 3, [0.5] * 3)
    )
    stats = Stats(
        classes=classes,
        image_shape=list(raw.images.shape[1:]),
        mean=mean,
        std=std,
        split_digest=hashlib.sha256(train_rows.tobytes() + b"|" + val_rows.tobytes()).hexdigest(),
    )
    arrays.write_processed(ROOT / "data/processed", splits, stats)
    arrays.write_json(ROOT / "metrics/dataset.json", counts(splits, classes))

    picture = figures.sample_grid(
        splits["train"].images, splits["train"].labels, classes, per_class=settings.samples_per_class
    )
    with arrays.replaced_file(ROOT / "data/samples.png") as temporary:
        picture.savefig(temporary, format="png")
    sizes = ", ".join(f"{len(splits[name].labels):,} {name}" for name in SPLITS)
    print(f"preprocess: {sizes}; mean {np.round(mean, 4).tolist()}, std {np.round(std, 4).tolist()}")


def split_rows(
    labels: np.ndarray, val_fraction: float, train_limit: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the training and the validation images: the same share of every class, by the seed.

    Args:
        labels: integer [N].
        val_fraction: share held out for validation.
        train_limit: keep at most this many of the others, again the same share of every class.
        seed: what the choice depends on.

    Returns:
        Ascending int64 indices of the training and of the validation images.

    Raises:
        UserError: a class has too few images for the split.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    train, val = _stratified(rows, labels, round(val_fraction * len(rows)), seed, "preprocess.val_fraction")
    if train_limit is not None and train_limit < len(train):
        _, train = _stratified(train, labels, train_limit, seed, "preprocess.train_limit")
    return np.sort(train), np.sort(val)


def _stratified(
    rows: np.ndarray, labels: np.ndarray, taken: int, seed: int, parameter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Take `taken` of the rows, the same share of every class: the rows left and the rows taken."""
    if taken == 0:
        return rows, rows[:0]
    try:
        left, took = train_test_split(rows, test_size=taken, random_state=seed, stratify=labels[rows])
    except ValueError as error:
        raise UserError(f"params.yaml: {parameter}: cannot take {taken} of {len(rows)} images ({error})") from None
    return left, took


def pixel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for pixels in [0, 1]; images uint8 [N, H, W, C].

    Counted from a histogram of the 256 values, so the result is exact and takes no memory for floats. A channel that
    is the same everywhere gets the deviation of one level, so that it can be divided by.
    """
    chunks = np.array_split(images, -(-len(images) // 5000))
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[-1]):
        histogram = sum(np.bincount(chunk[..., channel].reshape(-1), minlength=256) for chunk in chunks)
        share = histogram / np.sum(histogram)
        mean.append(float(share @ levels))
        std.append(max(float(np.sqrt(share @ (levels - mean[-1]) ** 2)), 1 / 255))
    return mean, std


def counts(splits: dict[str, Split], classes: list[str]) -> dict[str, object]:
    """How many images each split holds, in all and by class."""
    by_class = {name: np.bincount(splits[name].labels, minlength=len(classes)) for name in SPLITS}
    return {
        "classes": len(classes),
        **{name: len(splits[name].labels) for name in SPLITS},
        "by_class": {
            title: {name: int(by_class[name][number]) for name in SPLITS} for number, title in enumerate(classes)
        },
    }


if __name__ == "__main__":
    run_stage(main)
