"""The names of the images in data/processed, which say where in data/raw each image is.

The name of an image is its file relative to data/raw, such as `train/cat/7.jpg`. If data/raw holds arrays, it is the
index of the image in its split there, such as `41`.
"""

from collections.abc import Sequence
from pathlib import Path

from vision.pipeline.errors import UserError


def write_names(directory: Path, split: str, names: Sequence[str]) -> None:
    """Write `<split>_names.txt`, one name per line; names have no line breaks."""
    (directory / f"{split}_names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def read_names(directory: Path, split: str, count: int) -> list[str]:
    """Read the names of the `count` images of a split, in their order.

    Raises:
        UserError: the file is missing or damaged, or does not have `count` names.
    """
    path = directory / f"{split}_names.txt"
    try:
        *names, rest = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: damaged (not UTF-8); delete it and run `dvc repro`") from None
    if len(names) != count or rest:
        raise UserError(f"{path}: does not have one name for each of {count:,} images; delete it and run `dvc repro`")
    return names
