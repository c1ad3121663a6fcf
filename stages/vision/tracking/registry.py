"""The logged model of a run and its version in MLflow's registry.

The alias `challenger` is the newest version, `champion` the best one.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml
from mlflow import MlflowClient, MlflowException
from mlflow.entities import LoggedModelOutput

from vision.pipeline.messages import warn

COMPARABLE = ("classes", "split_digest")
"""Validation accuracies can be compared if these tags of the model versions are equal."""


def log_model(client: MlflowClient, run_id: str, name: str, path: Path) -> None:
    """Log the model in the folder `path` to a run; a run has one, also if it is logged again."""
    run = client.get_run(run_id)
    if (model_id := find_model(client, run_id)) is None:
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


def log_model_card(client: MlflowClient, model_id: str, text: str) -> None:
    """Add a Markdown text to a logged model as README.md, and as the description of its versions in the registry."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "README.md").write_text(text, encoding="utf-8")
        client.log_model_artifacts(model_id, folder)
    for version in client.search_model_versions(f"source_path = 'models:/{model_id}'"):
        client.update_model_version(version.name, version.version, text)


def find_model(client: MlflowClient, run_id: str) -> str | None:
    """The ID of the run's logged model."""
    experiment_id = client.get_run(run_id).info.experiment_id
    models = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    return models[0].model_id if models else None


def register(client: MlflowClient, experiment: str, model_id: str, tags: Mapping[str, str]) -> None:
    """Register a logged model once, and move the aliases.

    Args:
        client: of the store that `mlflow.set_tracking_uri` has set.
        experiment: gives the registered model its name, with `-` for characters that MLflow refuses.
        model_id: of the logged model.
        tags: of the version: `COMPARABLE`, and `val_accuracy`, in [0, 1], unless there are no validation images.
    """
    name = re.sub(r"[^\w ()-]", "-", experiment)
    source = f"models:/{model_id}"
    with suppress(MlflowException):  # it exists, or what follows fails as well
        client.create_registered_model(name)
    version = next((one for one in client.search_model_versions(f"name = '{name}'") if one.source == source), None)
    if version is None:
        version = client.create_model_version(name, source, tags=dict(tags), model_id=model_id)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})  # shown on the model's page
    while True:  # another process may move an alias at the same time, so each checks again after a move
        aliases = client.get_registered_model(name).aliases
        versions = {int(one.version): one.tags for one in client.search_model_versions(f"name = '{name}'")}
        champion = _best(versions, int(aliases.get("champion", 0)), tags)
        wanted = {"challenger": max(versions)} | ({"champion": champion} if champion else {})
        moves = {alias: number for alias, number in wanted.items() if number != int(aliases.get(alias, 0))}
        if not moves:
            break
        for alias, number in moves.items():
            client.set_registered_model_alias(name, alias, str(number))
    different = [tag for tag in COMPARABLE if champion and versions[champion].get(tag) != tags.get(tag)]
    if different and "val_accuracy" in tags:
        reason = f"version {champion} (different {' and '.join(different)}), which stays champion"
        warn("MLflow", f"version {version.version} of {name} cannot be compared with {reason}")


def _best(versions: Mapping[int, Mapping[str, str]], champion: int, tags: Mapping[str, str]) -> int:
    """Return the version that should be champion: the present one, until a newer comparable one is more accurate.

    Without a champion, 0, versions must be comparable with `tags`. `versions` has the tags of each version.
    """
    reference = versions.get(champion, tags)
    comparable = [n for n, found in versions.items() if all(found.get(tag) == reference.get(tag) for tag in COMPARABLE)]
    newer = sorted(number for number in comparable if number > champion)
    return max([champion, *newer], key=lambda number: float(versions.get(number, {}).get("val_accuracy", -1)))
