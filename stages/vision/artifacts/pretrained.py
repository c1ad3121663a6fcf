"""Weights of earlier trainings to start from: those of torchvision, or a state dict on disk."""

import pickle
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vision.artifacts.trained_model import check_finite, read_state_dict
from vision.core.models.classifier import Classifier
from vision.pipeline.errors import UserError
from vision.pipeline.paths import resolve_path

PRETRAINED = "pretrained"
"""The value of `model.weights` for the weights that torchvision offers."""


def load_pretrained(model: Classifier, name: str, source: str) -> None:
    """Load weights into all layers of a model but the last one, which keeps its random weights.

    Args:
        model: the network to change.
        name: `model.name` of params.yaml.
        source: "pretrained" for the weights that torchvision offers for `name`, or the path of a state dict, relative
            to the checkout. The state dict is that of torchvision's network, or a models/model.pt of this project.

    Raises:
        UserError: the weights are missing, cannot be downloaded or read, or do not fit the network.
    """
    where = f"params.yaml: model.weights: {source}"
    state = _download(name, where) if source == PRETRAINED else _read(source, where)
    own_state = model.network.state_dict()
    head = next(prefix for prefix, module in model.network.named_modules() if module is model.head)
    backbone = {key: value for key, value in own_state.items() if not key.startswith(f"{head}.")}
    state = _rename_keys(state)
    for key, value in backbone.items():
        if key.endswith("num_batches_tracked"):  # early versions of torch did not save it
            state.setdefault(key, value)
        if key not in state:
            raise UserError(f"{where}: does not fit {name}: {key} is missing")
        if state[key].shape != value.shape:
            shapes = f"{key} is {list(state[key].shape)}, not {list(value.shape)}"
            raise UserError(f"{where}: does not fit {name} as params.yaml describes it: {shapes}")
    selected = {key: state[key] for key in backbone}
    try:
        check_finite(selected)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    model.network.load_state_dict({**own_state, **selected})


def pretrained_image_size(name: str) -> int:
    """Return the size in pixels of the images that torchvision trained the network `name` on.

    Raises:
        UserError: torchvision offers no weights for it.
    """
    return _torchvision_weights(name).transforms().crop_size[0]


def _read(source: str, where: str) -> dict[str, Tensor]:
    try:
        return read_state_dict(resolve_path(source))
    except FileNotFoundError as error:
        raise UserError(
            f"{where}: not found (looked for {error.filename}). DVC removes the outputs of a stage before it runs, so "
            "copy a model.pt to another folder first"
        ) from None
    except (UserError, OSError) as error:
        raise UserError(f"{where}: {error.strerror if isinstance(error, OSError) else error}") from None


def _download(name: str, where: str) -> dict[str, Tensor]:
    weights = _torchvision_weights(name)
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{where}: cannot be downloaded or read ({reason}); get {weights.url} elsewhere and set model.weights to "
            "its path"
        ) from None


def _torchvision_weights(name: str) -> Any:
    from torchvision import models

    try:
        return models.get_model_weights(name).DEFAULT
    except ValueError:
        raise UserError(f"params.yaml: model.weights: pretrained is for torchvision's networks, not {name}") from None


def _rename_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a model.pt, which has the network as a part, and of torchvision's DenseNets (`norm.1`)."""
    return {
        re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", key.removeprefix("network.")): value
        for key, value in state.items()
    }
