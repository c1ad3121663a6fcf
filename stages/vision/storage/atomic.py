"""Files and directories that appear under their final name complete or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
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
def atomic_directory(path: Path) -> Iterator[Path]:
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


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder: a rename may get there before what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
