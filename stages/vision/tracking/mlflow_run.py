"""The MLflow run of a model: `train` opens it, and `evaluate` and `report` resume it.

A search opens a parent run, and the runs of its trials are its children. A run is opened only in a store that answers.
If the store fails later, log calls wait in a spool; see `spool`.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, Tracking
from vision.pipeline.paths import ROOT, main_root
from vision.storage.arrays import Stats
from vision.tracking import provenance, store
from vision.tracking.run import Run, Sink
from vision.tracking.spool import Spool, last_errors, publish_all, report_unlogged, warn
from vision.tracking.system_metrics import MEMORY, sample_system_metrics
from vision.tracking.tensorboard import tensorboard_sink

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def training_run(
    params: Params, stats: Stats, tags: Mapping[str, str] | None = None, resume_from: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """Open a run for the block: FINISHED at its end, KILLED if it is interrupted, FAILED after another exception.

    The run gets the parameters of the model, the data, its provenance, and samples of the use of CPU, memory and GPU.
    It is named like the DVC experiment, or else `<model>-<Git commit>`. The tag `ended` says why it failed.

    Args:
        params: the parameters of all sections of params.yaml.
        stats: the statistics of the training data.
        tags: tags that the run gets in addition to its provenance.
        resume_from: the record of the run that an interrupted training opened, as in metrics/run.json. The run is
            continued and gets the epochs that it lacks. If it was deleted, a new run is opened.

    Raises:
        UserError: the MLflow store cannot be used at the start; nothing is raised if it fails later.
    """
    name = os.environ.get("DVC_EXP_NAME") or "-".join(filter(None, [params.model.name, provenance.commit()[:7]]))
    earlier = resume_from or {"mlflow": None, "tensorboard": None}
    sinks: list[Sink] = []
    record = folder = None
    with ExitStack() as stack:
        if params.tracking.enabled:
            old_id = earlier["mlflow"] and earlier["mlflow"]["run_id"]
            registration = _registration(params, stats)
            sink = _open_run(params, name, provenance.tags() | dict(tags or {}), old_id, registration)
            record = sink.record
            sinks.append(sink)
            stack.enter_context(_end_run(sink))
            stack.enter_context(sample_system_metrics(sink.log_metrics, sink.uri, sink.samples))
            if record["run_id"] != old_id:
                sink.log_inputs(params, stats)
        if params.tracking.tensorboard:
            folder = earlier["tensorboard"] or f"tensorboard/{name}-{uuid.uuid4().hex[:6]}"
            purge = folder == earlier["tensorboard"]
            sinks.append(stack.enter_context(tensorboard_sink(main_root(ROOT) / folder, purge)))
        yield Run(sinks, record, folder)


@contextmanager
def search_run(params: Params, run_id: str | None) -> Iterator[Run]:
    """Open the parent run of a search's trials, or continue the run `run_id`; it ends as in `training_run`."""
    if not params.tracking.enabled:
        yield Run([], None, None)
        return
    sink = _open_run(params, params.search.study, provenance.tags() | {"search.study": params.search.study}, run_id)
    with _end_run(sink):
        yield Run([sink], sink.record, None)


@contextmanager
def resumed_run(settings: Tracking, record: Mapping[str, Any]) -> Iterator[Run]:
    """Add to the run that metrics/run.json records; its status and duration stay.

    If the run is gone, a line on stderr says so, and MLflow gets nothing. If the store cannot be used, records wait.
    """
    mlflow = record["mlflow"] if settings.enabled else None
    folder = record["tensorboard"] if settings.tensorboard else None
    sinks: list[Sink] = []
    with ExitStack() as stack:
        if mlflow is not None and (sink := _resume_run(mlflow)):
            sinks.append(sink)
            stack.callback(sink.close)
        else:
            mlflow = None
        if folder is not None:
            sinks.append(stack.enter_context(tensorboard_sink(main_root(ROOT) / folder)))
        elif settings.tensorboard:
            lack = "the model was trained without tracking.tensorboard; nothing is written"
            print(f"TensorBoard: {lack} (`dvc repro -f train`)", file=sys.stderr, flush=True)
        yield Run(sinks, mlflow, folder)


@dataclass(frozen=True)
class Registration:
    """How a model is registered: under the name of the experiment, with these tags of the version."""

    experiment: str
    version_tags: Mapping[str, str]


