"""What cannot be sent is kept on disk, in the order in which it came, and sent by whoever can next.

An outbox is a folder: `about.json` says where all is to go and why it did not; each record is a file, `00000001.json`,
and has its payload, a file or a folder, in the folder `00000001` beside it. The folder is there only while something is
kept.
"""

import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vision.storage.atomic import atomic_write
from vision.storage.locks import lock_dir

Record = dict[str, Any]
"""What is to be sent, as JSON."""

Send = Callable[[Record, Path | None], None]
"""Sends a record and its payload; what it sends twice must be as what it sends once. Raises `Unsent` or `Refused`."""

_PAUSE = 10.0
_WAITS = 20
"""A failure is followed by so many times the time that it took before the next attempt."""
_SLICE = 2.0


class Unsent(Exception):
    """This could not be sent, for the reason given; later it may be."""


class Refused(Exception):
    """This will never be taken, for the reason given."""


class Outbox:
    """Sends records in their order, none of them twice in a row, and keeps them where that fails.

    Nothing is raised, and nothing takes longer than one attempt; those that fail are few and far between. Threads may
    share it. One process at a time has the folder; another one that wants it waits.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], send: Send, wait: bool = True) -> None:
        """Take over what the folder holds, if it is there.

        Args:
            folder: where to keep what cannot be sent.
            about: says, in `about.json`, where that is to be sent.
            send: a record.
            wait: for another process that has the folder.

        Raises:
            BlockingIOError: another process has the folder, and is not to be waited for.
        """
        self.folder = folder
        self.reason = ""
        """Why the last attempt failed; nothing if it did not."""
        self._about = about
        self._send = send
        self._handle = lock_dir(folder, wait) if folder.exists() else None
        self._mutex = threading.Lock()
        self._due = -math.inf
        self._sent_later = 0
        self._told = False

    def put(self, record: Record, payload: Path | None = None) -> None:
        """Send a record, after all that is kept; keep it, with a copy of the payload, if that cannot be done now."""
        with self._mutex:
            due = time.monotonic() >= self._due
            if not (due and self._deliver(_SLICE) and self._attempt(record, payload)):
                self._keep(record, payload)

    def deliver(self) -> bool:
        """Send what is kept, as far as that can be done; whether nothing is left."""
        with self._mutex:
            return self._deliver(math.inf)

    def close(self) -> None:
        """Try once more, and leave what is left to the next process."""
        with self._mutex:
            self._deliver(math.inf)
            self._release()

    def pause(self, reason: str, seconds: float) -> None:
        """Try nothing for a while, because an attempt has failed that took so many seconds."""
        changed, self.reason = reason != self.reason, reason
        self._due = time.monotonic() + max(_PAUSE, _WAITS * seconds)
        if changed and self._handle is not None:
            self._describe()

    def _deliver(self, seconds: float) -> bool:
        if self._handle is None:
            return True
        started = time.monotonic()
        for path in _records(self.folder):
            content = path.with_suffix("")
            try:
                record = json.loads(path.read_bytes())
                payload = next(content.iterdir()) if content.exists() else None
            except (OSError, ValueError, StopIteration) as error:
                tell(f"{path}: damaged ({error}); left out")
            else:
                if not self._attempt(record, payload):
                    return False
            path.unlink()
            shutil.rmtree(content, ignore_errors=True)
            self._sent_later += 1
            if time.monotonic() - started > seconds:
                return False
        if self._sent_later:
            tell(f"{count_records(self._sent_later)} of run {self.folder.name}, kept in {self.folder}, logged now")
        self._sent_later, self._told = 0, False
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release()
        return True

    def _attempt(self, record: Record, payload: Path | None) -> bool:
        """Whether the record is done with."""
        started = time.monotonic()
        try:
            self._send(record, payload)
        except Unsent as error:
            self.pause(str(error), time.monotonic() - started)
            return False
        except Refused as error:  # in the way of all that comes after it
            tell(f"does not take this of run {self.folder.name}, which is left out: {error}")
        self.reason = ""
        return True

    def _keep(self, record: Record, payload: Path | None) -> None:
        try:
            if self._handle is None:
                self._handle = lock_dir(self.folder, wait=True)
                self._describe()
            number = max((int(path.stem) for path in _records(self.folder)), default=0) + 1
            path = self.folder / f"{number:08d}.json"
            if payload is not None:
                copy = path.with_suffix("") / payload.name
                shutil.rmtree(copy.parent, ignore_errors=True)  # of a process that was killed at this point
                copy.parent.mkdir()
                (shutil.copytree if payload.is_dir() else shutil.copyfile)(payload, copy)
            _write(path, record)
        except OSError as error:
            tell(f"{self.folder}: cannot be written to ({error.strerror or error}); this is lost: {record}"[:500])
        else:
            if not self._told:
                tell(f"{self.reason}; what cannot be logged is kept in {self.folder}, for the next command that can")
            self._told = True

    def _describe(self) -> None:
        with suppress(OSError):
            _write(self.folder / "about.json", {**self._about, "reason": self.reason})

    def _release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def outboxes(folder: Path) -> Iterator[tuple[Path, dict[str, Any], int]]:
    """The outboxes in a folder: where each is, what its `about.json` says (`reason` too), how many records it holds."""
    for path in sorted(folder.glob("*/about.json")):
        try:
            about = json.loads(path.read_bytes())
        except (OSError, ValueError):  # another process has just been done with it
            continue
        if count := len(_records(path.parent)):
            yield path.parent, about, count


def count_records(count: int) -> str:
    """So many things."""
    return "1 thing" if count == 1 else f"{count} things"


def tell(line: str) -> None:
    """Say on stderr what became of what was to be logged."""
    print(f"MLflow: {line}", file=sys.stderr, flush=True)


def _records(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.json"))


def _write(path: Path, document: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")
