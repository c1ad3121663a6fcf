"""The trained model on disk: model.pt, a state dict, and model.json, all that is needed to rebuild the network."""

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vision import models
from vision.arrays import read_json, replaced_file, write_json
from vision.stage import UserError


@dataclass(frozen=True)
class Description:
    """The network and its data: `options` are the family's, `classes` the names in the order of the logits."""

    name: str
    options: dict[str, Any]
    classes: list[str]
    image_shape: list[int]
    mean: list[float]
    std: list[float]


def build(description: Description) -> models.Classifier:
    """Make the network that is described, its weights random."""
    return models.build(
        description.name,
        description.options,
        channels=description.image_shape[-1],
        classes=len(description.classes),
        mean=description.mean,
        std=description.std,
    )


def save(directory: Path, model: models.Classifier, description: Description) -> None:
    """Write model.pt and model.json; weights are stored as they are on a CPU, in their own dtype."""
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    with replaced_file(directory / "model.pt") as temporary:
        torch.save(state, temporary)
    write_json(directory / "model.json", asdict(description))


def load(directory: Path) -> tuple[models.Classifier, Description]:
    """Read what `save` wrote: the model, on the CPU and in evaluation mode, and its description.

    Raises:
        UserError: a file is missing or damaged, the two do not belong together, or a weight is not finite.
    """
    path = directory / "model.pt"
    try:
        description = Description(**read_json(directory / "model.json"))
        model = build(description)
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{directory / 'model.json'}: not made by the train stage ({error}); `dvc repro -f train`"
        ) from None
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: not a state dict of tensors alone, so it was not opened; `dvc repro -f train`"
        ) from None
    except (RuntimeError, EOFError, AttributeError, TypeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: does not fit model.json or is damaged ({first}); `dvc repro -f train`") from None
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{path}: {broken[0]} holds values that are not finite; `dvc repro -f train`")
    return model.eval(), description
