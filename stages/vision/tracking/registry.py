"""MLflow's model registry: the alias `challenger` is the newest version, `champion` the best one."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from mlflow import MlflowClient, MlflowException

COMPARABLE = ("classes", "split_digest")
"""Validation accuracies can be compared if these tags of the model versions are equal."""

Versions = Mapping[int, Mapping[str, str]]
"""The tags of each version, by number."""


def register(client: MlflowClient, experiment: str, model_id: str, tags: Mapping[str, str]) -> None:
    """Register a logged model once, and move the aliases.

    Args:
        client: of the store that `mlflow.set_tracking_uri` has set.
        experiment: gives the registered model its name.
        model_id: of the logged model.
        tags: of the version: `COMPARABLE`, and `val_accuracy`, in [0, 1], unless there are no validation images.
    """
    name, source = registered_name(experiment), f"models:/{model_id}"
    with suppress(MlflowException):  # it exists, or what follows fails as well
        client.create_registered_model(name)
    version = next((found for found in client.search_model_versions(f"name = '{name}'") if found.source == source), None)
    if version is None:
        version = client.create_model_version(name, source, tags=dict(tags), model_id=model_id)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    link = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})  # shown on the model's page
    _move_alias(client, name, "challenger", lambda versions, _: max(versions))
    champion = _move_alias(client, name, "champion", lambda versions, holder: _best(versions, holder, tags))
    if champion and "val_accuracy" in tags:
        champion_tags = client.get_model_version(name, str(champion)).tags
        if different := [tag for tag in COMPARABLE if champion_tags.get(tag) != tags.get(tag)]:
            reason = f"version {champion} (different {' and '.join(different)}), which stays champion"
            print(f"MLflow: version {version.version} of {name} cannot be compared with {reason}", file=sys.stderr)


def registered_name(experiment: str) -> str:
    """The name of the experiment without the characters that MLflow refuses."""
    return re.sub(r"[^\w ()-]", "-", experiment)


def _move_alias(client: MlflowClient, name: str, alias: str, choose: Callable[[Versions, int], int]) -> int:
    """Move an alias to `choose(versions, holder)`, a number or 0 for none; return where it is.

    Another process may move it at the same time, from an older list of versions, so each checks again after a move.
    """
    while True:
        holder = int(client.get_registered_model(name).aliases.get(alias, 0))
        found = client.search_model_versions(f"name = '{name}'")
        chosen = choose({int(version.version): version.tags for version in found}, holder)
        if chosen in (0, holder):
            return chosen
        client.set_registered_model_alias(name, alias, str(chosen))


def _best(versions: Versions, champion: int, tags: Mapping[str, str]) -> int:
    """Return the version that should be champion: the present one, until a newer one beats it.

    A version beats another one by a higher accuracy on the same classes and validation images; the first one has to
    have those of `tags`.
    """
    best = champion if champion in versions else 0
    for number in sorted(versions):
        reference, accuracy = versions.get(best, tags), versions[number].get("val_accuracy", "-1")
        same = all(versions[number].get(tag) == reference.get(tag) for tag in COMPARABLE)
        if number > champion and same and float(accuracy) > float(versions.get(best, {}).get("val_accuracy", "-1")):
            best = number
    return best
