"""What lies on disk between the stages: uint8 image arrays, class names, statistics, small JSON and CSV files.

Whatever is written appears under its final name whole or not at all: it is made under a temporary name beside it
and renamed.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision.stage import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Labelled images: `images` uint8 [N, H, W, C]; `labels` [N], each an index into the class names.

    Labels are uint8, or uint16 where there are more than 256 classes.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Stats:
    """What the arrays mean.

    `classes` are the names in the order of the labels; `mean` and `std` are what pixels in [0, 1] are normalised
    with, one figure a channel; `split_digest` is the SHA-256 of the indices of the training and validation images.
    `test_files` are the files of the test images, in their order, by their path in data/raw; None if they have none.
    """

    classes: list[str]
    image_shape: list[int]
    mean: list[float]
    std: list[float]
    split_digest: str
    test_files: list[str] | None = None


def write_raw(directory: Path, train: Split, test: Split, classes: Sequence[str]) -> None:
    """Write the output of the download stage; `read_raw` reads it back."""
    with replaced_directory(directory) as folder:
        _save_split(folder, "train", train)
        _save_split(folder, "test", test)
        write_json(folder / "classes.json", list(classes))


def read_raw(directory: Path) -> tuple[Split, Split, list[str]]:
    """Read the training split, the test split and the class names that `write_raw` wrote."""
    return read_split(directory, "train"), read_split(directory, "test"), read_json(directory / "classes.json")


def write_processed(directory: Path, splits: dict[str, Split], stats: Stats) -> None:
    """Write the output of the preprocess stage: one split for each name of `SPLITS`, and stats.json."""
    with replaced_directory(directory) as folder:
        for name in SPLITS:
            _save_split(folder, name, splits[name])
        write_json(folder / "stats.json", asdict(stats))


def read_stats(directory: Path) -> Stats:
    """Read stats.json."""
    path = directory / "stats.json"
    try:
        return Stats(**read_json(path))
    except TypeError as error:
        raise UserError(f"{path}: not made by the preprocess stage ({error}); `dvc repro -f preprocess`") from None


def read_split(directory: Path, name: str) -> Split:
    """Read one split, memory-mapped: what is not looked at is not loaded.

    Raises:
        UserError: a file is missing, damaged, or not what `Split` says.
    """
    images = _load_array(directory / f"{name}_images.npy", np.uint8)
    labels = _load_array(directory / f"{name}_labels.npy", np.uint8, np.uint16)
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(f"{directory}: the {name} images {images.shape} and labels {labels.shape} do not fit together")
    return Split(images, labels)


def _save_split(folder: Path, name: str, split: Split) -> None:
    np.save(folder / f"{name}_images.npy", split.images, allow_pickle=False)
    np.save(folder / f"{name}_labels.npy", split.labels, allow_pickle=False)


def _load_array(path: Path, *dtypes: type[np.generic]) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `dvc repro`") from None
    if array.dtype not in dtypes:
        wanted = " or ".join(dtype.__name__ for dtype in dtypes)
        raise UserError(f"{path}: holds {array.dtype}, not {wanted}; delete it and run `dvc repro`")
    return array


def write_json(path: Path, document: Any) -> None:
    """Write indented JSON with a final newline."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run `dvc repro`") from None


def read_document(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that has these keys; `a.b` is the key b of the object under a.

    Raises:
        UserError: the file is missing, is not JSON, or lacks a key.
    """
    document = read_json(path)
    for key in keys:
        found = document
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                raise UserError(f"{path}: lacks {key!r}; delete it and run `dvc repro`")
            found = found[part]
    return document


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; floats keep every digit that they need to be read back as they were."""
    with replaced_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table as one dictionary a row.

    Raises:
        UserError: the file is missing or is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table ({error}); delete it and run `dvc repro`") from None


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Like `replaced_file`, for a directory; what stood at `path` before is gone afterwards."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
