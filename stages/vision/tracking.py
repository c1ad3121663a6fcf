"""What a stage tells MLflow: one MLflow run for each trained model, opened by `train`, resumed by later stages.

MLflow takes seconds to import, so it is imported when a run is opened and not at all when tracking is off.
"""

import contextlib
import fcntl
import getpass
import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from vision import events
from vision.arrays import Stats, replaced_file
from vision.params import Params, Tracking
from vision.registry import register
from vision.run import Run, epoch_metrics
from vision.stage import ROOT, UserError, main_root

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from torch import nn

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the address as the user gave it, with the password
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # whatever matters is raised as well; log lines would come with tracebacks
}
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
_SQLITE = "sqlite:///"


@contextmanager
def training_run(
    params: Params, stats: Stats, tags: Mapping[str, str] | None = None, before: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """Open a run for the block: FINISHED when it ends well, KILLED when interrupted, FAILED otherwise.

    It starts with the parameters that make the model, the data, and where both come from. It is called like the DVC
    experiment where there is one, else `<model name>-<Git commit>`. Its tag `ended` says why it ended. While it is
    open, MLflow samples the use of CPU, memory and GPU. TensorBoard's files go beside it, if asked for. A training
    that goes on goes on with its run, if that is still there: told its epochs anew, it takes those that it lacks.

    Args:
        params: the whole of params.yaml.
        stats: of the data.
        tags: what else is to be told of the run.
        before: the record of the run that a process opened that was killed while it trained the same.

    Raises:
        UserError: the MLflow store cannot be used, or stops answering.
    """
    name = os.environ.get("DVC_EXP_NAME") or "-".join(filter(None, [params.model.name, _git("rev-parse", "HEAD")[:7]]))
    before = before or Run().record
    folder = (before["tensorboard"] or events.new_folder(name)) if params.tracking.tensorboard else None
    with (
        _mlflow_run(params, stats, name, tags or {}, before["mlflow"]) as run,
        events.beside(run, main_root(ROOT), folder, anew=folder == before["tensorboard"]) as both,
    ):
        yield both


@contextmanager
def search_run(params: Params, run_id: str | None) -> Iterator[Run]:
    """Open the run that stands above those of a search's trials, or go on with it; it ends as `training_run` does.

    Args:
        params: the whole of params.yaml.
        run_id: of the run that an earlier process opened for the same search, if there is one.

    Raises:
        UserError: the MLflow store cannot be used, or stops answering.
    """
    if not params.tracking.enabled:
        yield Run()
        return
    uri = _tracking_uri()
    with _opening(uri):
        client = _client(uri)
        experiment_id = _experiment_id(client, params.tracking.experiment)
        if run_id is None or not _is_there(client, run_id):
            tags = _tags(_git("rev-parse", "HEAD")) | {"search.study": params.search.study}
            run_id = client.create_run(experiment_id, tags=tags, run_name=params.search.study).info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
    run = _MlflowRun(client, _record(uri, experiment_id, run_id))
    with _concluded(uri, run, lambda status: client.set_terminated(run_id, status)):
        yield run


@contextmanager
def resumed_run(settings: Tracking, record: Mapping[str, Any]) -> Iterator[Run]:
    """Add to the run that `training_run` recorded; its status and duration stay those of the training.

    A run that is gone is no reason to train again: a line on stderr says so, and the block runs unrecorded.

    Args:
        settings: the section of params.yaml.
        record: what metrics/run.json holds.

    Raises:
        UserError: the MLflow store cannot be used, or stops answering.
    """
    folder = record["tensorboard"] if settings.tensorboard else None
    if settings.tensorboard and folder is None:
        lack = "the model was trained without tracking.tensorboard; nothing is written"
        print(f"TensorBoard: {lack} (`dvc repro -f train`)", file=sys.stderr, flush=True)
    with (
        _resumed_mlflow_run(settings, record["mlflow"]) as run,
        events.beside(run, main_root(ROOT), folder) as both,
    ):
        yield both


@contextmanager
def _mlflow_run(
    params: Params, stats: Stats, name: str, tags: Mapping[str, str], before: dict[str, str] | None
) -> Iterator[Run]:
    if not params.tracking.enabled:
        yield Run()
        return
    uri = _tracking_uri()
    with _opening(uri):
        run = _start(uri, params, name, tags, before)
    import mlflow

    with _concluded(uri, run, mlflow.end_run):
        if before is None or before["run_id"] != run.record["mlflow"]["run_id"]:
            run.describe(params, stats)
        yield run


@contextmanager
def _concluded(uri: str, run: "_MlflowRun", end: Callable[[str], None]) -> Iterator[None]:
    """For the block; then `end` gets the run's status, and its tag `ended` says why where it did not end well."""
    try:
        with _answering(uri):
            yield
    except BaseException as error:
        status, reason = "FAILED", str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            status, reason = "KILLED", "killed"
        with contextlib.suppress(Exception), _impatient():
            run.set_tags({"ended": reason})
            end(status)
        raise
    with _answering(uri):
        end("FINISHED")


@contextmanager
def _resumed_mlflow_run(settings: Tracking, record: dict[str, str] | None) -> Iterator[Run]:
    if not settings.enabled or record is None:
        yield Run()
        return
    current = os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = current if _public(current) == record["tracking_uri"] else _resolved(record["tracking_uri"])
    with _opening(uri):
        run = _find(uri, record)
    with _answering(uri):
        yield run


class _MlflowRun(Run):
    def __init__(
        self,
        client: "MlflowClient",
        record: dict[str, str],
        model_id: str | None = None,
        registry: str | None = None,
        epochs: Collection[int] = (),
    ) -> None:
        """`registry` is the name that a model of this run is registered under; None is not at all.

        `epochs` are those that the run already has.
        """
        super().__init__(record)
        self._client = client
        self._id = record["run_id"]
        self._model_id = model_id
        self._registry = registry
        self._epochs = epochs

    def describe(self, params: Params, stats: Stats) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        others = {"convnet", "plain", "torchvision"} - {params.model.family}  # sections that say nothing of this model
        made_with = params.model_dump(include={"seed", "preprocess", "model", "train"}, exclude={"model": others})
        self._client.log_batch(self._id, params=[Param(*item) for item in _flat(made_with)])
        digest = (_data_hash() or stats.split_digest)[:36]  # as many characters as MLflow keeps
        data = Dataset("data/processed", digest, source_type="local", source=json.dumps({"uri": "data/processed"}))
        self._client.log_inputs(self._id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])

    def log_epoch(self, row: Mapping[str, float | None]) -> None:
        if (epoch := int(row["epoch"] or 0)) not in self._epochs:
            self._log(epoch_metrics(row), step=epoch)

    def log_metrics(self, figures: Mapping[str, float], step: int = 0) -> None:
        self._log(figures, step, self._model_id)

    def _log(self, figures: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step, model_id=model_id) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def set_tags(self, sections: Mapping[str, object]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._id, tags=[RunTag(*item) for item in _flat(sections)])

    def describe_as(self, text: str) -> None:
        self.set_tags({"mlflow.note.content": text})

    def log_figure(self, name: str, figure: "Figure") -> None:
        self._client.log_figure(self._id, figure, f"figures/{name}.png")

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._client.log_artifact(self._id, str(path), folder)

    def log_model(self, model: "nn.Module", example: np.ndarray, classes: Sequence[str]) -> None:
        import mlflow.pytorch
        import torch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        images = TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))
        probabilities = TensorSpec(np.dtype(np.float32), (-1, len(classes)))
        # torch warns of weights that are not on a CPU; these are.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        info = mlflow.pytorch.log_model(
            model,
            name="model",
            serialization_format="pt2",  # a graph, not a pickle
            signature=ModelSignature(Schema([images]), Schema([probabilities])),
            input_example=np.array(example[:2]),  # a batch of one would be exported as a constant
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],  # guessing them takes long
            metadata={"classes": list(classes)},
        )
        self._model_id = info.model_id
        self._classes = json.dumps(list(classes), ensure_ascii=False)

    def register_model(self, val_accuracy: float | None) -> None:
        if self._registry is not None and self._model_id is not None:
            register(self._client, self._registry, self._model_id, self._classes, val_accuracy)


