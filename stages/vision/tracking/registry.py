"""MLflow's model registry: the alias `challenger` is the newest version, `champion` the best one."""

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

COMPARABLE = ("classes", "split_digest")
"""Validation accuracies can be compared if these tags of the model versions are equal."""


def register(client: "MlflowClient", experiment: str, model_id: str, tags: Mapping[str, str]) -> None:
    """Register a logged model once, and move the aliases.

    The champion is beaten only by a version with a higher accuracy on the same validation images and classes.
    Processes on several machines may do this at the same time without a lock: each checks again after it has moved an
    alias, until nothing changes, so the last one has seen all versions.

    Args:
        client: of the store that `mlflow.set_tracking_uri` has set.
        experiment: gives the registered model its name.
        model_id: of the logged model.
        tags: of the version: `COMPARABLE`, and `val_accuracy`, in [0, 1], unless there are no validation images.
    """
    from mlflow import MlflowException

    name, source = registered_name(experiment), f"models:/{model_id}"
    with contextlib.suppress(MlflowException):  # it exists, or what follows fails as well
        client.create_registered_model(name)
    version = next((version for version in _versions(client, name).values() if version.source == source), None)
    if version is None:
        version = client.create_model_version(name, source, tags=dict(tags), model_id=model_id)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})  # shown on the model's page
    for alias in ("challenger", "champion"):
        attempts = 10
        while True:
            versions, holder = _versions(client, name), client.get_registered_model(name).aliases.get(alias)
            best = _best(versions, holder and str(holder), tags) if alias == "champion" else max(versions, key=int)
            if best is None or best == str(holder):
                break
            try:
                client.set_registered_model_alias(name, alias, best)
            except MlflowException:  # two processes have set it for the first time at the same moment
                attempts -= 1
                if not attempts:
                    raise
    if best in versions and "val_accuracy" in tags:
        champion = versions[best].tags
        if different := [tag for tag in COMPARABLE if champion.get(tag) != tags.get(tag)]:
            reason = f"version {best} (different {' and '.join(different)}), which stays champion"
            print(f"MLflow: version {version.version} of {name} cannot be compared with {reason}", file=sys.stderr)


def registered_name(experiment: str) -> str:
    """The name of the experiment without the characters that MLflow refuses."""
    return re.sub(r"[^\w ()-]", "-", experiment)


def _best(versions: Mapping[str, "ModelVersion"], champion: str | None, tags: Mapping[str, str]) -> str | None:
    """Return the version that should be champion.

    Candidates must be comparable with the present champion or, without one, with a version tagged `tags`.
    """
    known = versions.get(champion or "")
    reference = tags if known is None else known.tags
    accuracies = {
        number: float(version.tags["val_accuracy"])
        for number, version in versions.items()
        if "val_accuracy" in version.tags
        and all(version.tags.get(tag) == reference.get(tag) for tag in COMPARABLE)
        and int(number) > int(champion or 0)  # the champion has beaten older ones, or the user has chosen it
    }
    if champion is not None:
        accuracies[champion] = float(reference.get("val_accuracy", -1))
    return max(accuracies, key=lambda number: (accuracies[number], -int(number)), default=None)


def _versions(client: "MlflowClient", name: str) -> dict[str, "ModelVersion"]:
    return {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
