"""Log calls of a run on their way to MLflow. What it does not accept waits on disk for the next command.

`unlogged/<run id>/` in the main checkout exists while something waits. It has a line of JSON for each call in
`records.jsonl`, in order, and copies of the files that calls are about. If a process is killed while it publishes, the
next one publishes some calls again, which has no effect; see `publisher`. Messages to the user name calls records.
"""

import json
import math
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from vision.pipeline.paths import ROOT, main_root
from vision.storage.atomic import atomic_write
from vision.tracking import store
from vision.tracking.publisher import LogCall, is_rejected, send

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MIN_PAUSE = 10.0
_PAUSE_FACTOR = 20
"""After a failed attempt the next one waits for this multiple of its time, so training loses at most 5%."""
_PUT_SECONDS = 2.0
"""How long `put` spends on what waits. The attempt that is under way then is completed."""

last_errors: dict[str, str] = {}
"""Why the last attempt of this process failed, by run ID."""


class Spool:
    """Publishes the log calls of one run in order, and raises nothing.

    `put` spends about two seconds on what waits. If nothing is left, it makes one attempt for its own call; otherwise
    that waits, too. After a failed attempt, it makes none for a while; see `pause`.

    Threads may share a spool. A file lock keeps two processes from publishing the same run at the same time, so
    the methods wait while another process publishes it, except `publish` with `wait=False`.
    """

    def __init__(self, uri: str, run_id: str, client: "MlflowClient | None" = None) -> None:
        """Without a client, connect at the first attempt."""
        self.folder = spool_folder() / run_id
        self._uri, self._run_id, self._client = uri, run_id, client
        self._file = self.folder / "records.jsonl"
        self._lock_file = self.folder.with_suffix(".lock")
        self._mutex = threading.RLock()
        self._next_attempt = -math.inf
        self._published = 0
        self._waiting = False

    def put(self, call: LogCall, path: Path | None = None) -> None:
        """Publish a call, after all that wait, or keep it with a copy of the file or folder that it is about."""
        with self._mutex:
            ready = time.monotonic() >= self._next_attempt and self.publish(_PUT_SECONDS)
            if ready and self._attempt(call, path):
                return
            try:
                self._append(call, path)
            except OSError as error:
                warn(f"{self.folder}: cannot be written ({error.strerror or error}); lost: {call}"[:500])
            if not self._waiting and self._run_id in last_errors:
                warn(f"{last_errors[self._run_id]}; records wait in {self.folder} for the next command")
                self._waiting = True

    def publish(self, seconds: float = math.inf, wait: bool = True) -> bool:
        """Publish what waits, for about so many seconds; return whether nothing is left.

        Without `wait`, nothing is done if another process is publishing the run.
        """
        with self._mutex:
            if not self._file.exists():
                return True
            try:
                with FileLock(self._lock_file, blocking=wait):
                    return self._publish_lines(_read_lines(self._file), seconds)
            except Timeout:
                return False
            except OSError as error:
                self.pause(f"{self.folder}: {error.strerror or error}", 0)
                return False

    def pause(self, reason: str, seconds: float) -> None:
        """Make no attempt for a while, because one has failed after so many seconds."""
        last_errors[self._run_id] = reason
        self._next_attempt = time.monotonic() + max(_MIN_PAUSE, _PAUSE_FACTOR * seconds)

    def _append(self, call: LogCall, path: Path | None) -> None:
        call = {"tracking_uri": store.recorded_uri(self._uri), **call}
        with FileLock(self._lock_file):
            self.folder.mkdir(parents=True, exist_ok=True)
            if path is not None:
                copy = Path(tempfile.mkdtemp(dir=self.folder), path.name)
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
                call["path"] = str(copy.relative_to(self.folder))
            with self._file.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(call)}")  # on a new line even if the last one is damaged

    def _publish_lines(self, lines: list[str], seconds: float) -> bool:
        started, count = time.monotonic(), 0
        while count < len(lines) and self._attempt_line(lines[count]):
            count += 1
            if time.monotonic() - started > seconds:
                break
        self._published += count
        if count < len(lines):
            if count:
                with atomic_write(self._file) as temporary:
                    temporary.write_text("\n".join(lines[count:]), encoding="utf-8")
            return False
        if self._published:
            warn(f"logged {count_records(self._published)} of run {self._run_id} that waited in {self.folder}")
        self._published, self._waiting = 0, False
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock_file.unlink(missing_ok=True)  # a process that waits for the file notices, and creates it again
        return True

    def _attempt_line(self, line: str) -> bool:
        try:
            call = json.loads(line)
            del call["tracking_uri"]
            path = self.folder / call.pop("path") if "path" in call else None
            if path is not None:
                path.stat()
        except (ValueError, KeyError, OSError):  # the disk was full, or the machine lost power
            warn(f"{self._file}: a record is damaged; skipped")
            return True
        return self._attempt(call, path)

    def _attempt(self, call: LogCall, path: Path | None) -> bool:
        """Send a call; return whether it needs no further attempt."""
        started = time.monotonic()
        try:
            with store.request_timeouts():
                self._client = self._client or store.connect(self._uri)
                try:
                    send(self._client, self._run_id, call, path)
                except Exception as error:
                    if not is_rejected(self._client, self._run_id, error):
                        raise
                    reason = store.format_error(self._uri, error)
                    print(f"MLflow rejected a record of run {self._run_id}; skipped. {reason}", file=sys.stderr)
        except Exception as error:
            reason = store.format_error(self._uri, error)
            if getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                reason += f"; if the run was deleted, `mlflow runs restore --run-id {self._run_id}` restores it"
            self.pause(reason, time.monotonic() - started)
            return False
        last_errors.pop(self._run_id, None)
        return True


def spool_folder() -> Path:
    """The folder of all spools, each named like its run."""
    return main_root(ROOT) / "unlogged"


def publish_all(uri: str) -> None:
    """Publish what earlier commands could not, of all runs in this store."""
    for run_id, tracking_uri, _ in _list_spools():
        started = time.monotonic()
        same_store = tracking_uri == store.recorded_uri(uri)
        # If an attempt was slow, each further run would wait for this store as long.
        if same_store and not Spool(uri, run_id).publish(wait=False) and time.monotonic() - started > 1:
            return


def report_unlogged() -> None:
    """Print which runs have records that wait, if any do."""
    waiting = []
    for run_id, _, count in _list_spools():
        reason = f" ({last_errors[run_id]})" if run_id in last_errors else ""
        waiting.append(f"{count_records(count)} of run {run_id}{reason}")
    if waiting:
        warn(f"not logged yet: {', '.join(waiting)}; in {spool_folder()}; `dvc repro -sf report` tries again")


def count_records(count: int) -> str:
    """The number of records in words."""
    return "1 record" if count == 1 else f"{count} records"


def warn(line: str) -> None:
    """Print a line about MLflow on stderr."""
    print(f"MLflow: {line}", file=sys.stderr, flush=True)


def _list_spools() -> list[tuple[str, str, int]]:
    """Run ID, recorded tracking URI and number of records of each spool."""
    spools = []
    for file in sorted(spool_folder().glob("*/records.jsonl")):
        lines = _read_lines(file)
        if uri := re.search(r'"tracking_uri": "(.*?)"', "".join(lines)):  # also if a line is damaged
            spools.append((file.parent.name, uri[1], len(lines)))
    return spools


def _read_lines(file: Path) -> list[str]:
    """The lines of a file; none if another process has just published and deleted it."""
    try:
        return [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    except FileNotFoundError:
        return []
