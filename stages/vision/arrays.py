"""What lies on disk between the stages: uint8 image arrays, class names, statistics, small JSON and CSV files.

Whatever is written appears under its final name whole or not at all, even after a power cut: it is made under a
temporary name beside it, waited for until the disk has it, and renamed.
"""

import csv
import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, from_json

from vision.disk import sync
from vision.schema import Count, Finite, Positive, all_different, told
from vision.stage import UserError

SPLITS = ("train", "val", "test")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Split:
    """Labelled images: `images` uint8 [N, H, W, C]; `labels` [N], each an index into the class names.

    Labels are uint8, or uint16 where there are more than 256 classes.
    """

    images: np.ndarray
    labels: np.ndarray


Names = Annotated[list[str], Field(min_length=2, max_length=2**16), AfterValidator(all_different)]


@dataclass(frozen=True)
class Kind:
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
class Stats(Kind):
    """What the arrays mean.

    `split_digest` is the SHA-256 of the indices of the training and validation images. `test_files` are the files of
    the test images, in their order, by their path in data/raw; None if they have none.
    """

    split_digest: str
    test_files: list[str] | None = None


def write_raw(directory: Path, train: Split, test: Split, classes: Sequence[str]) -> None:
    """Write the output of the download stage; `read_raw` reads it back."""
    with replaced_directory(directory) as folder:
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
    with replaced_directory(directory) as folder:
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


def write_json(path: Path, document: Any) -> None:
    """Write indented JSON with a final newline."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read JSON that is of a kind: a type that pydantic knows, such as a dataclass, with its bounds.

    Raises:
        UserError: the file is missing, is not JSON, or of another kind.
    """
    try:
        content = path.read_bytes()
        from_json(content, allow_inf_nan=False)
        return TypeAdapter(kind).validate_json(content, strict=True)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValidationError as error:
        raise UserError(f"{path}: {told(error.errors()[0])}; delete it and run `dvc repro`") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run `dvc repro`") from None


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; floats keep every digit that they need to be read back as they were."""
    with replaced_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path, kind: Any = dict[str, str]) -> list[Any]:
    """Read a table of one row at least, each a dictionary of a kind: a type that pydantic brings the cells to.

    Raises:
        UserError: the file is missing, is not such a table, or a row is of another kind.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        read = TypeAdapter(list[kind]).validate_python(rows)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except ValidationError as error:
        row, *column = error.errors()[0]["loc"]
        mistake = told({**error.errors()[0], "loc": tuple(column)})
        raise UserError(f"{path}: line {int(row) + 2}: {mistake}; delete the file and run `dvc repro`") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table ({error}); delete it and run `dvc repro`") from None
    if not read:
        raise UserError(f"{path}: holds no rows; delete it and run `dvc repro`")
    return read


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed to `path` when the block ends well and removed when it does not.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    temporary = _temporary(path)
    with _of(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Like `replaced_file`, for a directory; what stood at `path` before is gone afterwards."""
    temporary, before = _temporary(path), _temporary(path.with_name(f"{path.name}.before"))
    with _of(path, temporary):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            with ThreadPoolExecutor(16) as pool:  # one after the other, 10,000 small files take ten seconds
                list(pool.map(sync, [temporary, *temporary.rglob("*")]))
            shutil.rmtree(before, ignore_errors=True)
            if path.exists():
                os.replace(path, before)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(before, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _of(path: Path, temporary: Path) -> Iterator[None]:
    """Have an error of writing, which names the temporary file, what was copied there or nothing, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno in _FULL or Path(str(error.filename)).is_relative_to(temporary):
            error.filename = str(path)
        raise