@dataclass(frozen=True)
class MlflowSink:
    """Logs to an MLflow run; `Run` describes the methods.

    Attributes:
        uri: the tracking URI of the store.
        record: the part `mlflow` of metrics/run.json.
        spool: what sends to the run.
        registration: how `register_model` registers the model; None if it does not.
        logged_epochs: the epochs that an earlier process has logged.
        samples: the number of samples of the system metrics that the run has already.
    """

    uri: str
    record: dict[str, str]
    spool: Spool
    registration: Registration | None = None
    logged_epochs: Collection[int] = ()
    samples: int = 0

    def log_inputs(self, params: Params, stats: Stats) -> None:
        """Log the parameters that make the model, and the data."""
        unused = set(params.model.families()) - {params.model.family}
        used = params.model_dump(include={"seed", "preprocess", "model", "train"}, exclude={"model": unused})
        self.spool.put({"params": dict(_flatten(used))})
        digest = (provenance.data_hash() or stats.split_digest)[:36]  # MLflow's limit
        source = json.dumps({"uri": "data/processed"})
        self.spool.put({"dataset": "data/processed", "digest": digest, "source": source})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:  # noqa: D102
        if "train/loss" not in metrics or step not in self.logged_epochs:
            values = {name: float(value) for name, value in metrics.items()}
            self.spool.put({"metrics": values, "time": _now(), "step": step})

    def set_tags(self, tags: Mapping[str, object]) -> None:  # noqa: D102
        self.spool.put({"tags": dict(_flatten(tags))})

    def log_figure(self, name: str, figure: "Figure") -> None:  # noqa: D102
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.png")
            figure.savefig(path)
            self.log_artifact(path, "figures")

    def log_artifact(self, path: Path, folder: str | None) -> None:  # noqa: D102
        self.spool.put({"artifact": folder}, path)

    def log_model(self, save: Callable[[Path], None]) -> None:  # noqa: D102
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model")
            try:
                save(path)
            except Exception as error:  # models/ has the model all the same
                warn(f"the model cannot be exported and is not logged ({store.format_reason(self.uri, error)})")
            else:
                self.spool.put({"model": "model"}, path)

    def register_model(self, val_accuracy: float | None) -> None:  # noqa: D102
        if self.registration is not None:
            accuracy = {} if val_accuracy is None else {"val_accuracy": repr(val_accuracy)}
            tags = {**self.registration.version_tags, **accuracy}
            self.spool.put({"register": self.registration.experiment, "version_tags": tags})

    def close(self) -> None:
        """Publish what waits, and print what still waits, of all runs."""
        self.spool.publish()
        report_unlogged()


def _registration(params: Params, stats: Stats) -> Registration | None:
    if not params.tracking.registry:
        return None
    classes = json.dumps(stats.classes, ensure_ascii=False)
    if len(classes) > 1000:  # MLflow limits the length of tags
        classes = hashlib.sha256(classes.encode()).hexdigest()
    return Registration(params.tracking.experiment, {"classes": classes, "split_digest": stats.split_digest})


def _open_run(
    params: Params,
    name: str,
    tags: Mapping[str, str],
    run_id: str | None,
    registration: Registration | None = None,
) -> MlflowSink:
    """Open a run, or continue `run_id` if it is in this store and experiment.

    Raises:
        UserError: the store cannot be used, or does not accept what waits of the run.
    """
    uri = store.tracking_uri()
    with store.opening(uri):
        client = store.connect(uri)
        from mlflow.entities import RunTag

        experiment_id = store.get_experiment_id(client, params.tracking.experiment)
        publish_all(uri)
        old = store.find_run(client, run_id) if run_id else None
        continued = old is not None and old.info.experiment_id == experiment_id
        if run_id is None or not continued:
            run_id = client.create_run(experiment_id, tags=dict(tags), run_name=name).info.run_id
        record: dict[str, str] = {
            "run_id": run_id,
            "experiment_id": experiment_id,
            "tracking_uri": store.recorded_uri(uri),
            "page": store.run_page(uri, experiment_id, run_id),
            "name": name,
            "commit": tags.get("mlflow.source.git.commit", ""),
            "dirty": tags.get("mlflow.source.git.dirty", ""),
            "apply": tags.get("dvc.apply", ""),
        }
        spool = Spool(uri, run_id, client)
        epochs, samples = set(), 0
        if continued:
            if not spool.publish():
                reason = f"{spool.folder}: cannot be logged ({last_errors.get(run_id)})"
                raise UserError(f"{reason}; solve that, or set tracking.enabled: false in params.yaml")
            client.update_run(run_id, status="RUNNING", name=name)
            client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()])
            epochs = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
            samples = len(client.get_metric_history(run_id, MEMORY))
        return MlflowSink(uri, record, spool, registration, epochs, samples)


def _resume_run(record: dict[str, str]) -> MlflowSink | None:
    """The sink of a recorded run; None, with a line on stderr, if the run is gone."""
    current, recorded, run_id = store.tracking_uri(), record["tracking_uri"], record["run_id"]
    # The recorded URI lacks a password.
    uri = current if store.recorded_uri(current) == recorded else store.resolve_uri(recorded)
    sink = MlflowSink(uri, record, Spool(uri, run_id))
    started = time.monotonic()
    try:
        with store.request_timeouts():
            file = store.sqlite_path(uri)
            exists = (file is None or file.exists()) and store.find_run(store.connect(uri), run_id) is not None
            if exists:
                publish_all(uri)
    except Exception as error:
        sink.spool.pause(store.format_error(uri, error), time.monotonic() - started)
        return sink
    if exists:
        return sink
    restore = f"if it was deleted, `mlflow runs restore --run-id {run_id}` restores it"
    warn(f"run {run_id} is not in {store.public_uri(uri)}; {restore}; else `dvc repro -f train` opens a new run")
    report_unlogged()
    return None


@contextmanager
def _end_run(sink: MlflowSink) -> Iterator[None]:
    """End the run with the block; the tag `ended` has the reason if that is an exception."""
    status = "FINISHED"
    try:
        yield
    except BaseException as error:
        status, reason = "FAILED", str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            status, reason = "KILLED", "killed"
        sink.set_tags({"ended": reason})
        raise
    finally:
        sink.spool.put({"status": status, "time": _now()})
        sink.close()


def _now() -> int:
    """The time as MLflow has it, in ms."""
    return int(time.time() * 1000)


def _flatten(sections: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys joined with dots, values as in params.yaml."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
