"""Weights to begin with that were trained on other data: torchvision's own, or a state dict on disk."""

import pickle
import re
from typing import Any

from torch import Tensor

from vision.artifacts.trained_model import check_finite, read_state
from vision.core.models.classifier import Classifier
from vision.pipeline.errors import UserError
from vision.pipeline.paths import resolve_path

PRETRAINED = "pretrained"


def start_from(model: Classifier, name: str, source: str) -> None:
    """Give a model the weights of `source`, all but those of its last layer, which stays as it is: new.

    Args:
        model: of the family or torchvision network `name`.
        source: "pretrained", for what torchvision offers for `name`, or the path of a state dict, relative to the
            checkout: that of torchvision's network, or a models/model.pt of this pipeline.

    Raises:
        UserError: there are no such weights, they cannot be had, or they do not fit the network.
    """
    where = f"params.yaml: model.weights: {source}"
    if source == PRETRAINED:
        state = _downloaded(name, where)
    else:
        try:
            state = read_state(resolve_path(source))
        except FileNotFoundError:
            raise UserError(
                f"{where}: not found (looked for {resolve_path(source)}; if it is what this stage made "
                "before, copy it to another folder first: DVC removes a stage's outputs before it runs)"
            ) from None
        except (UserError, OSError) as error:
            raise UserError(f"{where}: {error.strerror if isinstance(error, OSError) else error}") from None
    # A model.pt of this pipeline holds the network and its normalisation; the latter belongs to the data.
    # DenseNets of torchvision are stored with older names.
    found = {re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", key.removeprefix("network.")): state[key] for key in state}
    wanted = model.network.state_dict()
    head = next(prefix for prefix, module in model.network.named_modules() if module is model.head)
    backbone = {key: value for key, value in wanted.items() if not key.startswith(f"{head}.")}
    for key, value in backbone.items():
        if key.endswith("num_batches_tracked"):  # what was stored by early versions of torch lacks it
            found.setdefault(key, value)
        if key not in found:
            raise UserError(f"{where}: does not fit {name}: {key} is missing")
        if found[key].shape != value.shape:
            shapes = f"{key} is {list(found[key].shape)}, not {list(value.shape)}"
            raise UserError(f"{where}: does not fit {name} as params.yaml describes it: {shapes}")
    chosen = {key: found[key] for key in backbone}
    try:
        check_finite(chosen)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    model.network.load_state_dict({**wanted, **chosen})


def pretrained_size(name: str) -> int:
    """Pixels a side of the images that torchvision trained the network `name` on."""
    return _offered(name).transforms().crop_size[0]


def _downloaded(name: str, where: str) -> dict[str, Tensor]:
    offered = _offered(name)
    try:
        return offered.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{where}: cannot be downloaded or read ({reason}); get {offered.url} elsewhere and write its path in "
            f"place of {PRETRAINED}"
        ) from None


def _offered(name: str) -> Any:
    from torchvision import models

    try:
        return models.get_model_weights(name).DEFAULT
    except ValueError:
        raise UserError(f"params.yaml: model.weights: pretrained is for torchvision's networks, not {name}") from None
