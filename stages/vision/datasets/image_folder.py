"""A folder of images with one sub-folder per class: listing, verified copying, and reading of the copy."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from vision.datasets.decoding import run_in_threads
from vision.datasets.image_file import SUFFIXES, decode
from vision.pipeline.errors import UserError
from vision.pipeline.paths import resolve_path
from vision.pipeline.validation import has_control_characters, printable
from vision.storage.atomic import atomic_directory

SPLITS = {"train", "test"}
_SPLIT_NAMES = {*SPLITS, "training", "testing", "val", "valid", "validation"}
_MAX_LISTED = 10  # files or classes listed in a message


@dataclass(frozen=True)
class Listing:
    """The content of a folder of images.

    Attributes:
        classes: the sorted names of the class folders.
        folders: the parent folder of the class folders, by split: "train" and, if present, "test".
        images: the image files by split, relative to the split's folder; the first part of each path is the class.
        skipped: all other files that are not hidden.
    """

    classes: list[str]
    folders: Mapping[str, Path]
    images: dict[str, list[Path]]
    skipped: list[Path]


@dataclass(frozen=True)
class LabeledFiles:
    """Labeled image files: `images` are N paths, `labels` uint8 or uint16 [N], indices into the class names."""

    images: list[Path]
    labels: np.ndarray


def copy(source: str, directory: Path, say: Callable[[str], None]) -> Listing:
    """Copy the images of a folder to `directory`/train/<class>/ (and test/), and decode each copy as a check.

    Args:
        source: the folder, relative to the checkout: one sub-folder per class with images at any depth, or the two
            sub-folders train and test, each with one sub-folder per class.
        directory: is replaced.
        say: is called with a line on what was read, and a line on what was skipped.

    Raises:
        UserError: the folder has another structure, or contains images that cannot be decoded; `directory` is then
            unchanged.
    """
    try:
        folder = resolve_path(source)
        listing = scan(folder)
    except (UserError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise UserError(f"download.source: {source}: {reason}") from None
    say(f"read from {source}")
    if listing.skipped:
        say(f"skipped (not in a class folder, or no image suffix): {_format_list(listing.skipped)}")

    files = [(split, path) for split, paths in listing.images.items() for path in paths]
    errors: dict[Path, ValueError] = {}
    with atomic_directory(directory) as temporary:
        for parent in {temporary / split / path.parent for split, path in files}:
            parent.mkdir(parents=True, exist_ok=True)

        def copy_file(number: int) -> None:
            split, path = files[number]
            original, copied = listing.folders[split] / path, temporary / split / path
            shutil.copyfile(folder / original, copied)
            try:
                decode(copied)  # not the original, which may change meanwhile
            except ValueError as error:
                errors[original] = error

        run_in_threads(copy_file, len(files), "check")
        if errors:
            lines = [f"{printable(path)}: {errors[path]}" for path in sorted(errors)[:_MAX_LISTED]]
            more = [f"and {len(errors) - _MAX_LISTED:,} more"] if len(errors) > _MAX_LISTED else []
            heading = f"download.source: {source}: has images that cannot be read; repair or remove them:"
            raise UserError("\n".join([heading, *lines, *more]))
    return listing


def read_raw(directory: Path) -> tuple[LabeledFiles, LabeledFiles | None, list[str]]:
    """Read what `copy` wrote: the training images, the test images (None if there is no test split) and the classes.

    The images are in a random order that is always the same, so that every part of them is a fair sample.

    Raises:
        UserError: a class or its images are missing.
    """
    try:
        # With `cache.type symlink`, DVC replaces the files by links into its cache.
        listing = _list_images(directory, {split: Path(split) for split in _class_names(directory)}, links=True)
    except UserError as error:
        raise UserError(f"{directory}: {error}; `dvc repro -f download` writes it again") from None
    label_of = {name: label for label, name in enumerate(listing.classes)}
    files = {}
    for split, paths in listing.images.items():
        shuffled = [paths[index] for index in np.random.default_rng(0).permutation(len(paths))]
        labels = np.array([label_of[path.parts[0]] for path in shuffled], np.min_scalar_type(len(label_of) - 1))
        files[split] = LabeledFiles([directory / split / path for path in shuffled], labels)
    return files["train"], files.get("test"), listing.classes


def scan(folder: Path) -> Listing:
    """List the images of a folder without opening them.

    Raises:
        UserError: the folder does not exist, its sub-folders are not classes with images, or it contains symbolic
            links; the message does not name the folder.
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder ({folder})")
    names = _class_names(folder)
    if not SPLITS.issubset(names):
        if len(names) > 1 and all(name.lower() in _SPLIT_NAMES for name in names):
            raise UserError(
                f"has the folders {_format_list(names)}, which are no classes; expected train and test, or classes"
            )
        return _list_images(folder, {"train": Path()})
    if others := [name for name in names if name not in SPLITS]:
        raise UserError(f"has more folders than train and test ({_format_list(others)}); expected only those two")
    return _list_images(folder, {"train": Path("train"), "test": Path("test")})


def _list_images(root: Path, folders: Mapping[str, Path], links: bool = False) -> Listing:
    """List the images of all splits; symbolic links to files are refused unless `links`."""
    classes = sorted({name for folder in folders.values() for name in _class_names(root / folder)})
    if len(classes) < 2:
        raise UserError(f"has {len(classes)} class folders; expected a sub-folder for each of at least two classes")
    if len(classes) > 2**16:
        raise UserError(f"has {len(classes):,} class folders, more than {2**16:,}")
    images, skipped = {}, []
    for split, folder in folders.items():
        images[split], others = _find_images(root / folder, links)
        skipped += [folder / path for path in others]
        if empty := sorted(set(classes) - {path.parts[0] for path in images[split]}):
            raise UserError(f"has no images in {_format_list([folder / name for name in empty])}")
    return Listing(classes, folders, images, skipped)


def _class_names(folder: Path) -> list[str]:
    """The sorted names of the sub-folders that are not hidden."""
    paths = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in paths:
        _check_no_link(path, folder)
    return sorted(path.name for path in paths)


def _find_images(folder: Path, links: bool) -> tuple[list[Path], list[Path]]:
    """All images in sub-folders, and all other files, relative to `folder`; hidden files and folders are left out."""

    def raise_error(error: OSError) -> NoReturn:
        raise error

    images, others = [], []
    for parent, folders, names in os.walk(folder, onerror=raise_error):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _check_no_link(Path(parent, name), folder)
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            relative = path.relative_to(folder)
            if path.suffix.lower() not in SUFFIXES or len(relative.parts) == 1:
                others.append(relative)
                continue
            if not links:
                _check_no_link(path, folder)
            if not path.is_file():
                raise UserError(f"{relative} is a special file; remove it")
            if has_control_characters(str(relative)):
                raise UserError(f"{printable(relative)}: the name has control characters or is not UTF-8; rename it")
            images.append(relative)
    return sorted(images), sorted(others)


def _check_no_link(path: Path, folder: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"{printable(path.relative_to(folder))} is a symbolic link, which is not followed; "
            "`cp -rL FOLDER COPY` makes a copy without links"
        )


def _format_list(paths: Sequence[Path | str]) -> str:
    more = f" and {len(paths) - _MAX_LISTED:,} more" if len(paths) > _MAX_LISTED else ""
    return ", ".join(map(printable, paths[:_MAX_LISTED])) + more