def _start(uri: str, params: Params, name: str, tags: Mapping[str, str], before: dict[str, str] | None) -> "_MlflowRun":
    client = _client(uri)
    import mlflow
    from mlflow.entities import RunTag

    experiment_id = _experiment_id(client, params.tracking.experiment)
    commit = _git("rev-parse", "HEAD")
    all_tags = {**_tags(commit), **tags}
    epochs: set[int] = set()
    if before is not None and _is_here(client, uri, experiment_id, before):
        run_id = before["run_id"]
        epochs = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
        client.update_run(run_id, name=name)
        client.log_batch(run_id, tags=[RunTag(*item) for item in all_tags.items()])
    else:
        run_id = client.create_run(experiment_id, tags=all_tags, run_name=name).info.run_id
    # `mlflow.pytorch.log_model` and MLflow's system metrics go to the active run.
    mlflow.set_tracking_uri(uri)
    mlflow.start_run(run_id, log_system_metrics=True)
    record = _record(uri, experiment_id, run_id) | {"name": name, "commit": commit}
    record |= {"dirty": all_tags.get("mlflow.source.git.dirty", ""), "apply": all_tags.get("dvc.apply", "")}
    registry = params.tracking.experiment if params.tracking.registry else None
    return _MlflowRun(client, record, registry=registry, epochs=epochs)


