"""What a file system does only when asked: a folder for one process alone, and names that outlast a power cut."""

import fcntl
import os
from pathlib import Path


def lock_dir(folder: Path, wait: bool = False) -> int:
    """Make the folder if need be, and open it as this process's alone, until the handle is closed or the process ends.

    Args:
        folder: what is to be locked.
        wait: for the process that has it.

    Returns:
        The handle.

    Raises:
        BlockingIOError: another process has it, and it is not to be waited for.
        OSError: it cannot be made or locked.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # A process that was done may have removed it in between.
            if os.path.samestat(os.stat(folder), os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
