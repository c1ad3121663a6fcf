"""The forms that CIFAR-10 is handed around in, each read into the records of the official binary batches.

A record is one uint8 row: the label, then the red, the green and the blue plane of a 32x32 image. Files are read as
untrusted: members of an archive by their exact name and never onto the disk, sizes bounded, pickles restricted.
"""

import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.utils import CallbackIOWrapper

from vision import progress
from vision.stage import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
MAX_FILE = 256 * 2**20
"""Bytes of the largest file that is read; the official ones have 31 MB."""


def encode(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Records, uint8 [N, 3073], of images uint8 [N, 32, 32, 3] and labels uint8 [N]."""
    return _join(labels, images.transpose(0, 3, 1, 2).reshape(len(images), RECORD - 1))


def decode(batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels uint8 [N] of batches of records, uint8 [n, 3073], one after the other."""
    images = np.empty((sum(map(len, batches)), SIDE, SIDE, 3), np.uint8)
    start = 0
    for records in batches:
        planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
        images[start : start + len(records)] = planes.transpose(0, 2, 3, 1)
        start += len(records)
    return images, np.concatenate([records[:, 0] for records in batches])


def read_records(content: bytes) -> np.ndarray:
    """Records, uint8 [N, 3073], of the content of a binary batch.

    Raises:
        ValueError: it is empty or does not end with a whole record.
    """
    if not content or len(content) % RECORD:
        raise ValueError(f"{len(content):,} bytes are not whole records of {RECORD:,} bytes")
    return np.frombuffer(content, np.uint8).reshape(-1, RECORD)


def read_batches(path: Path) -> list[np.ndarray]:
    """Records, uint8 [n, 3073], of each batch in `BATCHES`, of a .tar.gz archive or an unpacked folder.

    Raises:
        UserError: there is no such file, or it is in none of the formats, or damaged; the path is left to the caller.
        OSError: it cannot be read.
    """
    if path.is_dir():
        files = _read_folder(path)
    elif path.is_file():
        files = _read_archive(path)
    else:
        raise UserError("no such file or folder")
    style = next((style for style in FORMATS if files.keys() & style.paths()), None)
    if style is None:
        raise UserError(f"holds no CIFAR-10 (expected a folder {' or '.join(style.folder for style in FORMATS)} in it)")
    missing = [name for name in style.paths() if name not in files]
    if missing:
        raise UserError(f"{missing[0]} is missing, or what stands before it is damaged")
    batches = []
    for name in progress.bar(len(BATCHES), " batches", "decode", iterable=BATCHES, delay=1, leave=False):
        try:
            batches.append(style.read(name, files))
        except Exception as error:  # a damaged pickle or picture can raise nearly anything
            raise UserError(f"{name} cannot be read ({error})") from None
    return batches


Files = dict[str, bytes]
"""Content by the path inside the archive or folder."""


@dataclass(frozen=True)
class _Format:
    """Files in `folder`: `<batch><suffix>` for each batch, and `extras`; `read` turns one batch into records."""

    folder: str
    suffix: str
    read: Callable[[str, Files], np.ndarray]
    extras: tuple[str, ...] = ()

    def paths(self) -> list[str]:
        return [f"{self.folder}/{name}" for name in (*(batch + self.suffix for batch in BATCHES), *self.extras)]


# Each reader takes its batch out of `files`, so that an archive is not held in memory twice.
def _read_binary(batch: str, files: Files) -> np.ndarray:
    return read_records(files.pop(f"cifar-10-batches-bin/{batch}.bin"))


def _read_python(batch: str, files: Files) -> np.ndarray:
    content = _Unpickler(io.BytesIO(files.pop(f"cifar-10-batches-py/{batch}")), encoding="bytes").load()
    return _join(np.array(content[b"labels"]), content[b"data"])


def _read_npm(batch: str, files: Files) -> np.ndarray:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(files.pop(f"package/{batch}.png"))))
    images = pixels.reshape(-1, SIDE, SIDE, 3)  # a row of the picture is an image, pixel by pixel
    if batch == "test_batch":
        return encode(images, np.array(json.loads(files["package/test_lables.json"])))
    start = BATCHES.index(batch) * len(images)
    return encode(images, np.array(json.loads(files["package/train_lables.json"])[start : start + len(images)]))


FORMATS = (
    _Format("cifar-10-batches-bin", ".bin", _read_binary),
    _Format("cifar-10-batches-py", "", _read_python),
    _Format("package", ".png", _read_npm, ("train_lables.json", "test_lables.json")),
)


def _join(labels: np.ndarray, planes: np.ndarray) -> np.ndarray:
    if planes.dtype != np.uint8 or planes.shape != (len(labels), RECORD - 1) or not len(labels):
        raise ValueError(f"{len(labels)} labels with pixels {planes.dtype} {list(planes.shape)}")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 255:
        raise ValueError("labels that are not numbers from 0 to 255")
    records = np.empty((len(labels), RECORD), np.uint8)
    records[:, 0] = labels
    records[:, 1:] = planes
    return records


class _Unpickler(pickle.Unpickler):
    """Makes NumPy arrays and plain Python values; whatever else a pickle names is refused, not called."""

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


def _read_folder(path: Path) -> Files:
    """Content of the known files in `path`, which is one of the formats' folders or holds one."""
    found = {}
    for style in FORMATS:
        for name in style.paths():
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


def _read_archive(path: Path) -> Files:
    """Content of the known files in a .tar.gz archive; all its other members are skipped."""
    known = {name for style in FORMATS for name in style.paths()}
    files = {}
    try:
        with (
            path.open("rb") as file,
            progress.bar(path.stat().st_size, "B", "read") as bar,
            # One pass from start to end: going back in a .tar.gz means unpacking it again.
            tarfile.open(fileobj=CallbackIOWrapper(bar.update, file), mode="r|gz", bufsize=2**20) as archive,
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
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"not a whole .tar.gz archive ({error}); download it again") from None
    return files


def _check_size(name: str, size: int) -> None:
    if size > MAX_FILE:
        raise UserError(f"refused: {name} has {size:,} bytes, more than {MAX_FILE:,}")
