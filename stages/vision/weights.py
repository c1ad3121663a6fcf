"""The trained model on disk: model.pt, a state dict, and model.json, all that is needed to rebuild the network."""

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision import models
from vision.arrays import read_json, replaced_file, write_json
from vision.stage import UserError


@dataclass(frozen=True)
class Description:
    """The network and its data; see `models.build`. `classes` are the names in the order of the logits."""

    name: str
    options: dict[str, Any]
    classes: list[str]
    image_shape: list[int]
    mean: list[float]
    std: list[float]
    image_size: int | None = None


def build(description: Description) -> models.Classifier:
    """Make the network that is described, its weights random."""
    return models.build(
        description.name,
        description.options,
        image_shape=description.image_shape,
        classes=len(description.classes),
        mean=description.mean,
        std=description.std,
        image_size=description.image_size,
    )


def save(directory: Path, model: models.Classifier, description: Description) -> None:
    """Write model.pt and model.json; weights are stored as they are on a CPU, in their own dtype."""
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    with replaced_file(directory / "model.pt") as temporary:
        torch.save(state, temporary)
    write_json(directory / "model.json", asdict(description))


def load(directory: str | Path) -> tuple[models.Classifier, Description]:
    """Read what `save` wrote: the model, on the CPU and in evaluation mode, and its description.

    Raises:
        UserError: a file is missing or damaged, the two do not belong together, or a weight is not finite.
    """
    directory = Path(directory)
    path = directory / "model.pt"
    try:
        description = Description(**read_json(directory / "model.json"))
        model = build(description)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{directory / 'model.json'}: not made by the train stage ({error}); `dvc repro -f train`"
        ) from None
    try:
        model.load_state_dict(read_state(path))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except UserError as error:
        raise UserError(f"{path}: {error}; `dvc repro -f train`") from None
    except (RuntimeError, TypeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: does not fit model.json ({first}); `dvc repro -f train`") from None
    return model.eval(), description


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict that `torch.save` wrote, onto the CPU; nothing else that a pickle may hold is opened.

    Raises:
        UserError: it is damaged or no state dict, or a value is not finite; the path is left to the caller.
        FileNotFoundError: there is no such file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError("not a state dict of tensors alone, so it was not opened") from None
    except (RuntimeError, EOFError, AttributeError, TypeError, ValueError, KeyError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"damaged, or not made by torch.save ({first})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("not a state dict: expected a dictionary of tensors")
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{broken[0]} holds values that are not finite")
    return state
