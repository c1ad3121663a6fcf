"""Which images train, validate and test, what pixels are normalised with, and how many of each class there are."""

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import resample

from vision.pipeline.errors import UserError
from vision.storage.arrays import SPLITS, Split

KNOWN = {
    "half": ([0.5] * 3, [0.5] * 3),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
"""Mean and standard deviation that bring pixels in [0, 1] to [-1, 1], and those that torchvision's weights want."""


def filter_classes(labels: np.ndarray, classes: list[str], names: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Find the images of some classes.

    Args:
        labels: integer [N], indices into `classes`.
        classes: the names of all classes.
        names: those to keep; None keeps all.

    Returns:
        Ascending int64 indices of their images, and the labels of these, now indices into `names`.

    Raises:
        UserError: there is no such class.
    """
    if names is None:
        return np.arange(len(labels)), np.asarray(labels)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"params.yaml: preprocess.classes: the data has no class {unknown[0]!r}; it has {', '.join(classes)}"
        )
    numbers = np.full(len(classes), -1)
    numbers[[classes.index(name) for name in names]] = np.arange(len(names))
    rows = np.flatnonzero(numbers[labels] >= 0)
    return rows, numbers[labels[rows]].astype(labels.dtype)


def split_rows(
    labels: np.ndarray,
    classes: list[str],
    *,
    test_fraction: float,
    val_fraction: float,
    folds: int | None,
    fold: int,
    train_limit: int | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the training, the validation and the test images: the same share of every class, by the seed.

    Args:
        labels: integer [N], indices into `classes`.
        classes: their names.
        test_fraction: share held out for the test, before anything else; 0 where the data has a test split.
        val_fraction: share of the others held out for validation.
        folds: None, or the number of equal parts that the others are cut into for cross-validation (Stone 1974,
            "Cross-validatory choice and assessment of statistical predictions"); `val_fraction` says nothing then.
        fold: which of the parts, counted from 0, is held out for validation.
        train_limit: keep at most this many of those that remain, again the same share of every class.
        seed: what the choice depends on.

    Returns:
        Ascending int64 indices of the training, of the validation and of the test images.

    Raises:
        UserError: a class has too few images for the split.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    rows, test = _held_out(rows, labels, test_fraction, seed, "preprocess.test_fraction")
    if folds is None:
        train, val = _held_out(rows, labels, val_fraction, seed, "preprocess.val_fraction")
    else:
        train, val = _fold(rows, labels, classes, folds, fold, seed)
    _check_that_all_are_left(labels, classes, rows, "preprocess.test_fraction")
    _check_that_all_are_left(labels, classes, train, "preprocess.val_fraction")
    if train_limit is not None and train_limit < len(train):
        _, train = _stratified(train, labels, train_limit, seed, "preprocess.train_limit")
        _check_that_all_are_left(labels, classes, train, "preprocess.train_limit")
    return np.sort(train), np.sort(val), np.sort(test)


def _check_that_all_are_left(labels: np.ndarray, classes: list[str], rows: np.ndarray, parameter: str) -> None:
    if missing := set(labels.tolist()) - set(labels[rows].tolist()):
        raise UserError(f"params.yaml: {parameter}: leaves class {classes[min(missing)]!r} without a training image")


def _fold(
    rows: np.ndarray, labels: np.ndarray, classes: list[str], folds: int, fold: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the rows into parts with the same share of every class: those of the other parts, and those of one."""
    numbers, counts = np.unique(labels[rows], return_counts=True)
    if counts.min() < folds:
        raise UserError(
            f"params.yaml: preprocess.folds: {folds} parts of class {classes[numbers[counts.argmin()]]!r}, which has "
            f"{counts.min()} images; use fewer"
        )
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, labels[rows])
    others, held_out = list(parts)[fold]
    return rows[others], rows[held_out]


def _held_out(
    rows: np.ndarray, labels: np.ndarray, fraction: float, seed: int, parameter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Take a share of the rows, none where it is 0."""
    if fraction == 0:
        return rows, rows[:0]
    return _stratified(rows, labels, round(fraction * len(rows)), seed, parameter)


def _stratified(
    rows: np.ndarray, labels: np.ndarray, taken: int, seed: int, parameter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Take `taken` of the rows, the same share of every class: the rows left and the rows taken."""
    classes = len(np.unique(labels[rows]))
    if taken < classes:
        raise UserError(f"params.yaml: {parameter}: takes {taken} images, fewer than there are classes ({classes})")
    took = resample(rows, replace=False, n_samples=taken, stratify=labels[rows], random_state=seed)
    left = np.setdiff1d(rows, took)
    return left, took


def pixel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for pixels in [0, 1]; images uint8 [N, H, W, C].

    Counted from a histogram of the 256 values, so the result is exact and takes no memory for floats. A channel that
    is the same everywhere gets the deviation of one level, so that it can be divided by.
    """
    chunks = np.array_split(images, -(-images.size // 2**24))
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
