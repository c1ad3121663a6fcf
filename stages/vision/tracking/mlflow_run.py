"""What a stage tells MLflow: one MLflow run for each trained model, opened by `train`, resumed by later stages.

A run is opened only in a store that answers. From then on the store may come and go: what it does not take is kept in
`unlogged/`, an outbox for each run, and every later command that opens or resumes a run there logs it.
"""

import contextlib
import itertools
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision.pipeline.errors import UserError
from vision.pipeline.params import Params, Tracking
from vision.pipeline.paths import ROOT, main_root
from vision.pipeline.stage import importing
from vision.storage.arrays import Stats
from vision.tracking import provenance, store, tensorboard
from vision.tracking.delivery import Delivery, now
from vision.tracking.outbox import Outbox, count_records, outboxes, tell
from vision.tracking.run import Run, epoch_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from torch import nn

_MEMORY = "system_memory_usage_megabytes"
"""Of MLflow's samples of the machine; all of them have it."""


@contextmanager
def training_run(
    params: Params, stats: Stats, tags: Mapping[str, str] | None = None, before: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """Open a run for the block: FINISHED when it ends well, KILLED when interrupted, FAILED otherwise.

    It starts with the parameters that make the model, the data, and where both come from. It is called like the DVC
    experiment where there is one, else `<model name>-<Git commit>`. Its tag `ended` says why it ended. While it is
    open, the use of CPU, memory and GPU is sampled. TensorBoard's files go beside it, if asked for. A training
    that goes on goes on with its run, if that is still there: told its epochs anew, it takes those that it lacks.

    Args:
        params: the whole of params.yaml.
        stats: of the data.
        tags: what else is to be told of the run.
        before: the record of the run that a process opened that was killed while it trained the same.

    Raises:
        UserError: the MLflow store cannot be used when the block begins; nothing that it does later is raised.
    """
    name = os.environ.get("DVC_EXP_NAME") or "-".join(filter(None, [params.model.name, provenance.commit()[:7]]))
    before = before or Run().record
    folder = (before["tensorboard"] or tensorboard.new_folder(name)) if params.tracking.tensorboard else None
    with (
        _mlflow_run(params, stats, name, tags or {}, before["mlflow"]) as run,
        tensorboard.beside(run, main_root(ROOT), folder, anew=folder == before["tensorboard"]) as both,
    ):
        yield both


@contextmanager
def search_run(params: Params, run_id: str | None) -> Iterator[Run]:
    """Open the run that stands above those of a search's trials, or go on with it; it ends as `training_run` does.

    Args:
        params: the whole of params.yaml.
        run_id: of the run that an earlier process opened for the same search, if there is one.

    Raises:
        UserError: the MLflow store cannot be used when the block begins.
    """
    if not params.tracking.enabled:
        yield Run()
        return
    uri = store.tracking_uri()
    with store.opening(uri):
        client = store.client(uri)
        experiment_id = store.experiment_id(client, params.tracking.experiment)
        _deliver_kept(uri)
        if run_id is None or not store.is_there(client, run_id):
            tags = provenance.tags() | {"search.study": params.search.study}
            run_id = client.create_run(experiment_id, tags=tags, run_name=params.search.study).info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
    with _concluded(_MlflowRun(uri, _record(uri, experiment_id, run_id))) as run:
        yield run


@contextmanager
def resumed_run(settings: Tracking, record: Mapping[str, Any]) -> Iterator[Run]:
    """Add to the run that `training_run` recorded; its status and duration stay those of the training.

    A run that is gone is no reason to train again: a line on stderr says so, and the block runs unrecorded. Nor is a
    store that cannot be used: what is logged is kept for later.

    Args:
        settings: the section of params.yaml.
        record: what metrics/run.json holds.
    """
    folder = record["tensorboard"] if settings.tensorboard else None
    if settings.tensorboard and folder is None:
        lack = "the model was trained without tracking.tensorboard; nothing is written"
        print(f"TensorBoard: {lack} (`dvc repro -f train`)", file=sys.stderr, flush=True)
    with (
        _resumed_mlflow_run(settings, record["mlflow"]) as run,
        tensorboard.beside(run, main_root(ROOT), folder) as both,
    ):
        yield both


@contextmanager
def _mlflow_run(
    params: Params, stats: Stats, name: str, tags: Mapping[str, str], before: dict[str, str] | None
) -> Iterator[Run]:
    if not params.tracking.enabled:
        yield Run()
        return
    uri = store.tracking_uri()
    with store.opening(uri):
        run, samples = _start(uri, params, name, tags, before)
    with _concluded(run), _sampled(uri, run, samples):
        if before is None or before["run_id"] != run.record["mlflow"]["run_id"]:
            run.describe(params, stats)
        yield run


@contextmanager
def _resumed_mlflow_run(settings: Tracking, record: dict[str, str] | None) -> Iterator[Run]:
    if not settings.enabled or record is None:
        yield Run()
        return
    current = store.tracking_uri()  # which may have the password
    uri = current if store.recorded(current) == record["tracking_uri"] else store.resolved(record["tracking_uri"])
    started = time.monotonic()
    gone = problem = None
    try:
        with store.patience(**store.QUICK):
            if (gone := _gone(uri, record["run_id"])) is None:
                _deliver_kept(uri)
    except Exception as error:
        problem = error
    if gone is not None:
        tell(f"{gone}; nothing is recorded (`dvc repro -f train` opens a new run)")
        _tell_unlogged()
        yield Run()
        return
    run = _MlflowRun(uri, record, has_model=True)
    if problem is not None:
        run.pause(problem, time.monotonic() - started)
    try:
        yield run
    finally:
        run.close()


class _MlflowRun(Run):
    epochs: Collection[int] = ()
    """Those that the run already has."""

    def __init__(
        self,
        uri: str,
        record: dict[str, str],
        registry: str | None = None,
        has_model: bool = False,
    ) -> None:
        """`registry` is the name that a model of this run is registered under; None is not at all."""
        super().__init__(record)
        run_id = record["run_id"]
        self._uri = uri
        self._outbox = Outbox(_unlogged() / run_id, {"tracking_uri": record["tracking_uri"]}, Delivery(uri, run_id))
        self._registry = registry
        self._has_model = has_model
        self._figures: list[tuple[str, float, int, int]] = []

    def describe(self, params: Params, stats: Stats) -> None:
        others = {"convnet", "plain_cnn", "torchvision"} - {
            params.model.family
        }  # sections that say nothing of this model
        made_with = params.model_dump(include={"seed", "preprocess", "model", "train"}, exclude={"model": others})
        self._outbox.put({"call": "log", "params": dict(_flat(made_with))})
        digest = (provenance.data_hash() or stats.split_digest)[:36]  # as many characters as MLflow keeps
        where = json.dumps({"uri": "data/processed"})
        self._outbox.put({"call": "data", "name": "data/processed", "digest": digest, "source": where})

    def log_epoch(self, row: Mapping[str, float | None]) -> None:
        if (epoch := int(row["epoch"] or 0)) not in self.epochs:
            self._outbox.put({"call": "log", "metrics": _metrics(epoch_metrics(row), epoch)})

    def log_metrics(self, figures: Mapping[str, float], step: int = 0) -> None:
        metrics = _metrics(figures, step)
        self._figures += metrics
        self._outbox.put({"call": "log", "metrics": metrics, "of_model": self._has_model})

    def log_sample(self, figures: Mapping[str, float], step: int) -> None:
        self._outbox.put({"call": "log", "metrics": _metrics(figures, step)})

    def set_tags(self, sections: Mapping[str, object]) -> None:
        self._outbox.put({"call": "log", "tags": dict(_flat(sections))})

    def describe_as(self, text: str) -> None:
        self.set_tags({"mlflow.note.content": text})

    def log_figure(self, name: str, figure: "Figure") -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{name}.png")
            figure.savefig(path)
            self.log_artifact(path, "figures")

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._outbox.put({"call": "file", "folder": folder}, path)

    def log_model(self, model: "nn.Module", example: np.ndarray, classes: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model")
            try:
                _save_model(path, model, example, classes)
            except Exception as error:  # it is in models/ all the same
                tell(f"the model cannot be exported, and is not logged ({store.reason(self._uri, error)})")
                return
            self._outbox.put({"call": "model", "metrics": self._figures}, path)
        self._has_model = True
        self._classes = json.dumps(list(classes), ensure_ascii=False)

    def register_model(self, val_accuracy: float | None) -> None:
        if self._registry is not None and self._has_model:
            entry = {"name": self._registry, "classes": self._classes, "val_accuracy": val_accuracy}
            self._outbox.put({"call": "register", **entry})

    def end(self, status: str) -> None:
        self._outbox.put({"call": "end", "status": status, "time": now()})

    def pause(self, problem: Exception, seconds: float) -> None:
        """Try nothing for a while, because of a problem that took so many seconds to show."""
        self._outbox.pause(store.failure(self._uri, problem), seconds)

    def deliver(self) -> None:
        """Log what an earlier process could not.

        Raises:
            UserError: it cannot be logged now either.
        """
        if not self._outbox.deliver():
            why, otherwise = self._outbox.reason, "or set tracking.enabled: false in params.yaml"
            raise UserError(f"{self._outbox.folder}: cannot be logged ({why}); put that right, {otherwise}")

    def close(self) -> None:
        """Log what can be logged now, and say what is still unlogged, of all runs."""
        self._outbox.close()
        _tell_unlogged()


@contextmanager
def _concluded(run: _MlflowRun) -> Iterator[_MlflowRun]:
    """End the run with the block, as the block ends; its tag `ended` says why where that is not well."""
    try:
        yield run
    except BaseException as error:
        status, reason = "FAILED", str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            status, reason = "KILLED", "killed"
        run.set_tags({"ended": reason})
        run.end(status)
        raise
    else:
        run.end("FINISHED")
    finally:
        run.close()


@contextmanager
def _sampled(uri: str, run: _MlflowRun, samples: int) -> Iterator[None]:
    """While the block runs, log the use of CPU, memory and GPU now and then, after so many samples of earlier."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # Its own thread would end, and drop what it has, at the first call that fails.
    monitor = SystemMetricsMonitor(run.record["mlflow"]["run_id"], tracking_uri=uri)
    over = threading.Event()

    def sample() -> None:
        step = samples
        for taken in itertools.count(1):
            if over.wait(monitor.sampling_interval):
                return
            with contextlib.suppress(Exception):  # a sample that cannot be taken is not missed
                monitor.collect_metrics()
                if taken % monitor.samples_before_logging == 0:
                    found = monitor.aggregate_metrics()
                    run.log_sample({f"system/{name}": value for name, value in found.items()}, step)
                    for source in monitor.monitors:
                        source.clear_metrics()
                    step += 1

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _start(
    uri: str, params: Params, name: str, tags: Mapping[str, str], before: dict[str, str] | None
) -> tuple[_MlflowRun, int]:
    """Open a run, or again the one before, and say how often the use of the machine was sampled in it."""
    client = store.client(uri)
    from mlflow.entities import RunTag

    experiment_id = store.experiment_id(client, params.tracking.experiment)
    _deliver_kept(uri)
    all_tags = {**provenance.tags(), **tags}
    registry = params.tracking.experiment if params.tracking.registry else None
    told = {"commit": "mlflow.source.git.commit", "dirty": "mlflow.source.git.dirty", "apply": "dvc.apply"}
    facts = {"name": name, **{fact: all_tags.get(tag, "") for fact, tag in told.items()}}
    if before is None or not _is_here(client, uri, experiment_id, before):
        run_id = client.create_run(experiment_id, tags=all_tags, run_name=name).info.run_id
        return _MlflowRun(uri, _record(uri, experiment_id, run_id) | facts, registry), 0
    run_id = before["run_id"]
    run = _MlflowRun(uri, _record(uri, experiment_id, run_id) | facts, registry)
    run.deliver()
    client.update_run(run_id, status="RUNNING", name=name)
    client.log_batch(run_id, tags=[RunTag(*item) for item in all_tags.items()])
    run.epochs = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
    return run, len(client.get_metric_history(run_id, f"system/{_MEMORY}"))


def _record(uri: str, experiment_id: str, run_id: str) -> dict[str, str]:
    """What finds a run again."""
    page = store.page(uri, experiment_id, run_id)
    return {"run_id": run_id, "experiment_id": experiment_id, "tracking_uri": store.recorded(uri), "page": page}


def _is_here(client: "MlflowClient", uri: str, experiment_id: str, record: Mapping[str, str]) -> bool:
    """Whether a recorded run is in this store and experiment."""
    same_place = (record["tracking_uri"], record["experiment_id"]) == (store.recorded(uri), experiment_id)
    return same_place and store.is_there(client, record["run_id"])


def _gone(uri: str, run_id: str) -> str | None:
    """Why there is no such run any more, if there is none."""
    if (file := store.database(uri)) is not None and not file.exists():
        return f"{file}, with run {run_id}, is not here"
    client = store.client(uri)
    from mlflow import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return f"run {run_id} is no longer in {store.public(uri)}"
    if run.info.lifecycle_stage == "deleted":
        return f"run {run_id} was deleted (`mlflow runs restore --run-id {run_id}` brings it back)"
    return None


def _unlogged() -> Path:
    """Where the outboxes are, each called like its run."""
    return main_root(ROOT) / "unlogged"


def _tell_unlogged() -> None:
    """Say what is kept still, if anything is."""
    kept = outboxes(_unlogged())
    if left := [f"{count_records(count)} of run {path.name} ({about['reason']})" for path, about, count in kept]:
        tell(f"still unlogged: {', '.join(left)}; in {_unlogged()}; `dvc repro -sf report` tries again")


def _deliver_kept(uri: str) -> None:
    """Log what earlier commands could not, of all runs in this store."""
    for folder, about, _ in outboxes(_unlogged()):
        if about["tracking_uri"] != store.recorded(uri):
            continue
        started = time.monotonic()
        try:
            outbox = Outbox(folder, about, Delivery(uri, folder.name), wait=False)
        except BlockingIOError:  # another process logs to this run
            continue
        delivered = outbox.deliver()
        outbox.close()
        if not delivered and time.monotonic() - started > 1:  # a store that lets one wait would let all of them wait
            return


def _save_model(path: Path, model: "nn.Module", example: np.ndarray, classes: Sequence[str]) -> None:
    with importing():
        import mlflow.pytorch
        import torch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
    # torch warns of weights that are not on a CPU; these are.
    warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
    mlflow.pytorch.save_model(
        model,
        path,
        serialization_format="pt2",  # a graph, not a pickle
        signature=ModelSignature(Schema([images]), Schema([probabilities])),
        input_example=np.array(example[:2]),  # a batch of one would be exported as a constant
        pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],  # guessing them takes long
        metadata={"classes": list(classes)},
    )


def _metrics(figures: Mapping[str, float], step: int) -> list[tuple[str, float, int, int]]:
    """Figures as a record has them."""
    return [(name, float(value), now(), step) for name, value in figures.items()]


def _flat(sections: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys joined with dots, values as params.yaml writes them."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
