"""The published data sets, and the forms they are handed around in, each read into the bytes of the official files.

Of CIFAR-10 those are the binary batches. A record is one uint8 row: the label, then the red, the green and the blue
plane of a 32x32 image. Of CIFAR-100 they are the pickles, out of which the same records are made. Files are read as
untrusted: members of an archive by their exact name and never onto the disk, sizes bounded, pickles restricted.
"""

import gzip
import io
import json
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.utils import CallbackIOWrapper

from vision.pipeline import progress
from vision.pipeline.errors import UserError
from vision.storage.arrays import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
MAX_FILE = 512 * 2**20
"""Bytes of the largest file that is read: ten times those of CIFAR-10, three times the largest official one."""
MAX_ARCHIVE = 320 * 2**20
"""Bytes of all that an archive is unpacked to; the largest official one makes 186 MB."""

Files = dict[str, bytes]
"""Content by the path inside the archive or folder."""
Decoded = tuple[Split, Split, list[str]]
"""The training and the test split, and the names of the classes."""


@dataclass(frozen=True)
class Format:
    """Files in `folder`: `<part><suffix>` for each part, and `extras`; `read` makes the bytes of one official file."""

    folder: str
    suffix: str
    read: Callable[[str, Files], bytes]
    extras: tuple[str, ...] = ()

    def paths(self, parts: Sequence[str]) -> list[str]:
        """All the files of this form, inside the archive or folder."""
        return [f"{self.folder}/{name}" for name in (*(part + self.suffix for part in parts), *self.extras)]


@dataclass(frozen=True)
class Dataset:
    """A published data set: `parts` name its official files, `formats` are the forms it comes in.

    `name` is that of its checksum file, in which a part has the ending `suffix`; `listed` is what `md5sum` is given to
    make that file. `decode` makes arrays of the bytes of the parts, and takes them out of their list.
    """

    name: str
    title: str
    parts: tuple[str, ...]
    suffix: str
    listed: str
    formats: tuple[Format, ...]
    decode: Callable[[list[bytes]], Decoded]


