"""Log calls on their way to MLflow: written to disk at once, published from there by a thread.

`unlogged/<run ID>/` in the main checkout has a numbered JSON file for each call of a run, and a copy of the file that
the call is about. What is published is deleted. What a process leaves there, because the store failed or because it
was killed, is published by the next command that uses the store. A call that is published twice, because the process
was killed before it could delete it, has no effect; see `publisher`. Messages to the user name calls records.
"""

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from vision.pipeline.paths import ROOT, main_root
from vision.tracking import store
from vision.tracking.publisher import LogCall, send

_PAUSE = 10.0
"""Seconds after a failed attempt without another one."""


class Spool:
    """The log calls of one run, which threads may share. Only one process at a time has a run open."""

    def __init__(self, uri: str, run_id: str) -> None:
        """For a run in the store `uri`."""
        self.uri, self.run_id = uri, run_id
        self.folder = main_root(ROOT) / "unlogged" / run_id
        self._numbers = itertools.count(1)
        self._thread = ThreadPoolExecutor(1)
        self._next_attempt = 0.0
        self._error = ""
        self._waited = bool(self.files())

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish in a thread during the block. At its end, make one more attempt.

        If the store has not failed, publish what earlier commands could not, unless another process has the run open.
        """
        with _lock(self.folder), self._thread:
            if files := self.files():
                self._numbers = itertools.count(int(files[-1].stem) + 1)
            try:
                yield
            finally:
                self.flush()
                if not self._error:
                    self._publish_other_runs()

    def put(self, call: LogCall, path: Path | None = None) -> None:
        """Write a call to disk, with a copy of the file or folder that it is about. The thread publishes it."""
        name = f"{next(self._numbers):08d}"
        partial = self.folder / f"{name}.partial"
        call = {"tracking_uri": store.recorded_uri(self.uri), "time": int(time.time() * 1000), **call}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path is not None:
                copy = Path(tempfile.mkdtemp(dir=self.folder), path.name)
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
                call["path"] = str(copy.relative_to(self.folder))
            partial.write_text(json.dumps(call), encoding="utf-8")
            partial.rename(self.folder / f"{name}.json")
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            store.warn(f"{self.folder}: cannot be written ({error.strerror or error}); lost: {call}"[:500])
        self._thread.submit(self._attempt)

    def flush(self) -> None:
        """Wait until the thread has made another attempt to publish, and printed why if that has failed."""

        def attempt() -> None:
            self._next_attempt, self._error = 0.0, ""
            self._attempt()

        self._thread.submit(attempt).result()

    def files(self) -> list[Path]:
        """The files of the calls that wait, in order."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def _attempt(self) -> None:
        """Publish what waits, unless an attempt has just failed."""
        if not self.files() or time.monotonic() < self._next_attempt:
            return
        try:
            self._publish()
            self._error = ""
        except Exception as error:
            reason = store.format_error(self.uri, error)
            if getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                reason += f"; if the run was deleted, `mlflow runs restore --run-id {self.run_id}` restores it"
            if not self._error:
                waiting = f"{len(self.files())} record(s) of run {self.run_id}, in {self.folder}"
                store.warn(f"{reason}; not logged yet: {waiting}; `dvc repro -sf report` tries again")
            self._error, self._waited, self._next_attempt = reason, True, time.monotonic() + _PAUSE

    def _publish(self) -> None:
        """Send what waits, in order; nothing if the run is in another store. Raises what MLflow raises."""
        client = store.connect(self.uri)
        files = self.files()
        for file in files:
            path = None
            try:
                call = json.loads(file.read_text(encoding="utf-8"))
                if call.pop("tracking_uri", "") != store.recorded_uri(self.uri):
                    return
                if "path" in call:
                    path = self.folder / call.pop("path")
                    path.stat()
            except (ValueError, OSError):  # the machine lost power
                store.warn(f"{file}: a record is damaged; skipped")
            else:
                send(client, self.run_id, call, path)
            file.unlink(missing_ok=True)
            if path is not None:
                shutil.rmtree(path.parent, ignore_errors=True)
        if self._waited:
            store.warn(f"logged {len(files)} record(s) of run {self.run_id} that waited in {self.folder}")
        self._waited = False

    def _publish_other_runs(self) -> None:
        for folder in sorted(self.folder.parent.glob("*/")):
            with suppress(OSError), _lock(folder, blocking=False):  # another process has the run open
                Spool(self.uri, folder.name)._attempt()


@contextmanager
def _lock(folder: Path, blocking: bool = True) -> Iterator[None]:
    """Keep other processes from publishing a run; afterwards remove its folder if nothing waits."""
    with FileLock(folder.with_suffix(".lock"), blocking=blocking) as lock:
        try:
            yield
        finally:
            if not list(folder.glob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
