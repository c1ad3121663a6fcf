"""MLflow's registry of models: which version is the newest, and which is the best."""

import contextlib
import hashlib
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def register(client: "MlflowClient", experiment: str, model_id: str, classes: str, val_accuracy: float | None) -> None:
    """Enter a logged model into the registry, once, and see to its aliases.

    `challenger` is the newest version. `champion` is the one that validates best: it moves only to a version that beats
    it, and never to one of other classes, whose accuracy does not compare. Several processes may do this at once, also
    on several machines: each looks again after it has changed an alias, until there is nothing to change. Whoever
    changes it last sees all versions that were there, and one that comes later is looked at by the process that made
    it; so no lock is needed.

    Args:
        client: of the store that `mlflow.set_tracking_uri` was told.
        experiment: the registered model is called alike, and made if there is none.
        model_id: of the logged model.
        classes: what it tells apart; many are shown as a hash.
        val_accuracy: in [0, 1]; None where nothing was held out, and then it cannot be champion.
    """
    import mlflow

    name = registered_name(experiment)
    tags = {"classes": classes if len(classes) <= 1000 else hashlib.sha256(classes.encode()).hexdigest()}
    if val_accuracy is not None:
        tags["val_accuracy"] = repr(val_accuracy)
    source = f"models:/{model_id}"
    entered = [number for number, version in _versions(client, name).items() if version.source == source]
    for number in entered:
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
    if not entered:
        with contextlib.redirect_stderr(io.StringIO()):  # on which it tells its story
            mlflow.register_model(source, name, tags=tags)
    for alias, best in (("challenger", _newest), ("champion", _champion)):
        attempts = 10
        while (version := best(client, name)) is not None:
            try:
                client.set_registered_model_alias(name, alias, version)
            except mlflow.MlflowException:  # two that give an alias for the first time at the same moment: one fails
                attempts -= 1
                if not attempts:
                    raise


def registered_name(experiment: str) -> str:
    """What the models of an experiment are registered as: its name without the characters that MLflow refuses."""
    return re.sub(r"[^\w ()-]", "-", experiment)


def _newest(client: "MlflowClient", name: str) -> str | None:
    """The version that should be `challenger` but is not."""
    versions = _versions(client, name)
    newest = max(versions, key=int)
    return None if _holder(client, name, "challenger") == newest else newest


def _champion(client: "MlflowClient", name: str) -> str | None:
    """The version that should be `champion` but is not."""
    holder = _holder(client, name, "champion")
    tags = {number: version.tags for number, version in _versions(client, name).items()}
    scored = {number: float(tags[number]["val_accuracy"]) for number in tags if "val_accuracy" in tags[number]}
    if holder is not None:
        # Older ones have lost to it, or to one before it.
        classes = tags.get(holder, {}).get("classes")
        scored = {
            number: accuracy
            for number, accuracy in scored.items()
            if int(number) > int(holder) and tags[number].get("classes") == classes
        } | {holder: scored.get(holder, -1.0)}
    best = max(scored, key=lambda number: (scored[number], -int(number)), default=None)
    return None if best == holder else best


def _versions(client: "MlflowClient", name: str) -> dict[str, "ModelVersion"]:
    """All versions by their numbers."""
    found: dict[str, ModelVersion] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found |= {str(version.version): version for version in page}
        if not (token := page.token):
            return found


def _holder(client: "MlflowClient", name: str, alias: str) -> str | None:
    """The version that has the alias."""
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else str(version)
