"""The published corrupted test images of CIFAR-10, CIFAR-10-C (Hendrycks & Dietterich 2019).

They are at https://zenodo.org/records/2535967. The folder has a file for each corruption, such as gaussian_noise.npy,
uint8 [50000, 32, 32, 3]: the 10,000 test images at severity 1, then at severity 2, and so on. labels.npy, [50000], has
the labels of the 10,000 images five times.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vision.evaluation.corruptions.table import CHUNK, CORRUPTIONS, SEVERITIES
from vision.pipeline.errors import UserError
from vision.storage.arrays import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CifarC:
    """The folder of CIFAR-10-C, checked against the test split; the images stay on disk until they are used."""

    def __init__(self, folder: Path, test: Split, classes: list[str]) -> None:
        """Map the files and check them.

        Args:
            folder: with labels.npy and a file for each of the 15 corruptions.
            test: the test split that the model is scored on.
            classes: its class names.

        Raises:
            UserError: the classes are not those of CIFAR-10, a file is missing or damaged, or it does not match `test`.
        """
        if tuple(classes) != CLASSES:
            raise UserError(
                f"params.yaml: evaluate.corruptions: {folder} is for the ten classes of CIFAR-10 in their order, and "
                "this model has others; use true"
            )
        shape = (len(SEVERITIES) * len(test.labels), *test.images.shape[1:])
        labels = _map(folder / "labels.npy")
        if labels.dtype.kind not in "iu" or not np.array_equal(labels, np.tile(test.labels, len(SEVERITIES))):
            raise UserError(f"{folder / 'labels.npy'}: must be the labels of the test split in its order, five times")
        self.files = {}
        for name in CORRUPTIONS:
            array = self.files[name] = _map(folder / f"{name}.npy")
            if array.dtype != np.uint8 or array.shape != shape:
                found = f"{array.dtype} {list(array.shape)}"
                raise UserError(f"{folder / f'{name}.npy'}: has {found}, expected uint8 {list(shape)}")

    def read(self, name: str, severity: int) -> Iterator[Tensor]:
        """Yield the images of one corruption at one severity, uint8 [M, H, W, 3], at most 1000 at a time."""
        array = self.files[name]
        images = len(array) // len(SEVERITIES)
        end = severity * images
        for start in range(end - images, end, CHUNK):
            yield torch.from_numpy(np.array(array[start : min(start + CHUNK, end)]))


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; evaluate.corruptions must be the folder of CIFAR-10-C") from None
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python, so a damaged one can raise any exception
        reason = (str(error) or type(error).__name__).partition("\n")[0][:100]
        raise UserError(f"{path}: damaged ({reason})") from None
