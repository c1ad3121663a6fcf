"""Write files and directories so that they are complete whenever they exist under their final name."""

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` after the block, or remove it if the block raises.

    Raises:
        OSError: the file cannot be written; `filename` is `path`.
    """
    temporary = _hidden(path, "partial")
    with _rename_in_errors(temporary, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Like `atomic_write`, for a directory.

    A directory cannot be replaced in one step: the old one is moved to `.<name>.old` first. If the process is killed
    before the new one has taken its place, the next call moves the old one back.
    """
    temporary, old = _hidden(path, "partial"), _hidden(path, "old")
    with _rename_in_errors(temporary, path):
        _recover(path, old)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            with ThreadPoolExecutor(16) as pool:  # one by one, 10,000 small files take ten seconds
                list(pool.map(sync, [temporary, *temporary.rglob("*")]))
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            _recover(path, old)
            shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a directory, is on the disk.

    Without it, a power cut after a rename may leave the new name with incomplete content.
    """
    if os.name == "nt":
        if path.is_dir():  # Windows cannot sync a directory
            return
        handle = os.open(path, os.O_RDWR)  # nor a file that is open for reading alone
    else:
        handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _recover(path: Path, old: Path) -> None:
    """Move the old directory back if there is no new one; remove it otherwise."""
    if old.exists() and not path.exists():
        os.replace(old, path)
    elif old.is_symlink() or old.is_file():  # `path` was not a directory
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _rename_in_errors(temporary: Path, path: Path) -> Iterator[None]:
    """Make an OSError name `path` if it names the temporary file or nothing, or if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.errno in _DISK_FULL or Path(str(error.filename)).is_relative_to(temporary):
            error.filename, error.filename2 = str(path), None
        raise
