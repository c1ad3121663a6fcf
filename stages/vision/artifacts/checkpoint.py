"""The state of a training on disk, written now and then, so that one that is killed can go on."""

import hashlib
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from filelock import Timeout

from vision.core.trainer import State
from vision.storage.atomic import sync
from vision.storage.locks import lock_dir

_KEPT = 2
_FORGOTTEN = 7 * 24 * 3600
"""Seconds after which nobody is expected to go on with a training."""
_WAITS = 100
"""A save is followed by so many times the time that it took, so that large networks spend no more on it either."""


@contextmanager
def checkpoints(folder: Path, seconds: float | None) -> Iterator["Checkpoints"]:
    """The checkpoints in `folder`, for the block; a new one every so many seconds, None for never.

    No other process can use the folder meanwhile. One that cannot have it does without, and says so on stderr: training
    is not to fail for the sake of a checkpoint.
    """
    if seconds is None:
        yield Checkpoints()
        return
    with ExitStack() as stack:
        saved = Checkpoints()
        try:
            stack.enter_context(lock_dir(folder))
            saved = Checkpoints(folder, seconds)
        except Timeout:
            _tell(f"{folder}: in use by another process that trains the same; this one saves no checkpoints")
        except OSError as error:
            _tell(f"{folder}: cannot be used ({error.strerror}); no checkpoints are saved")
        yield saved


class Checkpoints:
    """The two newest states, each in a file that is whole or absent: a SHA-256 and what torch.save wrote.

    Without a folder there are none, and none are saved.
    """

    def __init__(self, folder: Path | None = None, seconds: float = 0.0) -> None:
        """Save to `folder`, which is there, the first time at once."""
        self.folder = folder
        self.seconds = seconds
        self.due = time.monotonic()

    def latest(self) -> State | None:
        """The newest state that is as it was written; a damaged file is named on stderr and removed."""
        for path in reversed(self._files()):
            try:
                return _read(path)
            except Exception as error:  # whatever a file may hold, it is worth no more than this line
                reason = str(error).partition("\n")[0] or type(error).__name__
                _tell(f"{path}: damaged ({reason}); ignored and removed")
                with suppress(OSError):
                    path.unlink()
        return None

    def offer(self, state: Callable[[], State]) -> None:
        """Save what `state` makes, if it is time to; a disk that does not take it ends that, but not the training."""
        if self.folder is None or time.monotonic() < self.due:
            return
        started = time.monotonic()
        made = state()
        try:
            self._save(self.folder, made)
        except OSError as error:
            _tell(f"{self.folder}: cannot be written to ({error.strerror}); no more checkpoints are saved")
            self.folder = None
            return
        ended = time.monotonic()
        self.due = ended + max(self.seconds, _WAITS * (ended - started))

    def clear(self) -> None:
        """Remove them all: the training is over. So are those beside it that nobody went on with for a week."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            for other in self.folder.parent.iterdir():
                if other.is_dir():
                    with suppress(OSError):
                        _forget(other)
            self.folder = None

    def _files(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("*.pt"))

    def _save(self, folder: Path, state: State) -> None:
        written = io.BytesIO()
        torch.save(state, written)
        content = written.getbuffer()
        before = self._files()
        number = int(before[-1].stem) + 1 if before else 1
        temporary = folder / "partial"
        try:
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / f"{number:08d}.pt")
            sync(folder)
        finally:
            temporary.unlink(missing_ok=True)
        for path in before[: len(before) + 1 - _KEPT]:
            path.unlink()


def _read(path: Path) -> State:
    written = path.read_bytes()
    digest, content = written[:32], written[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is another one")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError("it holds no state")
    return state


def _forget(folder: Path) -> None:
    """Remove the checkpoints in a folder if they are old and no process uses it.

    Raises:
        OSError: one does, or it is no folder of checkpoints alone.
    """

    def is_old() -> bool:
        return time.time() - folder.stat().st_mtime > _FORGOTTEN

    if not is_old():
        return  # unlocked: a training that begins just now is to find it free
    with lock_dir(folder):
        if is_old():
            for path in (*folder.glob("*.pt"), *folder.glob("partial")):
                path.unlink()


def _tell(line: str) -> None:
    print(f"train: {line}", file=sys.stderr, flush=True)
