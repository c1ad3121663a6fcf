"""Sends log calls to MLflow. Sending a call twice has the same effect as sending it once.

MLflow stores a metric of the same name, value, step and time once; tags and files replace those of the same name; a run
has one logged model, with one version in the registry.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vision.tracking import store
from vision.tracking.registry import register

if TYPE_CHECKING:
    from mlflow import MlflowClient

LogCall = dict[str, Any]
"""A call that logs something to a run, as JSON; `send` has the kinds. Messages to the user name it a record."""


def send(client: "MlflowClient", run_id: str, call: LogCall, path: Path | None) -> None:
    """Send a call to a run; `path` is the file or folder of an artifact or model. Raises what MLflow raises."""
    from mlflow import MlflowException
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

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
        case {"dataset": name, "digest": digest, "source": source}:
            dataset = Dataset(name, digest, source_type="local", source=source)
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
            try:
                client.log_inputs(run_id, inputs)
            except MlflowException as error:
                if not re.search("IntegrityError|UniqueViolation", str(error)):
                    raise
                client.log_inputs(run_id, inputs)  # another run has logged the same new dataset at the same moment
        case {"artifact": folder}:
            client.get_run(run_id)  # fails soon if the server does not answer
            with store.request_timeouts(store.UPLOAD_TIMEOUT):
                client.log_artifact(run_id, str(path), folder)
        case {"model": name} if path:
            _send_model(client, run_id, name, path)
        case {"register": experiment, "version_tags": tags}:
            # Without a model, its export has failed, or the user has deleted it.
            if (model_id := _find_model(client, run_id)) is not None:
                register(client, experiment, model_id, tags)
        case {"status": status, "time": time}:
            client.set_terminated(run_id, status, time)
        case _:
            raise ValueError(f"unknown record: {call}")


def is_rejected(client: "MlflowClient", run_id: str, error: Exception) -> bool:
    """Whether MLflow will never accept the call that it answered with this error."""
    if getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE":
        return False
    return store.find_run(client, run_id) is not None


def _send_model(client: "MlflowClient", run_id: str, name: str, path: Path) -> None:
    from mlflow.entities import LoggedModelOutput

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
    with store.request_timeouts(store.UPLOAD_TIMEOUT):
        client.log_model_artifacts(model_id, str(path))
    client.finalize_logged_model(model_id, "READY")


def _find_model(client: "MlflowClient", run_id: str) -> str | None:
    """The ID of the run's logged model."""
    experiment_id = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    return models[0].model_id if models else None