def _record(uri: str, experiment_id: str, run_id: str) -> dict[str, str]:
    """What finds a run again."""
    page = _page(uri, experiment_id, run_id)
    return {"run_id": run_id, "experiment_id": experiment_id, "tracking_uri": _recorded(uri), "page": page}


def _is_here(client: "MlflowClient", uri: str, experiment_id: str, record: Mapping[str, str]) -> bool:
    """Whether a recorded run is in this store and experiment."""
    same_place = (record["tracking_uri"], record["experiment_id"]) == (_recorded(uri), experiment_id)
    return same_place and _is_there(client, record["run_id"])


def _is_there(client: "MlflowClient", run_id: str) -> bool:
    from mlflow import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _find(uri: str, record: dict[str, str]) -> Run:
    run_id = record["run_id"]
    if uri.startswith(_SQLITE) and not _database(uri).exists():
        return _unrecorded(f"{_database(uri)}, with run {run_id}, is not here")
    client = _client(uri)
    from mlflow import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return _unrecorded(f"run {run_id} is no longer in {_public(uri)}")
    if run.info.lifecycle_stage == "deleted":
        return _unrecorded(f"run {run_id} was deleted (`mlflow runs restore --run-id {run_id}` brings it back)")
    outputs = run.outputs.model_outputs if run.outputs else []
    return _MlflowRun(client, record, outputs[-1].model_id if outputs else None)


def _unrecorded(reason: str) -> Run:
    print(f"MLflow: {reason}; nothing is recorded (`dvc repro -f train` opens a new run)", file=sys.stderr, flush=True)
    return Run()


