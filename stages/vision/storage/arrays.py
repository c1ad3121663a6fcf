"""What lies on disk between the stages: uint8 image arrays, class names, statistics, small JSON and CSV files.

Whatever is written appears under its final name whole or not at all, even after a power cut: it is made under a
temporary name beside it, waited for until the disk has it, and renamed.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from vision.pipeline.errors import UserError
from vision.pipeline.validation import Count, Finite, Positive, check_unique
from vision.storage.atomic import atomic_directory
from vision.storage.tables import read_json, write_json

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Labelled images: `images` uint8 [N, H, W, C]; `labels` [N], each an index into the class names.

    Labels are uint8, or uint16 where there are more than 256 classes.
    """

    images: np.ndarray
    labels: np.ndarray


Names = Annotated[list[str], Field(min_length=2, max_length=2**16), AfterValidator(check_unique)]


@dataclass(frozen=True)
class ImageSpec:
    """What images are, for whoever looks at them.

    `classes` are the names in the order of the labels; `image_shape` is [H, W, C]; `mean` and `std` are what pixels in
    [0, 1] are normalised with, one figure a channel.
    """

    classes: Names
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    mean: list[Finite]
    std: list[Positive]

    def __post_init__(self) -> None:
        """Raises PydanticCustomError, a ValueError, where there is not one figure a channel."""
        channels = self.image_shape[2]
        if not channels == len(self.mean) == len(self.std):
            context = {"channels": channels}
            raise PydanticCustomError(
                "channels", "Value should have a mean and a std for each of {channels} channels", context
            )


@dataclass(frozen=True)
class Stats(ImageSpec):
    """What the arrays mean.

    `split_digest` is the SHA-256 of the indices of the training and validation images. `test_files` are the files of
    the test images, in their order, by their path in data/raw; None if they have none.
    """

    split_digest: str
    test_files: list[str] | None = None


def write_raw(directory: Path, train: Split, test: Split, classes: Sequence[str]) -> None:
    """Write the output of the download stage; `read_raw` reads it back."""
    with atomic_directory(directory) as folder:
        _save_split(folder, "train", train)
        _save_split(folder, "test", test)
        write_json(folder / "classes.json", list(classes))


def read_raw(directory: Path) -> tuple[Split, Split, list[str]]:
    """Read the training split, the test split and the class names that `write_raw` wrote.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
    """
    classes = cast(list[str], read_json(directory / "classes.json", Names))
    train, test = (read_split(directory, name, len(classes)) for name in ("train", "test"))
    if missing := set(range(len(classes))) - set(np.unique(train.labels).tolist()):
        path, name = directory / "train_labels.npy", classes[min(missing)]
        raise UserError(f"{path}: holds no image of class {name!r}; delete it and run `dvc repro`")
    return train, test, classes


def write_processed(directory: Path, splits: dict[str, Split], stats: Stats) -> None:
    """Write the output of the preprocess stage: one split for each name of `SPLITS`, and stats.json.

    The latter holds its own SHA-256, as what is wrong in it could be seen in nothing else.
    """
    with atomic_directory(directory) as folder:
        for name in SPLITS:
            _save_split(folder, name, splits[name])
        document = asdict(stats)
        write_json(folder / "stats.json", {**document, "sha256": _sha256(document)})


def read_stats(directory: Path) -> Stats:
    """Read stats.json.

    Raises:
        UserError: it is missing, or not as the preprocess stage wrote it.
    """
    path = directory / "stats.json"
    stats, document = read_json(path, Stats), read_json(path)
    if document.pop("sha256", None) != _sha256(document):
        raise UserError(f"{path}: not as the preprocess stage wrote it; delete it and run `dvc repro`")
    return stats


def read_split(
    directory: Path, name: str, classes: int, image_shape: Sequence[int] | None = None, mapped: bool = True
) -> Split:
    """Read one split, memory-mapped, so that what is not looked at is not loaded, or whole.

    Args:
        directory: where it lies.
        name: one of `SPLITS`; all but "val" hold images.
        classes: how many; every label is less.
        image_shape: [H, W, C] that is wanted of the images; None is any with the three channels of RGB.
        mapped: rather than whole.

    Raises:
        UserError: a file is missing, damaged, or not what `Split` says.
    """
    images = _load_array(directory / f"{name}_images.npy", mapped, np.uint8)
    path = directory / f"{name}_labels.npy"
    labels = _load_array(path, mapped, np.uint8, np.uint16)
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(f"{directory}: the {name} images {images.shape} and labels {labels.shape} do not fit together")
    wanted = [*images.shape[1:3], 3] if image_shape is None else list(image_shape)
    if list(images.shape[1:]) != wanted or 0 in wanted:
        sizes = f"{list(images.shape[1:])}, not of {wanted}"
        raise UserError(f"{directory / f'{name}_images.npy'}: holds images of {sizes}; delete it and run `dvc repro`")
    if name != "val" and not len(labels):
        raise UserError(f"{path}: holds no images; delete it and run `dvc repro`")
    if len(labels) and labels.max() >= classes:
        raise UserError(
            f"{path}: holds the label {labels.max()}, but there are {classes} classes; delete it and run `dvc repro`"
        )
    return Split(images, labels)


def _save_split(folder: Path, name: str, split: Split) -> None:
    _save_array(folder / f"{name}_images.npy", split.images)
    _save_array(folder / f"{name}_labels.npy", split.labels)


def _save_array(path: Path, array: np.ndarray) -> None:
    """Write the bytes that np.save writes, which itself says nothing where the disk does not take the last few kB."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def _load_array(path: Path, mapped: bool, *dtypes: type[np.generic]) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="ignore"):  # of sizes that overflow, which is an error anyway
            array = np.lib.format.open_memmap(path, mode="r")
        if not mapped:  # now that the file is known to hold what its header says
            array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except OSError:
        raise
    except Exception as error:  # a damaged header is parsed as Python, which can raise nearly anything
        reason = (str(error) or type(error).__name__).partition("\n")[0][:100]
        raise UserError(f"{path}: damaged ({reason}); delete it and run `dvc repro`") from None
    if array.dtype not in dtypes:
        wanted = " or ".join(dtype.__name__ for dtype in dtypes)
        raise UserError(f"{path}: holds {array.dtype}, not {wanted}; delete it and run `dvc repro`")
    return array


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
