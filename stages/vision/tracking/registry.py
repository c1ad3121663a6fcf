"""MLflow's model registry: the alias `challenger` is the newest version, `champion` the best one."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress

from mlflow import MlflowClient, MlflowException

from vision.tracking.store import warn

COMPARABLE = ("classes", "split_digest")
"""Validation accuracies can be compared if these tags of the model versions are equal."""


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
        warn(f"version {version.version} of {name} cannot be compared with {reason}")


def _best(versions: Mapping[int, Mapping[str, str]], champion: int, tags: Mapping[str, str]) -> int:
    """Return the version that should be champion: the present one, until a newer comparable one is more accurate.

    Without a champion, 0, versions must be comparable with `tags`. `versions` has the tags of each version.
    """
    reference = versions.get(champion, tags)
    comparable = [n for n, found in versions.items() if all(found.get(tag) == reference.get(tag) for tag in COMPARABLE)]
    newer = sorted(number for number in comparable if number > champion)
    return max([champion, *newer], key=lambda number: float(versions.get(number, {}).get("val_accuracy", -1)))
