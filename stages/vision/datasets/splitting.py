"""Selection of classes, the split into training, validation and test images, and statistics of the result."""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import resample

from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import DatasetMetrics, SplitCounts
from vision.storage.arrays import SPLITS, Split

FIXED_STATISTICS = {
    "half": ([0.5] * 3, [0.5] * 3),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
"""Mean and standard deviation by the value of preprocess.normalize.

`half` brings pixels from [0, 1] to [-1, 1]; `imagenet` is what torchvision's pretrained weights expect.
"""


@dataclass(frozen=True)
class SplitConfig:
    """How images are split.

    Attributes:
        test_fraction: share held out for the test first; 0 if the data has a test split.
        val_fraction: share of the remaining images held out for validation; unused if `folds` is given.
        folds: number of equal parts for cross-validation of the remaining images (Stone 1974, "Cross-validatory choice
            and assessment of statistical predictions"); None does not cross-validate.
        fold: the part, from 0, that is held out for validation.
        train_limit: the most training images to keep; None keeps all.
        seed: seed of every random choice.
    """

    test_fraction: float = 0
    val_fraction: float = 0.1
    folds: int | None = None
    fold: int = 0
    train_limit: int | None = None
    seed: int = 0


def filter_classes(labels: np.ndarray, classes: list[str], names: list[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Select the images of some classes.

    Args:
        labels: integer [N], indices into `classes`.
        classes: the names of all classes.
        names: the classes to keep; None keeps all.

    Returns:
        The int64 indices of their images in ascending order, and the labels of these images as indices into `names`.

    Raises:
        UserError: a name is not in `classes`.
    """
    if names is None:
        return np.arange(len(labels)), np.asarray(labels)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"params.yaml: preprocess.classes: the data has no class {unknown[0]!r}; it has {', '.join(classes)}"
        )
    new_labels = np.full(len(classes), -1)
    new_labels[[classes.index(name) for name in names]] = np.arange(len(names))
    indices = np.flatnonzero(new_labels[labels] >= 0)
    return indices, new_labels[labels[indices]].astype(labels.dtype)


def split_indices(
    labels: np.ndarray, classes: list[str], config: SplitConfig, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the training, validation and test images, stratified by class.

    With groups, the split is drawn among the first images of the groups, and the other images follow theirs. Fractions
    and folds are then of the groups, and the parts have nearly those sizes.

    Args:
        labels: integer [N], indices into `classes`.
        classes: the class names, for messages.
        config: sizes and seed.
        groups: integer [N], the group of each image; images of a group are not separated. None: there are no groups.

    Returns:
        Ascending int64 indices of the training, validation and test images.

    Raises:
        UserError: a class has too few images for the split.
    """
    indices = np.arange(len(labels), dtype=np.int64)
    if groups is not None:
        indices = np.sort(np.unique(groups, return_index=True)[1])
    indices, test = _hold_out(indices, labels, config.test_fraction, config.seed, "preprocess.test_fraction")
    if config.folds is None:
        train, val = _hold_out(indices, labels, config.val_fraction, config.seed, "preprocess.val_fraction")
    else:
        train, val = _hold_out_fold(indices, labels, classes, config)
    if groups is not None:
        indices, train, val, test = (_members(groups, part) for part in (indices, train, val, test))
    _check_classes(labels, classes, indices, "preprocess.test_fraction")
    _check_classes(labels, classes, train, "preprocess.val_fraction")
    if config.train_limit is not None and config.train_limit < len(train):
        _, train = _sample(train, labels, config.train_limit, config.seed, "preprocess.train_limit")
        _check_classes(labels, classes, train, "preprocess.train_limit")
    return np.sort(train), np.sort(val), np.sort(test)


def _members(groups: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """All images of the groups of some images, ascending."""
    return np.flatnonzero(np.isin(groups, groups[indices]))


def _check_classes(labels: np.ndarray, classes: list[str], indices: np.ndarray, parameter: str) -> None:
    if missing := set(labels.tolist()) - set(labels[indices].tolist()):
        raise UserError(f"params.yaml: {parameter}: leaves class {classes[min(missing)]!r} without a training image")


def _hold_out_fold(
    indices: np.ndarray, labels: np.ndarray, classes: list[str], config: SplitConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices into those of all other folds and those of one fold, stratified by class."""
    assert config.folds is not None
    present, counts = np.unique(labels[indices], return_counts=True)
    if counts.min() < config.folds:
        raise UserError(
            f"params.yaml: preprocess.folds: {config.folds} parts of class {classes[present[counts.argmin()]]!r}, "
            f"which has {counts.min()} images; use fewer"
        )
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed).split(indices, labels[indices])
    others, held_out = list(folds)[config.fold]
    return indices[others], indices[held_out]


def _hold_out(
    indices: np.ndarray, labels: np.ndarray, fraction: float, seed: int, parameter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices into the remaining ones and a share that is held out, stratified by class."""
    if fraction == 0:
        return indices, indices[:0]
    return _sample(indices, labels, round(fraction * len(indices)), seed, parameter)


def _sample(
    indices: np.ndarray, labels: np.ndarray, count: int, seed: int, parameter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` of the indices, stratified by class: the remaining indices and the sample."""
    classes = len(np.unique(labels[indices]))
    if count < classes:
        raise UserError(f"params.yaml: {parameter}: takes {count} images, fewer than there are classes ({classes})")
    sample = resample(indices, replace=False, n_samples=count, stratify=labels[indices], random_state=seed)
    return np.setdiff1d(indices, sample), sample


def pixel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of images uint8 [N, H, W, C], for pixels scaled to [0, 1].

    Both are computed from a histogram of the 256 values, in integers, so that the result has the same bits on all
    processors. The deviation is at least 1/255, so that a constant channel can be divided by it.
    """
    chunks = np.array_split(images, -(-images.size // 2**24))
    levels = np.arange(256)
    mean, std = [], []
    for channel in range(images.shape[-1]):
        histogram = sum(np.bincount(chunk[..., channel].reshape(-1), minlength=256) for chunk in chunks)
        count, total, squares = (int(np.sum(histogram * levels**power)) for power in (0, 1, 2))
        mean.append(total / (255 * count))
        std.append(max(math.sqrt(count * squares - total**2) / count, 1) / 255)
    return mean, std


def count_images(splits: dict[str, Split], classes: list[str]) -> DatasetMetrics:
    """Count the images of each split, in total and by class."""
    train, val, test = (np.bincount(splits[name].labels, minlength=len(classes)).tolist() for name in SPLITS)
    return DatasetMetrics(
        classes=len(classes),
        train=sum(train),
        val=sum(val),
        test=sum(test),
        by_class={
            name: SplitCounts(train=train[label], val=val[label], test=test[label])
            for label, name in enumerate(classes)
        },
    )
