"""The data that stages pass on: images and labels as NumPy arrays, class names and pixel statistics."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from vision.pipeline.errors import UserError
from vision.pipeline.validation import Count, Finite, Positive, check_unique
from vision.storage.atomic import atomic_directory
from vision.storage.names import write_names
from vision.storage.tables import read_json, write_json

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Labeled images: `images` uint8 [N, H, W, C]; `labels` [N], indices into the class names.

    Labels are uint8, or uint16 if there are more than 256 classes.
    """

    images: np.ndarray
    labels: np.ndarray


ClassNames = Annotated[list[str], Field(min_length=2, max_length=2**16), AfterValidator(check_unique)]


@dataclass(frozen=True)
class ImageSpec:
    """The class names in the order of the labels, the shape [H, W, C] of an image, and how pixels are normalized.

    `mean` and `std` have one value per channel, for pixels in [0, 1].
    """

    classes: ClassNames
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    mean: list[Finite]
    std: list[Positive]

    def __post_init__(self) -> None:
        """Raise PydanticCustomError, a ValueError, unless `mean` and `std` have one value per channel."""
        channels = self.image_shape[2]
        if not channels == len(self.mean) == len(self.std):
            context = {"channels": channels}
            raise PydanticCustomError(
                "channels", "Value should have a mean and a std for each of {channels} channels", context
            )


@dataclass(frozen=True)
class Stats(ImageSpec):
    """stats.json. `split_digest` is the SHA-256 of the indices of the training and validation images."""

    split_digest: str


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps of some images: `indices` int64 [M] of the images, and `heat` uint8 [M, h, w], from 0 to 255."""

    indices: np.ndarray
    heat: np.ndarray


def write_raw(directory: Path, train: Split, test: Split, classes: Sequence[str]) -> None:
    """Write the output of the download stage."""
    with atomic_directory(directory) as folder:
        _save_split(folder, "train", train)
        _save_split(folder, "test", test)
        write_json(folder / "classes.json", list(classes))


def read_raw(directory: Path) -> tuple[Split, Split, list[str]]:
    """Read the training split, the test split and the class names that `write_raw` wrote.

    Raises:
        UserError: a file is missing or damaged, or the files do not match.
    """
    classes = cast(list[str], read_json(directory / "classes.json", ClassNames))
    train, test = (read_split(directory, name, len(classes)) for name in ("train", "test"))
    if missing := set(range(len(classes))) - set(np.unique(train.labels).tolist()):
        path, name = directory / "train_labels.npy", classes[min(missing)]
        raise UserError(f"{path}: has no image of class {name!r}; delete it and run `dvc repro`")
    return train, test, classes


def write_processed(
    directory: Path, splits: Mapping[str, Split], names: Mapping[str, Sequence[str]], stats: Stats
) -> None:
    """Write the output of the preprocess stage: images, labels and names for each of `SPLITS`, and stats.json.

    `names` are those of `storage.names`. stats.json includes a SHA-256 of its content, because nothing else would
    reveal a changed value.
    """
    with atomic_directory(directory) as folder:
        for name in SPLITS:
            _save_split(folder, name, splits[name])
            write_names(folder, name, names[name])
        document = asdict(stats)
        write_json(folder / "stats.json", {**document, "sha256": _sha256(document)})


def read_stats(directory: Path) -> Stats:
    """Read stats.json.

    Raises:
        UserError: the file is missing, or was changed after the preprocess stage wrote it.
    """
    path = directory / "stats.json"
    stats, document = read_json(path, Stats), read_json(path)
    if document.pop("sha256", None) != _sha256(document):
        raise UserError(f"{path}: changed after the preprocess stage wrote it; delete it and run `dvc repro`")
    return stats


def read_split(
    directory: Path, name: str, classes: int, image_shape: Sequence[int] | None = None, memory_map: bool = True
) -> Split:
    """Read one split.

    Args:
        directory: data/raw or data/processed.
        name: one of `SPLITS`; only "val" may be empty.
        classes: the number of classes; every label must be less.
        image_shape: the required shape [H, W, C] of the images; None accepts any RGB images.
        memory_map: map the files instead of loading them, so that only what is accessed is read.

    Raises:
        UserError: a file is missing or damaged, or its content does not match the arguments.
    """
    images = _load_array(directory / f"{name}_images.npy", memory_map, np.uint8)
    path = directory / f"{name}_labels.npy"
    labels = _load_array(path, memory_map, np.uint8, np.uint16)
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(f"{directory}: the {name} images {images.shape} and labels {labels.shape} do not match")
    expected = [*images.shape[1:3], 3] if image_shape is None else list(image_shape)
    if list(images.shape[1:]) != expected or 0 in expected:
        path = directory / f"{name}_images.npy"
        shapes = f"{list(images.shape[1:])}, expected {expected}"
        raise UserError(f"{path}: has images of shape {shapes}; delete it and run `dvc repro`")
    if name != "val" and not len(labels):
        raise UserError(f"{path}: has no images; delete it and run `dvc repro`")
    if len(labels) and labels.max() >= classes:
        raise UserError(
            f"{path}: has the label {labels.max()}, but there are {classes} classes; delete it and run `dvc repro`"
        )
    return Split(images, labels)


def write_heat_maps(directory: Path, heat_maps: HeatMaps) -> None:
    """Write heat maps as two files."""
    _save_array(directory / "heat_map_indices.npy", heat_maps.indices)
    _save_array(directory / "heat_maps.npy", heat_maps.heat)


def read_heat_maps(directory: Path, num_images: int) -> HeatMaps:
    """Read the heat maps of some of `num_images` images.

    Raises:
        UserError: a file is missing or damaged, or they do not match.
    """
    path = directory / "heat_map_indices.npy"
    indices = _load_array(path, False, np.int64)
    heat = _load_array(directory / "heat_maps.npy", False, np.uint8)
    if indices.ndim != 1 or heat.ndim != 3 or len(indices) != len(heat) or 0 in heat.shape[1:]:
        raise UserError(f"{path}: does not match heat_maps.npy; delete both and run `dvc repro`")
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_images:
        raise UserError(f"{path}: names images that do not exist; delete it and run `dvc repro`")
    return HeatMaps(indices, heat)


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Return up to `count` distinct indices below `total`, int [min(total, count)], evenly spaced and ascending."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(int)


def _save_split(folder: Path, name: str, split: Split) -> None:
    _save_array(folder / f"{name}_images.npy", split.images)
    _save_array(folder / f"{name}_labels.npy", split.labels)


def _save_array(path: Path, array: np.ndarray) -> None:
    """Write the same bytes as np.save, which does not report a disk that is full when the last few kB are written."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def _load_array(path: Path, memory_map: bool, *dtypes: type[np.generic]) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="ignore"):  # about sizes that overflow; these raise as well
            array = np.lib.format.open_memmap(path, mode="r")
        if not memory_map:  # the file is now known to be as long as its header says
            array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except OSError:
        raise
    except Exception as error:  # numpy parses the header as Python, so a damaged one can raise any exception
        reason = (str(error) or type(error).__name__).partition("\n")[0][:100]
        raise UserError(f"{path}: damaged ({reason}); delete it and run `dvc repro`") from None
    if array.dtype not in dtypes:
        expected = " or ".join(dtype.__name__ for dtype in dtypes)
        raise UserError(f"{path}: has dtype {array.dtype}, expected {expected}; delete it and run `dvc repro`")
    return array


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
