"""A folder of images, a sub-folder a class: what is in it, a checked copy of it, and that copy read again."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from vision.datasets.decoding import SUFFIXES, decode, in_threads
from vision.pipeline.errors import UserError
from vision.pipeline.paths import resolve_path
from vision.pipeline.validation import has_control_characters, printable
from vision.storage.atomic import atomic_directory

SPLITS = {"train", "test"}
_LIKE_SPLITS = {*SPLITS, "training", "testing", "val", "valid", "validation"}
_NAMED = 10  # files, or classes, that a message names


@dataclass(frozen=True)
class Listing:
    """What a folder holds.

    `classes` are the sorted names of the class folders. `places` are the folders in which they lie, by split: "train"
    and perhaps "test"; `images` are the images of a split, each a path in its place that begins with the class.
    `skipped` are all other files but the hidden ones.
    """

    classes: list[str]
    places: Mapping[str, Path]
    images: dict[str, list[Path]]
    skipped: list[Path]


@dataclass(frozen=True)
class Files:
    """Labelled image files: `images` are N paths, `labels` uint8 or uint16 [N], indices into the class names."""

    images: list[Path]
    labels: np.ndarray


def copy(source: str, directory: Path, say: Callable[[str], None]) -> Listing:
    """Copy the images of a folder to `directory`/train/<class>/ (and test/), and decode each whole.

    Args:
        source: the folder, relative to the checkout: one sub-folder a class with images at any depth, or the two
            sub-folders train and test, each with one sub-folder a class.
        directory: is replaced.
        say: is told, a line each, what was read and what was skipped.

    Raises:
        UserError: it is no such folder, or holds images that cannot be decoded; `directory` is as before then.
    """
    try:
        folder = resolve_path(source)
        listing = scan(folder)
    except (UserError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise UserError(f"download.source: {source}: {reason}") from None
    say(f"read from {source}")
    if listing.skipped:
        say(f"skipped, for they lie in no class folder or have no image's suffix: {_some(listing.skipped)}")

    files = [(split, path) for split, paths in listing.images.items() for path in paths]
    refused: dict[Path, ValueError] = {}
    with atomic_directory(directory) as made:
        for kept in {made / split / path.parent for split, path in files}:
            kept.mkdir(parents=True, exist_ok=True)

        def take(number: int) -> None:
            split, path = files[number]
            original, kept = listing.places[split] / path, made / split / path
            shutil.copyfile(folder / original, kept)
            try:
                decode(kept)  # the copy: what is checked is what is kept
            except ValueError as error:
                refused[original] = error

        in_threads(take, len(files), "check")
        if refused:
            lines = [f"{printable(path)}: {refused[path]}" for path in sorted(refused)[:_NAMED]]
            beyond = [f"and {len(refused) - _NAMED:,} more"] if len(refused) > _NAMED else []
            heading = f"download.source: {source}: has images that cannot be read; repair or remove them:"
            raise UserError("\n".join([heading, *lines, *beyond]))
    return listing


def read_raw(directory: Path) -> tuple[Files, Files | None, list[str]]:
    """Read what `copy` left: the training images, the test images if they are apart, and the class names.

    The images come in a random order that is always the same, so that any part of them is a fair sample.

    Raises:
        UserError: something is missing in it.
    """
    try:
        # DVC may have put links into its cache here: `cache.type symlink`.
        listing = _listed(directory, {split: Path(split) for split in _folders(directory)}, links=True)
    except UserError as error:
        raise UserError(f"{directory}: {error}; `dvc repro -f download` makes it anew") from None
    numbers = {name: number for number, name in enumerate(listing.classes)}
    files = {}
    for split, paths in listing.images.items():
        epoch_indices = [paths[place] for place in np.random.default_rng(0).permutation(len(paths))]
        labels = np.array([numbers[path.parts[0]] for path in epoch_indices], np.min_scalar_type(len(numbers) - 1))
        files[split] = Files([directory / split / path for path in epoch_indices], labels)
    return files["train"], files.get("test"), listing.classes


def scan(folder: Path) -> Listing:
    """List the images of a folder, without opening them.

    Raises:
        UserError: there is no such folder, its sub-folders are not classes with images, or it has symbolic links; the
            path is left to the caller.
        OSError: it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder ({folder})")
    inside = _folders(folder)
    if not SPLITS.issubset(inside):
        if len(inside) > 1 and all(name.lower() in _LIKE_SPLITS for name in inside):
            raise UserError(
                f"has the folders {_some(inside)}, which are no classes; expected train and test, or classes"
            )
        return _listed(folder, {"train": Path()})
    if others := [name for name in inside if name not in SPLITS]:
        raise UserError(f"has folders beside train and test ({_some(others)}); expected those two alone")
    return _listed(folder, {"train": Path("train"), "test": Path("test")})


def _listed(folder: Path, places: Mapping[str, Path], links: bool = False) -> Listing:
    """List the images of all places; symbolic links among them are refused unless `links`."""
    classes = sorted({name for place in places.values() for name in _folders(folder / place)})
    if len(classes) < 2:
        raise UserError(f"has {len(classes)} class folders; expected a sub-folder for each of at least two classes")
    if len(classes) > 2**16:
        raise UserError(f"has {len(classes):,} class folders, more than {2**16:,}")
    images, skipped = {}, []
    for split, place in places.items():
        images[split], others = _walk(folder / place, links)
        skipped += [place / path for path in others]
        if empty := sorted(set(classes) - {path.parts[0] for path in images[split]}):
            raise UserError(f"has no images in {_some([place / name for name in empty])}")
    return Listing(classes, places, images, skipped)


def _folders(folder: Path) -> list[str]:
    """The sub-folders that are not hidden, sorted."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in found:
        _refuse_link(path, folder)
    return sorted(path.name for path in found)


def _walk(folder: Path, links: bool) -> tuple[list[Path], list[Path]]:
    """All images in sub-folders, and all other files, by their path in `folder`; without what is hidden."""

    def stop(error: OSError) -> NoReturn:
        raise error

    images, others = [], []
    for where, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _refuse_link(Path(where, name), folder)
        for path in (Path(where, name) for name in names if not name.startswith(".")):
            inside = path.relative_to(folder)
            if path.suffix.lower() not in SUFFIXES or len(inside.parts) == 1:
                others.append(inside)
                continue
            if not links:
                _refuse_link(path, folder)
            if not path.is_file():
                raise UserError(f"{inside} is a special file; remove it")
            if has_control_characters(str(inside)):
                raise UserError(f"{printable(inside)}: the name has control characters or is not UTF-8; rename it")
            images.append(inside)
    return sorted(images), sorted(others)


def _refuse_link(path: Path, folder: Path) -> None:
    if path.is_symlink():
        raise UserError(
            f"{printable(path.relative_to(folder))} is a symbolic link, and those may lead anywhere; "
            "`cp -rL FOLDER COPY` makes a copy that has none"
        )


def _some(paths: Sequence[Path | str]) -> str:
    """The first of them, and how many more there are."""
    beyond = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
    return ", ".join(map(printable, paths[:_NAMED])) + beyond
