"""Checkpoints on disk, from which an interrupted training resumes.

To add to what a checkpoint holds, choose the place where the state is:

- weights, optimizers and schedules: `Trainer.state_dict` and `load_state_dict` in vision/core/trainer.py. What has a
  `state_dict` of its own goes into `_parts` there.
- progress within the training: `_checkpoint_state` and `resume` in vision/core/loop.py.
- everything else, such as the MLflow run: a field of `Checkpoint`, filled in `Recorder.on_checkpoint` and read in
  `main` of stages/train.py.
"""

import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from vision.core.trainer import State
from vision.pipeline.messages import warn
from vision.storage.atomic import sync
from vision.storage.locks import lock_dir

_MAX_CHECKPOINTS = 2
_MAX_AGE = 7 * 24 * 3600
"""Seconds after which an abandoned checkpoint is removed."""
_PAUSE = 100
"""Time between two saves, in multiples of the duration of a save, so that saving takes at most 1% of the time."""


@dataclass(frozen=True)
class Checkpoint:
    """A training in progress.

    Attributes:
        training_state: the state that `vision.core.loop.fit` resumes from.
        run: the record of the tracked run, as in metrics/run.json.
        seconds: duration of the training so far, in all processes.
        saved_at: Unix time.
    """

    training_state: State
    run: dict[str, Any]
    seconds: float
    saved_at: float = field(default_factory=time.time)

    def describe(self) -> str:
        """Say how far the training was: `step 3 of epoch 2, saved 10 s ago`."""
        state, epochs = self.training_state, len(self.training_state["history"])
        position = f"the end of epoch {epochs}"
        if len(state["remaining"]):
            position = f"step {state['meter']['step']} of epoch {epochs + 1}"
        return f"{position}, saved {time.time() - self.saved_at:.0f} s ago"


@contextmanager
def open_checkpoints(folder: Path, seconds: float | None) -> Iterator["Checkpoints"]:
    """Open a folder of checkpoints for this process alone, and remove it in the end if it is empty.

    If another process uses the folder, or it cannot be created, a line on stderr says so, and the training runs without
    checkpoints.

    Args:
        folder: of one training, named by its fingerprint.
        seconds: between two checkpoints; None for no checkpoints.
    """
    if seconds is None:
        yield Checkpoints()
        return
    with ExitStack() as stack:
        checkpoints = Checkpoints()
        try:
            stack.enter_context(lock_dir(folder))
            checkpoints = Checkpoints(folder, seconds)
        except Timeout:
            warn("train", f"{folder}: in use by another process with the same training; this one saves no checkpoints")
        except OSError as error:
            warn("train", f"{folder}: cannot be used ({error.strerror}); no checkpoints are saved")
        yield checkpoints


class Checkpoints:
    """The two latest checkpoints of a training. Each file is a SHA-256 digest followed by the output of torch.save."""

    def __init__(self, folder: Path | None = None, seconds: float = 0.0) -> None:
        """Save to an existing `folder`, every `seconds`, for the first time at once; without a folder, never save."""
        self.folder = folder
        self.seconds = seconds
        self.next_save = time.monotonic()

    def load_latest(self) -> Checkpoint | None:
        """Load the latest checkpoint onto the CPU; None if there is none.

        A damaged file is named on stderr and removed, and the one before it is loaded.
        """
        for path in reversed(self._files()):
            try:
                return _read(path)
            except Exception as error:  # a damaged file can raise anything
                reason = str(error).partition("\n")[0] or type(error).__name__
                warn("train", f"{path}: damaged ({reason}); ignored and removed")
                with suppress(OSError):
                    path.unlink()
        return None

    def save_if_due(self, make_checkpoint: Callable[[], Checkpoint]) -> None:
        """Save what `make_checkpoint` returns if the interval has passed.

        If the disk refuses it, a line on stderr says so, and no more checkpoints are saved.
        """
        if self.folder is None or time.monotonic() < self.next_save:
            return
        started = time.monotonic()
        checkpoint = make_checkpoint()
        try:
            self._save(self.folder, checkpoint)
        except OSError as error:
            warn("train", f"{self.folder}: cannot be written to ({error.strerror}); no more checkpoints are saved")
            self.folder = None
            return
        ended = time.monotonic()
        self.next_save = ended + max(self.seconds, _PAUSE * (ended - started))

    def remove(self) -> None:
        """Remove the checkpoints after the training has ended, and those of other trainings abandoned for a week."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            for other in filter(Path.is_dir, self.folder.parent.iterdir()):
                with suppress(OSError):
                    _remove_abandoned(other)
            self.folder = None

    def _files(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob("*.pt"))

    def _save(self, folder: Path, checkpoint: Checkpoint) -> None:
        buffer = io.BytesIO()
        torch.save(vars(checkpoint), buffer)
        content = buffer.getbuffer()
        earlier = self._files()
        number = int(earlier[-1].stem) + 1 if earlier else 1
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
        for path in earlier[: len(earlier) + 1 - _MAX_CHECKPOINTS]:
            path.unlink()


def _read(path: Path) -> Checkpoint:
    written = path.read_bytes()
    digest, content = written[:32], written[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("the checksum does not match")
    return Checkpoint(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _remove_abandoned(folder: Path) -> None:
    """Remove the checkpoints in a folder, and the folder if nothing else is in it, if they are old.

    Raises:
        filelock.Timeout: a process uses the folder.
        OSError: a file cannot be removed.
    """

    def is_old() -> bool:
        return time.time() - folder.stat().st_mtime > _MAX_AGE

    if not is_old():
        return  # without taking the lock, which would keep a training that starts now from using the folder
    with lock_dir(folder):
        if is_old():
            for path in (*folder.glob("*.pt"), *folder.glob("partial")):
                path.unlink()