def _client(uri: str) -> "MlflowClient":
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient

    if not uri.startswith(_SQLITE):
        return MlflowClient(uri)
    database = _database(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    # Artifacts of new experiments are placed relative to the working directory, in mlruns/.
    with open(f"{database}.lock", "a") as lock, contextlib.chdir(database.parent):
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that create the tables at once would both fail
        if not database.exists():
            with replaced_file(database) as partial:  # an interrupted creation would never work again
                partial.unlink(missing_ok=True)
                with _not_waiting_for_the_disk():
                    MlflowClient(f"{_SQLITE}{partial}")
                with partial.open("rb") as file:
                    os.fsync(file)
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")  # MLflow would try a damaged file again for minutes
        return MlflowClient(uri)


@contextmanager
def _not_waiting_for_the_disk() -> Iterator[None]:
    """Have SQLite wait for the disk at no commit of the block.

    MLflow makes the tables step by step through all of its versions; to wait after each of them takes five seconds.
    """
    from sqlalchemy import Engine, event

    def connected(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(Engine, "connect", connected)


def _experiment_id(client: "MlflowClient", name: str) -> str:
    from mlflow import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        raise UserError(f"tracking.experiment: {name!r} was deleted in MLflow; `{restore}`, or choose another name")
    return experiment.experiment_id


def _tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or MLflow's default at the main root."""
    return _resolved(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db")


def _resolved(uri: str) -> str:
    """The URI with a relative path of an SQLite file taken from the main root."""
    return f"{_SQLITE}{main_root(ROOT) / _database(uri)}" if uri.startswith(_SQLITE) else uri


def _recorded(uri: str) -> str:
    """The URI for metrics/run.json: without a password, and relative where it can be, so that a checkout may move."""
    if uri.startswith(_SQLITE) and _database(uri).is_relative_to(main_root(ROOT)):
        return f"{_SQLITE}{_database(uri).relative_to(main_root(ROOT))}"
    return _public(uri)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE))


def _page(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run in MLflow's UI, which `mlflow ui` serves at this port."""
    server = _public(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"


def _public(uri: str) -> str:
    """The URI without a user name, a password (which may have an @ or, in SQLAlchemy's, a slash) and options."""
    return re.sub(r"://[^/].*@", "://", uri).partition("?")[0]


def _tags(commit: str) -> dict[str, str]:
    """Where the run came from, and what brings it back: Git commit, DVC experiment and the DVC hash of the data."""
    # What a run of the pipeline itself rewrites says nothing about the code.
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!metrics", ":!dvc.lock")
    experiment = os.environ.get("DVC_EXP_NAME", "")
    tags = {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": os.path.relpath(sys.argv[0], ROOT),
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.dirty": str(bool(changes)).lower() if commit else "",
        "dvc.experiment": experiment,
        "dvc.apply": f"dvc exp apply {experiment}" if experiment else "",
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "dvc.data": _data_hash(),
    }
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    return {key: value for key, value in tags.items() if value}


def _git(*arguments: str) -> str:
    """What Git prints; nothing where there is no Git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _data_hash() -> str:
    """The hash of data/processed in dvc.lock, which DVC has just written if it is DVC that runs this stage."""
    if "DVC_STAGE" not in os.environ:
        return ""
    try:
        lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
        outs = lock["stages"]["preprocess"]["outs"]
        return next(out["md5"] for out in outs if out["path"] == "data/processed")
    except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration):
        return ""


@contextmanager
def _opening(uri: str) -> Iterator[None]:
    """First contact: any failure is the store's, and a server that does not answer is given up after seconds."""
    try:
        with _impatient():
            yield
    except UserError:
        raise
    except Exception as error:
        raise _trouble(uri, error) from None


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Later contact: MLflow itself retries for minutes, so that a restart of its server costs no training."""
    from mlflow import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        raise _trouble(uri, error) from None


@contextmanager
def _impatient() -> Iterator[None]:
    added = _IMPATIENT.keys() - os.environ.keys()  # what the user has set stays
    os.environ.update({variable: _IMPATIENT[variable] for variable in added})
    try:
        yield
    finally:
        for variable in added:
            del os.environ[variable]


def _trouble(uri: str, error: Exception) -> UserError:
    """One line of what MLflow says in many: what urllib3 or SQLite meant, or else how the message begins."""
    text = str(error).replace(uri, _public(uri))
    cause = re.search(r"Caused by \w+\(.*?: (.*?)['\"]\)|\(sqlite3\.\w+\) (.*)", text)
    beginning = text.partition(" Response body")[0].partition("\n")[0]
    reason = textwrap.shorten(cause[1] or cause[2] if cause else beginning, 200)
    otherwise = "or set tracking.enabled: false in params.yaml"
    if uri.startswith(_SQLITE):
        advice = f"if an older MLflow made it, `mlflow db upgrade {uri}`; else move it away, {otherwise}"
        return UserError(f"{_database(uri)}: MLflow cannot use this database ({reason}); {advice}")
    origin = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") == uri else "metrics/run.json: tracking_uri"
    advice = f"start the server, correct the address, {otherwise}"
    return UserError(f"{origin}={_public(uri)}: MLflow cannot be reached there ({reason}); {advice}")


def _flat(sections: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys joined with dots, values as params.yaml writes them."""
    for key, value in sections.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
