"""Log calls on their way to MLflow: written to disk at once, published from there by a thread.

`unlogged/<run ID>/` in the main checkout has a numbered JSON file for each call of a run, and a copy of the file that
the call is about. What is published is deleted. What a process leaves there, because the store failed or because it
was killed, is published by the next command that uses the store. A call that is published twice, because the process
was killed before it could delete it, has no effect; see `send`. Messages to the user name calls records.
"""

import itertools
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from vision.pipeline.messages import warn
from vision.pipeline.paths import ROOT, main_root
from vision.storage.atomic import atomic_write
from vision.tracking import store
from vision.tracking.registry import find_model, log_model, log_model_card, register

LogCall = dict[str, Any]
"""A call that logs something to a run, as JSON; `_send` lists the kinds."""

_PAUSE = 10.0  # seconds after a failed attempt without another one


class Spool:
    """The log calls of one run, which threads may share. Only one process at a time has a run open."""

    def __init__(self, uri: str, run_id: str) -> None:
        """For a run in the store `uri`."""
        self.uri, self.run_id = uri, run_id
        self.folder = main_root(ROOT) / "unlogged" / run_id
        self._numbers = itertools.count(1)
        self._thread = ThreadPoolExecutor(1)
        self._next_attempt = 0.0  # stays 0 unless an attempt has failed
        self._waited = bool(self.files())

    @contextmanager
    def publishing(self, wait: bool = True) -> Iterator[None]:
        """Publish in a thread during the block. At its end, make one more attempt.

        Args:
            wait: wait while another process has the run open, and at the end, if the store has not failed, publish what
                earlier commands could not. Otherwise another process raises an OSError.
        """
        with FileLock(self.folder.with_suffix(".lock"), blocking=wait) as lock, self._thread:
            if files := self.files():
                self._numbers = itertools.count(int(files[-1].stem) + 1)
            try:
                yield
            finally:
                self.flush()
                if not self.files():
                    shutil.rmtree(self.folder, ignore_errors=True)
                    Path(lock.lock_file).unlink(missing_ok=True)
                if wait and not self._next_attempt:
                    for folder in sorted(self.folder.parent.glob("*/")):
                        with suppress(OSError), Spool(self.uri, folder.name).publishing(wait=False):
                            pass

    def put(self, call: LogCall, name: str = "", write: Callable[[Path], object] | None = None) -> None:
        """Write a call to disk, from where the thread publishes it.

        Args:
            call: what to log.
            name: of the file or folder that the call is about.
            write: writes this file or folder to a path. After an OSError the call is lost; others are raised.
        """
        call = {"tracking_uri": store.recorded_uri(self.uri), "time": int(time.time() * 1000), **call}
        try:
            with atomic_write(self.folder / f"{next(self._numbers):08d}.json") as partial:
                if write:
                    path = Path(tempfile.mkdtemp(dir=self.folder), name)
                    write(path)
                    call["path"] = str(path.relative_to(self.folder))
                partial.write_text(json.dumps(call), encoding="utf-8")
        except OSError as error:
            warn("MLflow", f"{self.folder}: cannot be written ({error.strerror or error}); lost: {call}"[:500])
        self._thread.submit(self._attempt)

    def flush(self) -> None:
        """Wait until the thread has made another attempt to publish, and printed why if that has failed."""
        self._thread.submit(self._attempt, now=True).result()

    def files(self) -> list[Path]:
        """The files of the calls that wait, in order."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def _attempt(self, now: bool = False) -> None:
        """Publish what waits; unless `now`, not if an attempt has just failed."""
        if now:
            self._next_attempt = 0.0
        if not self.files() or time.monotonic() < self._next_attempt:
            return
        try:
            self._publish()
            self._next_attempt = 0.0
        except Exception as error:
            if not self._next_attempt:
                reason = store.format_error(self.uri, error)
                if getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                    reason += f"; if the run was deleted, `mlflow runs restore --run-id {self.run_id}` restores it"
                waiting = f"{len(self.files())} record(s) of run {self.run_id}, in {self.folder}"
                warn("MLflow", f"{reason}; not logged yet: {waiting}; `dvc repro -sf report` tries again")
            self._waited, self._next_attempt = True, time.monotonic() + _PAUSE

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
                warn("MLflow", f"{file}: a record is damaged; skipped")
            else:
                send(client, self.run_id, call, path)
            file.unlink(missing_ok=True)
            if path is not None:
                shutil.rmtree(path.parent, ignore_errors=True)
        if self._waited:
            warn("MLflow", f"logged {len(files)} record(s) of run {self.run_id} that waited in {self.folder}")
        self._waited = False


def send(client: MlflowClient, run_id: str, call: LogCall, path: Path | None) -> None:
    """Send a call to a run; `path` is the file or folder of an artifact or model. Raises what MLflow raises.

    Sending it twice has the same effect as sending it once: MLflow stores a metric of the same name, value, step and
    time once; tags and files replace those of the same name; a run has one logged model, with one version in the
    registry. A call that MLflow will never accept is skipped, with a line on stderr.
    """
    try:
        _send(client, run_id, call, path)
    except MlflowException as error:
        if re.search("IntegrityError|UniqueViolation", str(error)):
            _send(client, run_id, call, path)  # another process has added the same row at the same moment
        elif error.error_code == "INVALID_PARAMETER_VALUE" and client.get_run(run_id).info.lifecycle_stage == "active":
            reason = store.format_error(client.tracking_uri, error)
            warn("MLflow", f"rejected a record of run {run_id}; skipped ({reason})")
        else:
            raise


def _send(client: MlflowClient, run_id: str, call: LogCall, path: Path | None) -> None:
    match call:
        case {"metrics": metrics, "time": time, "step": step}:
            # Without a step they are summary values of the run and of its logged model.
            model_id = find_model(client, run_id) if step is None else None
            found = [Metric(name, value, time, step or 0, model_id=model_id) for name, value in metrics.items()]
            client.log_batch(run_id, metrics=found)
        case {"params": params}:
            client.log_batch(run_id, params=[Param(*item) for item in params.items()])
        case {"tags": tags}:
            client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
        case {"dataset": name, "digest": digest}:
            dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": name}))
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        case {"artifact": folder}:
            client.log_artifact(run_id, str(path), folder)
        case {"model": name} if path:
            log_model(client, run_id, name, path)
        case {"register": tags}:
            # Without a model, its export has failed, or the user has deleted it.
            if model_id := find_model(client, run_id):
                experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
                register(client, experiment.name, model_id, tags)
        case {"model_card": text}:
            if model_id := find_model(client, run_id):
                log_model_card(client, model_id, text)
        case {"status": status, "time": time}:
            client.set_terminated(run_id, status, time)
        case _:
            raise ValueError(f"unknown record: {call}")
