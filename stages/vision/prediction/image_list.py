"""The image files that a command is given: files, and all images in folders."""

import os
from collections.abc import Iterator, Sequence

from vision.datasets.image_file import SUFFIXES
from vision.pipeline.errors import UserError
from vision.pipeline.validation import printable


def list_images(paths: Sequence[str]) -> list[str]:
    """List files, and the images in folders at any depth. No file is opened.

    A file may have any suffix, but files in folders need one of `SUFFIXES`. Hidden files and folders inside a folder
    are skipped. Links are followed; a folder that is reached twice is listed once.

    Args:
        paths: of files and folders.

    Returns:
        Each path once: in the order of `paths`, those of a folder sorted, and starting with the folder as it was given.

    Raises:
        UserError: a path does not exist, or a folder has no images.
        OSError: a folder cannot be read.
    """
    images: dict[str, None] = {}  # a set in order
    for path in paths:
        if os.path.isdir(path):
            found = sorted(_walk(path))
            if not found:
                raise UserError(f"{printable(path)}: no images ({', '.join(sorted(SUFFIXES))}) in this folder")
            images |= dict.fromkeys(found)
        elif os.path.lexists(path):
            images[os.path.normpath(path)] = None
        else:
            raise UserError(f"{printable(path)}: no such file or folder")
    return list(images)


def _walk(root: str) -> Iterator[str]:
    def raise_error(error: OSError) -> None:
        raise error

    visited = set()
    for parent, folders, names in os.walk(root, onerror=raise_error, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:  # links may form a loop
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.normpath(os.path.join(parent, name))
