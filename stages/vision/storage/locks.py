"""Locks on directories."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock


@contextmanager
def lock_dir(folder: Path) -> Iterator[None]:
    """Create a directory and hold its lock during the block; afterwards remove the directory if it is empty.

    The lock is the file `<folder>.lock` beside the directory. It is free again when the process ends, however it ends.

    Raises:
        filelock.Timeout: another process holds the lock.
        OSError: the directory or the lock file cannot be created.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0, fallback_to_soft=False)
    with lock:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()
            with suppress(OSError):  # on Windows filelock removes the file when it releases the lock
                Path(lock.lock_file).unlink()
