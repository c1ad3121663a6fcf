"""The images of all splits as one list."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision.storage import arrays
from vision.storage.arrays import SPLITS
from vision.storage.names import read_names


@dataclass(frozen=True)
class AuditData:
    """All images of data/processed: those of the training, then the validation, then the test split.

    Attributes:
        classes: the class names.
        images: uint8 [N, H, W, C].
        labels: int64 [N], indices into `classes`.
        splits: the name of the split of each image, text [N].
        names: the name of each image in data/raw; see `vision.storage.names`.
    """

    classes: Sequence[str]
    images: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    names: Sequence[str]

    def indices(self, *splits: str) -> np.ndarray:
        """Ascending int64 indices of the images of these splits."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def title(self, index: int) -> str:
        """What to call an image: its split and its name, or only its name if that is a file."""
        name = self.names[index]
        return name if "/" in name else f"{self.splits[index]} {name}"


def read_data(folder: Path) -> AuditData:
    """Read data/processed.

    Raises:
        UserError: a file is missing or damaged.
    """
    stats = arrays.read_stats(folder)
    splits = [arrays.read_split(folder, name, len(stats.classes), stats.image_shape) for name in SPLITS]
    return AuditData(
        classes=stats.classes,
        images=np.concatenate([split.images for split in splits]),
        labels=np.concatenate([split.labels for split in splits]).astype(np.int64),
        splits=np.repeat(SPLITS, [len(split.labels) for split in splits]),
        names=[
            name
            for key, split in zip(SPLITS, splits, strict=True)
            for name in read_names(folder, key, len(split.labels))
        ],
    )
