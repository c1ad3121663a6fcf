"""Sends log calls to MLflow. Sending a call twice has the same effect as sending it once.

MLflow stores a metric of the same name, value, step and time once; tags and files replace those of the same name; a run
has one logged model, with one version in the registry.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag

from vision.tracking import store
from vision.tracking.registry import register

LogCall = dict[str, Any]
"""A call that logs something to a run, as JSON; `_send` has the kinds."""


def send(client: MlflowClient, run_id: str, call: LogCall, path: Path | None) -> None:
    """Send a call to a run; `path` is the file or folder of an artifact or model. Raises what MLflow raises.

    A call that MLflow will never accept is skipped, with a line on stderr.
    """
    try:
        _send(client, run_id, call, path)
    except MlflowException as error:
        if re.search("IntegrityError|UniqueViolation", str(error)):
            _send(client, run_id, call, path)  # another process has added the same row at the same moment
        elif error.error_code == "INVALID_PARAMETER_VALUE" and store.find_run(client, run_id):
            reason = store.format_error(client.tracking_uri, error)
            store.warn(f"rejected a record of run {run_id}; skipped ({reason})")
        else:
            raise


def _send(client: MlflowClient, run_id: str, call: LogCall, path: Path | None) -> None:
    match call:
        case {"metrics": metrics, "time": time, "step": step}:
            # Without a step they are summary values of the run and of its logged model.
            model_id = _find_model(client, run_id) if step is None else None
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
            _send_model(client, run_id, name, path)
        case {"register": tags}:
            # Without a model, its export has failed, or the user has deleted it.
            if model_id := _find_model(client, run_id):
                experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
                register(client, experiment.name, model_id, tags)
        case {"status": status, "time": time}:
            client.set_terminated(run_id, status, time)
        case _:
            raise ValueError(f"unknown record: {call}")


def _send_model(client: MlflowClient, run_id: str, name: str, path: Path) -> None:
    run = client.get_run(run_id)
    if (model_id := _find_model(client, run_id)) is None:
        tags = {name: tag for name, tag in run.data.tags.items() if re.match(r"mlflow\.(source|user)", name)}
        model_id = client.create_logged_model(run.info.experiment_id, name, run_id, tags, run.data.params).model_id
    if run.outputs is None or model_id not in [output.model_id for output in run.outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    document = yaml.safe_load((path / "MLmodel").read_text(encoding="utf-8"))
    document |= {"run_id": run_id, "model_id": model_id, "model_uuid": model_id}
    document["artifact_path"] = client.get_logged_model(model_id).artifact_location
    (path / "MLmodel").write_text(yaml.safe_dump(document), encoding="utf-8")
    client.log_model_artifacts(model_id, str(path))
    client.finalize_logged_model(model_id, "READY")


def _find_model(client: MlflowClient, run_id: str) -> str | None:
    """The ID of the run's logged model."""
    experiment_id = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    return models[0].model_id if models else None
