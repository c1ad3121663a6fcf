"""The trained model on disk: model.pt has the weights, model.json describes the network."""

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

from vision.core.models.classifier import Classifier, InputSpec
from vision.core.models.registry import create_model
from vision.pipeline.errors import UserError
from vision.pipeline.validation import Share
from vision.storage.arrays import ImageSpec
from vision.storage.atomic import atomic_write
from vision.storage.tables import read_json, write_json


@dataclass(frozen=True)
class ModelConfig(ImageSpec):
    """The network and its input images, as model.json holds them.

    Attributes:
        name: of the network; see `vision.core.models.registry.create_model`.
        options: the section of params.yaml that describes the network.
        image_size: size in pixels that the network resizes images to; None leaves them.
        min_confidence: an image whose highest probability is lower is unknown; None if that was not fitted.
    """

    name: str
    options: dict[str, Any]
    image_size: Annotated[int, Field(ge=2, le=2048)] | None = None
    min_confidence: Share | None = None


def build_model(config: ModelConfig) -> Classifier:
    """Build the network with random weights.

    Raises:
        ValueError: there is no such network, or it cannot take such images. The message names the parameter.
    """
    inputs = InputSpec(config.image_shape, config.mean, config.std, config.image_size)
    return create_model(config.name, config.options, inputs, len(config.classes))


def save_model(directory: Path, model: Classifier, config: ModelConfig) -> None:
    """Write model.pt, a state dict of CPU tensors, and model.json to `directory`."""
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    buffer = io.BytesIO()  # if torch.save wrote to the file, its error would not say why the disk refused
    torch.save(state, buffer)
    with atomic_write(directory / "model.pt") as temporary:
        temporary.write_bytes(buffer.getbuffer())
    write_json(directory / "model.json", asdict(config))


def load_model(directory: str | Path) -> tuple[Classifier, ModelConfig]:
    """Read what `save_model` wrote.

    Returns:
        The model, on the CPU and in evaluation mode, and its description. The model maps images [B, H, W, C], uint8 or
        float32 in [0, 255], to logits [B, classes]; `config.classes` has the names of the classes.

    Raises:
        UserError: a file is missing or damaged, the two do not fit each other, or a weight is not finite.
    """
    directory = Path(directory)
    path = directory / "model.pt"
    config = read_json(directory / "model.json", ModelConfig)
    try:
        model = build_model(config)
    except Exception as error:  # options that the train stage did not write can raise anything
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{directory / 'model.json'}: not made by the train stage ({reason}); `dvc repro -f train`"
        ) from None
    try:
        state = read_state_dict(path)
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
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        raise UserError(f"{path}: does not fit model.json ({reason}); `dvc repro -f train`") from None
    return model.eval(), config


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict that `torch.save` wrote, onto the CPU. Objects other than tensors are not unpickled.

    Compare the shape of a tensor before you use it: in a malicious file it may be larger than the memory.

    Raises:
        UserError: the file is damaged or not a state dict. The message does not name the file.
        FileNotFoundError: there is no such file.
    """
    if path.exists() and not path.is_file():
        raise UserError("not a file")  # reading a pipe would block
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about files that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError:
        raise UserError("holds other objects than tensors, so it was not unpickled") from None
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"damaged, or not written by torch.save ({reason})") from None
    types = {(type(name), type(value)) for name, value in state.items()} if isinstance(state, dict) else set()
    if not types or not all(name is str and issubclass(value, Tensor) for name, value in types):
        raise UserError("not a state dict: expected a dictionary of tensors")
    return state


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise UserError if a tensor has a value that is not finite. The message does not name the file."""
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{name} has values that are not finite")
