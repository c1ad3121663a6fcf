"""The run of a model: `train` opens it, and `evaluate` and `report` resume it.

A search opens a parent run, and the runs of its trials are its children. A run is opened only in an MLflow store that
answers. If the store fails later, log calls wait in a spool; see `spool`. MLflow takes seconds to import, so it and the
modules that use it are imported inside functions, and never when tracking is off.
"""

import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from vision.pipeline.params import Params, Tracking
from vision.pipeline.paths import ROOT, main_root
from vision.pipeline.stage import importing
from vision.storage.arrays import Stats
from vision.tracking import provenance
from vision.tracking.run import Run, flatten

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from vision.tracking.spool import Spool

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the password
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are raised as well; the log has tracebacks
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",  # seconds; a server may need many for an uploaded file
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "PGCONNECT_TIMEOUT": "5",
}


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
    earlier = resume_from or Run().record
    run = Run()
    with ExitStack() as stack:
        if params.tracking.enabled:
            old_id = earlier["mlflow"] and earlier["mlflow"]["run_id"]
            run = stack.enter_context(_open_run(params, name, tags or {}, old_id))
            run_id = run.record["mlflow"]["run_id"]
            from vision.tracking.system_metrics import sample_system_metrics

            stack.enter_context(sample_system_metrics(run.spool.uri, run_id, run.log_metrics))
            if run_id != old_id:
                _log_inputs(run.spool, params, stats)
            if params.tracking.registry:
                classes = json.dumps(stats.classes, ensure_ascii=False)
                run.version_tags = {"classes": classes, "split_digest": stats.split_digest}
        if params.tracking.tensorboard:
            folder = earlier["tensorboard"] or f"tensorboard/{name}-{uuid.uuid4().hex[:6]}"
            run.record["tensorboard"] = folder
            run.writer = stack.enter_context(_open_writer(folder, purge_step=0))  # hides what a killed training wrote
        yield run


@contextmanager
def search_run(params: Params, run_id: str | None) -> Iterator[Run]:
    """Open the parent run of a search's trials, or continue the run `run_id`; it ends as in `training_run`."""
    if params.tracking.enabled:
        with _open_run(params, params.search.study, {"search.study": params.search.study}, run_id) as run:
            yield run
    else:
        yield Run()


@contextmanager
def resumed_run(settings: Tracking, record: Mapping[str, Any]) -> Iterator[Run]:
    """Add to the run that metrics/run.json records; its status and duration stay.

    If the run is gone, a line on stderr says so, and MLflow gets nothing. If the store cannot be used, records wait.
    """
    run = Run()
    with ExitStack() as stack:
        if settings.enabled and record["mlflow"] and (spool := _find_spool(record["mlflow"])):
            run.spool, run.record["mlflow"] = spool, record["mlflow"]
            stack.enter_context(spool.lock())
            stack.enter_context(spool.publishing())
        if settings.tensorboard and record["tensorboard"]:
            run.record["tensorboard"] = record["tensorboard"]
            run.writer = stack.enter_context(_open_writer(record["tensorboard"]))
        elif settings.tensorboard:
            lack = "the model was trained without tracking.tensorboard; nothing is written"
            print(f"TensorBoard: {lack} (`dvc repro -f train`)", file=sys.stderr, flush=True)
        yield run


@contextmanager
def _open_run(params: Params, name: str, tags: Mapping[str, str], run_id: str | None) -> Iterator[Run]:
    """Open an MLflow run, or continue `run_id` if it is in this store and experiment; end it with the block."""
    import_mlflow()
    from vision.tracking import store
    from vision.tracking.spool import Spool

    uri = store.tracking_uri()
    tags = provenance.tags() | dict(tags)
    epochs: set[int] = set()
    with ExitStack() as stack:
        with store.opening(uri):
            client = store.connect(uri, store.OPENING_LOCK_TIMEOUT)
            experiment_id = store.get_experiment_id(client, params.tracking.experiment)
            old = store.find_run(client, run_id) if run_id else None
            if old and old.info.experiment_id == experiment_id:
                spool = Spool(uri, old.info.run_id)
                stack.enter_context(spool.lock())
                spool.publish(client)
                client.update_run(spool.run_id, status="RUNNING", name=name)
                epochs = {metric.step for metric in client.get_metric_history(spool.run_id, "train/loss")}
            else:
                spool = Spool(uri, client.create_run(experiment_id, run_name=name).info.run_id)
                stack.enter_context(spool.lock())
        stack.enter_context(spool.publishing())
        spool.put({"tags": tags})
        mlflow = {
            "run_id": spool.run_id,
            "experiment_id": experiment_id,
            "tracking_uri": store.recorded_uri(uri),
            "page": store.run_page(uri, experiment_id, spool.run_id),
            "name": name,
            "commit": tags.get("mlflow.source.git.commit", ""),
            "dirty": tags.get("mlflow.source.git.dirty", ""),
            "apply": tags.get("dvc.apply", ""),
        }
        status = "FINISHED"
        try:
            yield Run(spool, record={"mlflow": mlflow, "tensorboard": None}, logged_epochs=epochs)
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt)
            status = "KILLED" if killed else "FAILED"
            spool.put({"tags": {"ended": "killed" if killed else str(error) or type(error).__name__}})
            raise
        finally:
            spool.put({"status": status})


def _find_spool(record: Mapping[str, str]) -> "Spool | None":
    """The spool of a recorded run, also if the store cannot be used; None, with a line on stderr, if the run is gone."""
    import_mlflow()
    from vision.tracking import store
    from vision.tracking.spool import Spool

    current, recorded, run_id = store.tracking_uri(), record["tracking_uri"], record["run_id"]
    # The recorded URI lacks a password.
    uri = current if store.recorded_uri(current) == recorded else store.resolve_uri(recorded)
    file = store.sqlite_path(uri)
    try:
        exists = (file is None or file.exists()) and store.find_run(store.connect(uri), run_id) is not None
    except Exception:  # the spool's thread reports it
        exists = True
    if exists:
        return Spool(uri, run_id)
    restore = f"if it was deleted, `mlflow runs restore --run-id {run_id}` restores it"
    advice = f"{restore}; else `dvc repro -f train` opens a new run"
    print(f"MLflow: run {run_id} is not in {store.public_uri(uri)}; {advice}", file=sys.stderr, flush=True)
    return None


def _log_inputs(spool: "Spool", params: Params, stats: Stats) -> None:
    """Log the parameters that make the model, and the data."""
    unused = set(params.model.families()) - {params.model.family}
    used = params.model_dump(include={"seed", "preprocess", "model", "train"}, exclude={"model": unused})
    spool.put({"params": dict(flatten(used))})
    digest = (provenance.data_hash() or stats.split_digest)[:36]  # MLflow's limit
    spool.put({"dataset": "data/processed", "digest": digest, "source": json.dumps({"uri": "data/processed"})})


def _open_writer(folder: str, purge_step: int | None = None) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    return SummaryWriter(main_root(ROOT) / folder, purge_step=purge_step)


def import_mlflow() -> None:
    """Import MLflow with the settings of this project, unless the user has chosen others."""
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    with importing():
        import mlflow  # noqa: F401
