"""The run of a model: `train` opens it, and `evaluate` and `report` resume it.

A search opens a parent run, and the runs of its trials are its children. A run is opened only in an MLflow store that
answers. If the store fails later, log calls wait in a spool; see `spool`.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from vision.pipeline.errors import UserError
from vision.pipeline.formatting import flatten
from vision.pipeline.messages import warn
from vision.pipeline.params import Params, Tracking
from vision.pipeline.paths import ROOT, main_root
from vision.storage.arrays import Stats
from vision.tracking import provenance, store
from vision.tracking.run import Run


@contextmanager
def training_run(
    params: Params, stats: Stats, tags: Mapping[str, str] | None = None, resume_from: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """Open a run for the block: FINISHED at its end, KILLED if it is interrupted, FAILED after another exception.

    The run gets the parameters of the model, the data, its provenance, and samples of the use of CPU, memory and GPU.
    It is named like the DVC experiment, or else `<model>-<Git commit>`. The tag `ended` says why it failed.

    Args:
        params: all sections of params.yaml.
        stats: of the training data.
        tags: tags that the run gets in addition to its provenance.
        resume_from: the record of the run that an interrupted training opened, as in metrics/run.json. The run is
            continued and gets the epochs that it lacks. If it was deleted, a new run is opened.

    Raises:
        UserError: the MLflow store cannot be used at the start; nothing is raised if it fails later.
    """
    tags = provenance.tags() | dict(tags or {})
    parts = [params.model.name, tags.get("mlflow.source.git.commit", "")[:7]]
    name = tags.get("dvc.experiment") or "-".join(filter(None, parts))
    earlier = resume_from or Run().record
    old_id = earlier["mlflow"] and earlier["mlflow"]["run_id"]
    with ExitStack() as stack:
        run = stack.enter_context(_open_run(params.tracking, name, tags, old_id))
        if run.spool:
            from vision.tracking.system_metrics import sample_system_metrics

            stack.enter_context(sample_system_metrics(run.spool))
            if run.spool.run_id != old_id:
                unused = set(params.model.families()) - {params.model.family}
                used = params.model_dump(include={"seed", "preprocess", "model", "train"}, exclude={"model": unused})
                run.spool.put({"params": dict(flatten(used))})
                digest = (tags.get("dvc.data") or stats.split_digest)[:36]  # MLflow's limit
                run.spool.put({"dataset": "data/processed", "digest": digest})
            if params.tracking.registry:
                classes = json.dumps(stats.classes, ensure_ascii=False)
                if len(classes) > 1000:  # the length of a tag is limited
                    classes = hashlib.sha256(classes.encode()).hexdigest()
                run.version_tags = {"classes": classes, "split_digest": stats.split_digest}
        if params.tracking.tensorboard:
            folder = earlier["tensorboard"] or f"tensorboard/{name}-{uuid.uuid4().hex[:6]}"
            stack.enter_context(_write_events(run, folder, purge_step=0))  # hides what a killed training wrote
        yield run


def search_run(params: Params, run_id: str | None) -> AbstractContextManager[Run]:
    """Open the parent run of a search's trials, or continue the run `run_id`; it ends as in `training_run`."""
    tags = provenance.tags() | {"search.study": params.search.study}
    return _open_run(params.tracking, params.search.study, tags, run_id)


@contextmanager
def resumed_run(settings: Tracking, record: Mapping[str, Any]) -> Iterator[Run]:
    """Add to the run that metrics/run.json records; its status and duration stay.

    If the run is gone, a line on stderr says so, and MLflow gets nothing. If the store cannot be used, records wait.
    """
    with ExitStack() as stack:
        run = _find_run(record["mlflow"]) if settings.enabled and record["mlflow"] else Run()
        if run.spool:
            stack.enter_context(run.spool.publishing())
        if settings.tensorboard and record["tensorboard"]:
            stack.enter_context(_write_events(run, record["tensorboard"]))
        elif settings.tensorboard:
            warn("TensorBoard", "nothing is written; the model was trained without it (`dvc repro -f train`)")
        yield run


@contextmanager
def _open_run(settings: Tracking, name: str, tags: Mapping[str, str], run_id: str | None) -> Iterator[Run]:
    """Open an MLflow run, or continue `run_id` if it is in this store and experiment; end it with the block."""
    if not settings.enabled:
        yield Run()
        return
    uri = store.tracking_uri()
    with store.opening(uri) as client:
        from vision.tracking.spool import Spool

        experiment_id = store.get_experiment_id(client, settings.experiment)
        found = store.find_run(client, experiment_id, run_id) if run_id else None
        spool = Spool(uri, (found or client.create_run(experiment_id, run_name=name)).info.run_id)
    with spool.publishing():
        run = Run(spool)
        if found:
            with store.opening(uri) as client:
                spool.flush()
                if spool.files():
                    raise UserError(f"{spool.folder}: cannot be logged; set tracking.enabled: false in params.yaml")
                client.update_run(spool.run_id, status="RUNNING", name=name)
                run.logged_epochs = {metric.step for metric in client.get_metric_history(spool.run_id, "train/loss")}
        server = store.public_uri(uri).rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
        run.record["mlflow"] = {
            "run_id": spool.run_id,
            "experiment_id": experiment_id,
            "tracking_uri": store.recorded_uri(uri),
            "page": f"{server}/#/experiments/{experiment_id}/runs/{spool.run_id}?workflowType=machine_learning",
            "name": name,
            "commit": tags.get("mlflow.source.git.commit", ""),
            "dirty": tags.get("mlflow.source.git.dirty", ""),
            "apply": tags.get("dvc.apply", ""),
        }
        spool.put({"tags": tags})
        try:
            yield run
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt)
            spool.put({"tags": {"ended": "killed" if killed else str(error) or type(error).__name__}})
            spool.put({"status": "KILLED" if killed else "FAILED"})
            raise
        spool.put({"status": "FINISHED"})


def _find_run(record: dict[str, str]) -> Run:
    """The recorded run, also if the store cannot be used. If it is gone, print a line and return one without MLflow."""
    uri, run_id = store.tracking_uri(), record["run_id"]
    if store.recorded_uri(uri) != record["tracking_uri"]:  # the recorded one lacks the password
        uri = store.resolve_uri(record["tracking_uri"])
    file = store.sqlite_path(uri)
    exists = file is None or file.exists()
    with suppress(Exception):  # the spool's thread reports it
        exists = exists and store.find_run(store.connect(uri), record["experiment_id"], run_id) is not None
    if exists:
        from vision.tracking.spool import Spool

        return Run(Spool(uri, run_id), record={"mlflow": record, "tensorboard": None})
    advice = f"`mlflow runs restore --run-id {run_id}` restores a deleted run, `dvc repro -f train` opens a new one"
    warn("MLflow", f"run {run_id} is not in {store.public_uri(uri)}; {advice}")
    return Run()


@contextmanager
def _write_events(run: Run, folder: str, purge_step: int | None = None) -> Iterator[None]:
    """Write what is logged to event files, in a folder of the main checkout, too."""
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    run.record["tensorboard"] = folder
    with SummaryWriter(main_root(ROOT) / folder, purge_step=purge_step) as run.writer:
        yield
