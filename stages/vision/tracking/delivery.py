"""What each record of an outbox does to its run in MLflow; doing it twice leaves the run as doing it once.

MLflow takes a metric of one name, value, step and time once, tags and files replace others of their name, and of a run
there is one model, in one version of the registry.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vision.tracking import store
from vision.tracking.outbox import Record, Refused, Unsent
from vision.tracking.registry import register

if TYPE_CHECKING:
    from mlflow import MlflowClient

_UPLOAD = {"server": 60, "lock": 5}


class Delivery:
    """Sends the records of one run to its store: `{"call": "log", ...}` calls `log` with the rest as arguments."""

    def __init__(self, uri: str, run_id: str) -> None:
        """Reach nothing yet."""
        self._uri = uri
        self._run = run_id
        self._calls: dict[str, Callable[..., None]] = {
            "log": self._log,
            "data": self._data,
            "file": self._file,
            "model": self._model,
            "register": self._register,
            "end": self._end,
        }
        self._connected: MlflowClient | None = None
        self._known_model: str | None = None

    def __call__(self, record: Record, payload: Path | None) -> None:
        """Do what the record says.

        Raises:
            Unsent: the store does not answer, or not as it should.
            Refused: it is there, and so is the run, but the record is not valid.
        """
        arguments = {name: value for name, value in record.items() if name != "call"}
        if payload is not None:
            arguments["path"] = payload
        try:
            with store.patience(**store.QUICK):
                self._calls[record["call"]](**arguments)
        except Exception as error:
            raise self._judged(error) from None

    def _judged(self, error: Exception) -> Unsent | Refused:
        from mlflow import MlflowException

        code = error.error_code if isinstance(error, MlflowException) else ""
        why = store.failure(self._uri, error)
        if code not in ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"):
            return Unsent(why)
        try:
            with store.patience(**store.QUICK):
                there = store.is_there(self._client, self._run)
        except Exception:
            return Unsent(why)
        if not there:
            return Unsent(f"{why}; `mlflow runs restore --run-id {self._run}` brings a deleted run back")
        return Refused(why) if code == "INVALID_PARAMETER_VALUE" else Unsent(why)

    @property
    def _client(self) -> "MlflowClient":
        if self._connected is None:
            self._connected = store.client(self._uri)
        return self._connected

    def _log(
        self,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        of_model: bool = False,
    ) -> None:
        """`metrics` are names, values, times in ms and steps; those `of_model` are its figures too, if there is one."""
        from mlflow.entities import Metric, Param, RunTag

        model_id = self._model_id() if of_model else None
        self._client.log_batch(
            self._run,
            [Metric(*metric, model_id=model_id) for metric in metrics],
            [Param(*item) for item in (params or {}).items()],
            [RunTag(*item) for item in (tags or {}).items()],
        )

    def _data(self, name: str, digest: str, source: str) -> None:
        from mlflow import MlflowException
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name, digest, source_type="local", source=source)
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
        try:
            self._client.log_inputs(self._run, inputs)
        except MlflowException as error:
            if not re.search("IntegrityError|UniqueViolation", str(error)):
                raise
            self._client.log_inputs(self._run, inputs)  # another run has just entered the same data

    def _file(self, path: Path, folder: str | None) -> None:
        self._client.get_run(self._run)  # one that does not answer is found out before the patience is long
        with store.patience(**_UPLOAD):
            self._client.log_artifact(self._run, str(path), folder)

    def _model(self, path: Path, metrics: Sequence[tuple[str, float, int, int]]) -> None:
        """Log a saved model; `metrics`, of the run, are its figures too."""
        from mlflow.entities import LoggedModelOutput

        run = self._client.get_run(self._run)
        if (model_id := self._model_id()) is None:
            tags = {
                name: tag for name, tag in run.data.tags.items() if name.startswith(("mlflow.source", "mlflow.user"))
            }
            made = self._client.create_logged_model(run.info.experiment_id, "model", self._run, tags, run.data.params)
            self._known_model = model_id = made.model_id
        if run.outputs is None or model_id not in [output.model_id for output in run.outputs.model_outputs]:
            self._client.log_outputs(self._run, [LoggedModelOutput(model_id, step=0)])
        described = yaml.safe_load((path / "MLmodel").read_text(encoding="utf-8"))
        described |= {"run_id": self._run, "model_id": model_id, "model_uuid": model_id}
        described["artifact_path"] = self._client.get_logged_model(model_id).artifact_location
        (path / "MLmodel").write_text(yaml.safe_dump(described), encoding="utf-8")
        with store.patience(**_UPLOAD):
            self._client.log_model_artifacts(model_id, str(path))
        self._client.finalize_logged_model(model_id, "READY")
        if metrics:
            self._log(metrics, of_model=True)

    def _register(self, name: str, classes: str, val_accuracy: float | None) -> None:
        import mlflow

        if (model_id := self._model_id()) is not None:  # the user may have deleted it
            mlflow.set_tracking_uri(self._uri)
            register(self._client, name, model_id, classes, val_accuracy)

    def _end(self, status: str, time: int) -> None:
        self._client.set_terminated(self._run, status, time)

    def _model_id(self) -> str | None:
        """The model of the run."""
        if self._known_model is None:
            experiment = self._client.get_run(self._run).info.experiment_id
            models = self._client.search_logged_models([experiment], f"source_run_id = '{self._run}'")
            self._known_model = models[0].model_id if models else None
        return self._known_model


def now() -> int:
    """The time as MLflow has it, in milliseconds."""
    return int(time.time() * 1000)