def encode(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Records, uint8 [N, 3073], of images uint8 [N, 32, 32, 3] and labels uint8 [N]."""
    return _join(labels, images.transpose(0, 3, 1, 2).reshape(len(images), RECORD - 1))


def decode(batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N] of batches of records, uint8 [n, 3073], one after the other.

    Batches are taken out of their list, so that the data is not held in memory twice.
    """
    labels = np.concatenate([records[:, 0] for records in batches])
    images = np.empty((len(labels), SIDE, SIDE, 3), np.uint8)
    start = 0
    while batches:
        records = batches.pop(0)
        planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
        images[start : start + len(records)] = planes.transpose(0, 2, 3, 1)
        start += len(records)
    return images, labels


def read_records(content: bytes) -> np.ndarray:
    """Records, uint8 [N, 3073], of the content of a binary batch.

    Raises:
        ValueError: it is empty or does not end with a whole record.
    """
    if not content or len(content) % RECORD:
        raise ValueError(f"{len(content):,} bytes are not whole records of {RECORD:,} bytes")
    return np.frombuffer(content, np.uint8).reshape(-1, RECORD)


def read_parts(dataset: Dataset, path: Path) -> list[bytes]:
    """The bytes of each official file, out of a .tar.gz archive or an unpacked folder.

    Raises:
        UserError: there is no such file, or it is in none of the formats, or damaged; the path is left to the caller.
        OSError: it cannot be read.
    """
    known = [name for form in dataset.formats for name in form.paths(dataset.parts)]
    if path.is_dir():
        files = _read_folder(path, known)
    elif path.is_file():
        files = _read_archive(path, known)
    elif path.exists():
        raise UserError("neither a file nor a folder")
    else:
        raise UserError("no such file or folder")
    form = next((form for form in dataset.formats if files.keys() & form.paths(dataset.parts)), None)
    if form is None:
        folders = " or ".join(form.folder for form in dataset.formats)
        raise UserError(f"holds no {dataset.title} (expected a folder {folders} in it)")
    missing = [name for name in form.paths(dataset.parts) if name not in files]
    if missing:
        raise UserError(f"{missing[0]} is missing, or what stands before it is damaged")
    parts = []
    for name in progress.bar(len(dataset.parts), " batches", "decode", iterable=dataset.parts, delay=1, leave=False):
        with _named(name):
            parts.append(form.read(name, files))
    return parts


@contextmanager
def _named(part: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged pickle or picture can raise nearly anything
        raise UserError(f"{part} cannot be read ({error})") from None


# Each reader takes its part out of `files`, so that an archive is not held in memory twice.
def _read_binary(batch: str, files: Files) -> bytes:
    content = files.pop(f"cifar-10-batches-bin/{batch}.bin")
    read_records(content)
    return content


def _read_python(batch: str, files: Files) -> bytes:
    content = _unpickle(files.pop(f"cifar-10-batches-py/{batch}"))
    return _join(np.array(content[b"labels"]), content[b"data"]).tobytes()


def _read_npm(batch: str, files: Files) -> bytes:
    from PIL import Image

    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        # PNG alone: some of Pillow's other formats run programs.
        pixels = np.asarray(Image.open(io.BytesIO(files.pop(f"package/{batch}.png")), formats=["PNG"]))
    images = pixels.reshape(-1, SIDE, SIDE, 3)  # a row of the picture is an image, pixel by pixel
    if batch == "test_batch":
        return encode(images, np.array(json.loads(files["package/test_lables.json"]))).tobytes()
    start = CIFAR10.parts.index(batch) * len(images)
    labels = json.loads(files["package/train_lables.json"])[start : start + len(images)]
    return encode(images, np.array(labels)).tobytes()


def _read_as_it_is(part: str, files: Files) -> bytes:
    return files.pop(f"cifar-100-python/{part}")


def _decode_cifar10(parts: list[bytes]) -> Decoded:
    batches = []
    for name in CIFAR10.parts:
        batches.append(read_records(parts.pop(0)))
        _check_labels(name, batches[-1], len(CLASSES))
    test = [batches.pop()]
    return Split(*decode(batches)), Split(*decode(test)), list(CLASSES)


def _decode_cifar100(parts: list[bytes]) -> Decoded:
    *names, meta = CIFAR100.parts
    with _named(meta):
        classes = [name.decode() for name in _unpickle(parts.pop())[b"fine_label_names"]]
    splits = []
    for name in names:
        with _named(name):
            content = _unpickle(parts.pop(0))
            records = _join(np.array(content[b"fine_labels"]), content[b"data"])
        _check_labels(name, records, len(classes))
        splits.append(Split(*decode([records])))
    train, test = splits
    return train, test, classes


def _check_labels(name: str, records: np.ndarray, classes: int) -> None:
    if records[:, 0].max() >= classes:
        raise UserError(f"{name}: has the label {records[:, 0].max()}, but there are {classes} classes")


CIFAR10 = Dataset(
    name="cifar10",
    title="CIFAR-10",
    parts=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"),
    suffix=".bin",
    listed="data_batch_?.bin test_batch.bin",
    formats=(
        Format("cifar-10-batches-bin", ".bin", _read_binary),
        Format("cifar-10-batches-py", "", _read_python),
        Format("package", ".png", _read_npm, ("train_lables.json", "test_lables.json")),
    ),
    decode=_decode_cifar10,
)
CIFAR100 = Dataset(
    name="cifar100",
    title="CIFAR-100",
    parts=("train", "test", "meta"),
    suffix="",
    listed="train test meta",
    formats=(Format("cifar-100-python", "", _read_as_it_is),),
    decode=_decode_cifar100,
)
DATASETS = {dataset.name: dataset for dataset in (CIFAR10, CIFAR100)}


def _join(labels: np.ndarray, planes: np.ndarray) -> np.ndarray:
    if planes.dtype != np.uint8 or planes.shape != (len(labels), RECORD - 1) or not len(labels):
        raise ValueError(f"{len(labels)} labels with pixels {planes.dtype} {list(planes.shape)}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 255:
        raise ValueError("labels that are not numbers from 0 to 255")
    records = np.empty((len(labels), RECORD), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = planes
    return records


_WrittenInPython: Any = pickle._Unpickler


class _Unpickler(_WrittenInPython):
    """Makes NumPy arrays and plain Python values; whatever else a pickle names is refused, not called.

    Ten bytes can have the one written in C take 32 GB: the number of an object that is to be remembered.
    """

    ALLOWED = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # How Python 3 writes bytes in old protocols; only ever as latin1.
        ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> object:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused: its pickle names {module}.{name}") from None


def _unpickle(content: bytes) -> Any:
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def _read_folder(path: Path, known: Sequence[str]) -> Files:
    """Content of the known files in `path`, which is one of the formats' folders or holds one."""
    found = {}
    for name in known:
        for file in (path / name, path / Path(name).name):
            if file.is_file():
                found[name] = file
                break
    files = {}
    with progress.bar(sum(file.stat().st_size for file in found.values()), "B", "read") as bar:
        for name, file in found.items():
            _check_size(name, file.stat().st_size)
            files[name] = file.read_bytes()
            bar.update(len(files[name]))
    return files


def _read_archive(path: Path, known: Sequence[str]) -> Files:
    """Content of the known files in a .tar.gz archive; all its other members are skipped."""
    files = {}
    try:
        with (
            path.open("rb") as file,
            progress.bar(path.stat().st_size, "B", "read") as bar,
            _Bounded(fileobj=CallbackIOWrapper(bar.update, file)) as unpacked,
            # One pass from start to end: going back in a .tar.gz means unpacking it again.
            tarfile.open(fileobj=unpacked, mode="r|", bufsize=2**20) as archive,
        ):
            for member in archive:
                if member.name not in known:
                    continue
                if not member.isreg():
                    raise UserError(f"refused: {member.name} in it is a link or special file")
                _check_size(member.name, member.size)
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                files[member.name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, RecursionError) as error:
        raise UserError(f"not a whole .tar.gz archive ({error}); download it again") from None
    return files


class _Bounded(gzip.GzipFile):
    """A stream of which no more is unpacked than an archive may hold."""

    unpacked = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.unpacked += len(content)
        if self.unpacked > MAX_ARCHIVE:
            raise UserError(f"refused: it holds more than {MAX_ARCHIVE:,} bytes")
        return content


def _check_size(name: str, size: int) -> None:
    if not 0 <= size <= MAX_FILE:
        raise UserError(f"refused: {name} has {size:,} bytes, more than {MAX_FILE:,}")
