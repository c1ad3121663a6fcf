"""The trained model on disk: model.pt, a state dict, and model.json, all that is needed to rebuild the network."""

import io
import pickle
import textwrap
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from vision.core.models import classifier
from vision.pipeline.errors import UserError
from vision.storage.arrays import ImageSpec
from vision.storage.atomic import atomic_write
from vision.storage.tables import read_json, write_json


@dataclass(frozen=True)
class Description(ImageSpec):
    """The network and the images that it is for; see `models.build`."""

    name: str
    options: dict[str, Any]
    image_size: Annotated[int, Field(ge=2, le=2048)] | None = None


def build(description: Description) -> classifier.Classifier:
    """Make the network that is described, its weights random."""
    inputs = classifier.InputSpec(description.image_shape, description.mean, description.std, description.image_size)
    return classifier.build(description.name, description.options, inputs, len(description.classes))


def save(directory: Path, model: classifier.Classifier, description: Description) -> None:
    """Write model.pt and model.json; weights are stored as they are on a CPU, in their own dtype."""
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    written = io.BytesIO()  # torch itself does not say why a file cannot be written
    torch.save(state, written)
    with atomic_write(directory / "model.pt") as temporary:
        temporary.write_bytes(written.getbuffer())
    write_json(directory / "model.json", asdict(description))


def load(directory: str | Path) -> tuple[classifier.Classifier, Description]:
    """Read what `save` wrote: the model, on the CPU and in evaluation mode, and its description.

    Raises:
        UserError: a file is missing or damaged, the two do not belong together, or a weight is not finite.
    """
    directory = Path(directory)
    path = directory / "model.pt"
    description = read_json(directory / "model.json", Description)
    try:
        model = build(description)
    except Exception as error:  # other options than the train stage wrote can raise nearly anything
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{directory / 'model.json'}: not made by the train stage ({reason}); `dvc repro -f train`"
        ) from None
    try:
        state = read_state(path)
        for name, value in model.state_dict().items():
            if name in state and state[name].dtype != value.dtype:
                raise UserError(f"{name} holds {state[name].dtype}, not {value.dtype}")
        model.load_state_dict(state)
        check_finite(state)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except UserError as error:
        raise UserError(f"{path}: {error}; `dvc repro -f train`") from None
    except (RuntimeError, TypeError) as error:
        first = " ".join((str(error) or type(error).__name__).split())
        raise UserError(
            f"{path}: does not fit model.json ({textwrap.shorten(first, 200)}); `dvc repro -f train`"
        ) from None
    return model.eval(), description


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict that `torch.save` wrote, onto the CPU; nothing else that a pickle may hold is opened.

    A tensor may say that it is larger than memory, while the file is small: compare its shape before using it.

    Raises:
        UserError: it is damaged or no state dict; the path is left to the caller.
        FileNotFoundError: there is no such file.
    """
    if path.exists() and not path.is_file():
        raise UserError("not a file")  # to read a pipe would take for ever
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError:
        raise UserError("not a state dict of tensors alone, so it was not opened") from None
    except Exception as error:  # a damaged file can raise nearly anything
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"damaged, or not made by torch.save ({first})") from None
    kinds = {(type(name), type(value)) for name, value in state.items()} if isinstance(state, dict) else set()
    if not kinds or not all(name is str and issubclass(value, Tensor) for name, value in kinds):
        raise UserError("not a state dict: expected a dictionary of tensors")
    return state


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raises UserError where a weight is not a finite number; the path is left to the caller."""
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{broken[0]} holds values that are not finite")
