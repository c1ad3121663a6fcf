"""The schema of params.yaml. `load_params` validates the whole file before a stage does anything.

To add a parameter, add a line to params.yaml and a field to the class of its section here. A parameter of the training
is also a field of `TrainConfig` in vision/core/config.py, and each recipe sets it.
"""

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT
from vision.pipeline.strict_yaml import read_yaml
from vision.pipeline.validation import (
    Count,
    NonNegativeCount,
    OneLine,
    Positive,
    check_one_line,
    check_unique,
    format_error,
    format_input,
    format_location,
)

# Upper bounds lie far above every useful value. Beyond them float32 overflows or a figure fills the memory.
PositiveRate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Channels = Annotated[int, Field(ge=1, le=4096)]
FractionPerPart = Annotated[list[Annotated[float, Field(ge=0.001, le=1)]], Field(min_length=1, max_length=100)]
PathText = Annotated[str, Field(max_length=4096), OneLine]

_MAX_ERRORS = 20


def _check_digest(checksum: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", checksum):
        raise PydanticCustomError("checksum", "Value should be an MD5 (32 digits of 0-9a-f) or a SHA-256 (64)")
    return checksum


def _check_hue(strengths: list[float]) -> list[float]:
    if strengths[-1] > 0.5:
        raise PydanticCustomError("hue", "Value should have a hue, its last number, of at most 0.5")
    return strengths


def _check_corruptions(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or len(value) > 4096:
        raise PydanticCustomError("corruptions", "Input should be false, true or the path of a folder")
    return check_one_line(value)


class Section(BaseModel):
    """A section of params.yaml. Every key is required, other keys are errors, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Download(Section):
    """The source of the raw data."""

    dataset: Literal["cifar10", "cifar100", "folder"]
    source: PathText
    checksums: Annotated[dict[str, Annotated[str, AfterValidator(_check_digest)]], Field(min_length=1)] | None

    @field_validator("source")
    @classmethod
    def _check_folder_path(cls, source: str, info: ValidationInfo) -> str:
        if info.data.get("dataset") == "folder" and source == "auto":
            raise PydanticCustomError("path", "Input should be the path of the folder of images, such as ../photos")
        return source

    @field_validator("checksums")
    @classmethod
    def _check_unused_checksums(cls, checksums: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        unused = info.data.get("source") == "auto" or info.data.get("dataset") == "folder"
        if checksums is not None and unused:
            raise PydanticCustomError("checksums", "Input should be null for source: auto and for dataset: folder")
        return checksums


class Preprocess(Section):
    """Selection, size, splits and normalization of the images."""

    classes: Annotated[list[str], Field(min_length=2), AfterValidator(check_unique)] | None
    image_size: Annotated[int, Field(ge=8, le=1024)] | None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    val_fraction: Annotated[float, Field(ge=0, le=0.5)]
    folds: Annotated[int, Field(ge=2, le=1000)] | None
    fold: Annotated[int, Field(ge=0)]
    train_limit: Count | None
    groups: PathText | None
    normalize: Literal["per_channel", "half", "imagenet"]
    samples_per_class: Annotated[int, Field(ge=1, le=50)]

    @field_validator("fold")
    @classmethod
    def _check_fold(cls, fold: int, info: ValidationInfo) -> int:
        folds = info.data.get("folds")
        if folds is None and fold > 0:
            raise PydanticCustomError("fold", "Input should be 0 if preprocess.folds is null")
        if folds is not None and fold >= folds:
            context = {"folds": folds}
            raise PydanticCustomError("fold", "Input should be less than preprocess.folds, which is {folds}", context)
        return fold


class ConvNet(Section):
    """The default network."""

    widths: Annotated[list[Channels], Field(min_length=1, max_length=4)]
    depth: Annotated[int, Field(ge=1, le=16)]


class PlainCNN(Section):
    """The network of textbooks: convolutions, then linear layers."""

    widths: Annotated[list[Channels], Field(min_length=1, max_length=8)]
    depth: Annotated[int, Field(ge=1, le=16)]
    kernel: Annotated[int, Field(ge=1, le=15)]
    padding: Literal["same", "valid"]
    batch_norm: bool
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(max_length=8)]
    dropout: Fraction


class Torchvision(Section):
    """Networks of torchvision."""

    stem: Literal["small", "standard"]


class Model(Section):
    """The network."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=100)]
    image_size: Annotated[int, Field(ge=2, le=2048)] | None
    weights: PathText | None
    freeze_epochs: NonNegativeCount
    convnet: ConvNet
    plain_cnn: PlainCNN
    torchvision: Torchvision

    @property
    def family(self) -> str:
        """The section of params.yaml that describes the network `name`."""
        return self.name if self.name in self.families() else "torchvision"

    @classmethod
    def families(cls) -> list[str]:
        """The sections that describe networks."""
        return [
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        ]


class Optimizer(Section):
    """The optimizer; `train.lr` is its learning rate."""

    name: Literal["muon", "sgd", "adam", "adamw"]
    adamw_lr: PositiveRate
    momentum: Fraction
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Augment(Section):
    """Augmentation of the training images."""

    flip: Literal["none", "random", "alternate"]
    crop_padding: Annotated[int, Field(ge=0, le=64)]
    rotation: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)]
    color_jitter: Annotated[list[Strength], Field(min_length=4, max_length=4), AfterValidator(_check_hue)]
    cutout: Annotated[int, Field(ge=0, le=4096)]
    blur: Strength
    noise: Strength
    mixup: Strength
    cutmix: Strength


class Train(Section):
    """The training."""

    device: Literal["auto", "cuda", "mps", "cpu"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    deterministic: bool
    fast_weight_gradients: Literal["auto", "off"]
    fused_blocks: Literal["auto", "off"]
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)]
    lr: PositiveRate
    schedule: Literal["constant", "step", "cosine", "one_cycle", "linear"]
    warmup: Fraction
    optimizer: Optimizer
    augment: Augment
    clip_grad_norm: PositiveRate | None
    label_smoothing: Fraction
    class_weights: Literal["balanced"] | None
    logit_adjustment: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
    progressive_resizing: FractionPerPart
    hard_example_fraction: FractionPerPart
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    keep: Literal["val_loss", "val_accuracy", "last"]
    patience: Count | None
    checkpoint_seconds: Positive | None

    @field_validator("patience")
    @classmethod
    def _check_keep(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and info.data.get("keep") == "last":
            raise PydanticCustomError("patience", "Input should be null if train.keep is last")
        return patience


class Evaluate(Section):
    """Scoring on the test split."""

    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    tta: Literal["none", "flip", "shift"]
    tta_fraction: Annotated[float, Field(ge=0, le=1)]
    corruptions: Annotated[
        bool | str, PlainValidator(_check_corruptions), WithJsonSchema(TypeAdapter(bool | PathText).json_schema())
    ]


class Report(Section):
    """The HTML report and the model card."""

    title: Annotated[str, Field(max_length=1000), OneLine]
    intended_use: Annotated[str, Field(max_length=1000), OneLine]
    license: Annotated[str, Field(max_length=1000), OneLine]
    predictions: Annotated[int, Field(ge=1, le=500)]
    mistakes: Annotated[int, Field(ge=1, le=500)]
    confused_pairs: Annotated[int, Field(ge=1, le=100)]


class Tracking(Section):
    """MLflow and TensorBoard."""

    enabled: bool
    experiment: Annotated[str, Field(max_length=250), OneLine]
    registry: bool
    tensorboard: bool


def _check_finite(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PydanticCustomError("finite", "Input should be a finite number")
    return value


Number = Annotated[float, PlainValidator(_check_finite)]
"""An int or a float; unlike `float`, it keeps an int."""


class SearchParameter(Section):
    """A parameter to search, from `low` to `high` or among `choices`. Only here, keys are optional."""

    parameter: Annotated[str, Field(max_length=100), OneLine]
    low: Number | None = None
    high: Number | None = None
    log: bool = False
    choices: Annotated[list[Any], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_range(self) -> "SearchParameter":
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise PydanticCustomError("range", "Value should have either choices, or low and high")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise PydanticCustomError("range", "Value should have choices, or low and high with low < high")
        elif self.log and self.low <= 0:
            raise PydanticCustomError("range", "Value should have low > 0 if log is true")
        return self


class Search(Section):
    """Hyperparameter search."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)]
    trials: Count
    jobs: Annotated[int, Field(ge=1, le=256)]
    sampler: Literal["tpe", "random"]
    pruner: Literal["median", "halving"] | None
    space: Annotated[list[SearchParameter], Field(min_length=1, max_length=50)]


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    download: Download
    preprocess: Preprocess
    model: Model
    train: Train
    evaluate: Evaluate
    report: Report
    tracking: Tracking
    search: Search


def load_params(path: Path = ROOT / "params.yaml") -> Params:
    """Read and validate params.yaml.

    Raises:
        UserError: one line for each error in the file.
    """
    return validate_params(read_yaml(path), path.name)


def validate_params(document: object, file: str) -> Params:
    """Validate the content of params.yaml.

    Args:
        document: what the YAML parser returned.
        file: start of each line of an error message.

    Raises:
        UserError: one line for each error, at most 20.
    """
    try:
        return Params.model_validate(document)
    except ValidationError as validation_error:
        errors = validation_error.errors(include_url=False)[:_MAX_ERRORS]
        # A misspelled key is one error, not also a missing key.
        suggestions = {_closest_key(error["loc"]) for error in errors if error["type"] == "extra_forbidden"}
        errors = [
            one for one in errors if not (one["type"] == "missing" and format_location(one["loc"]) in suggestions)
        ]
        lines = [_format_params_error(error) for error in errors]
        if (hidden := validation_error.error_count() - _MAX_ERRORS) > 0:
            lines.append(f"and {hidden:,} more errors")
        raise UserError("\n".join(f"{file}: {line}" for line in lines)) from None


def parameter_names(section: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """Return the names of all parameters as DVC writes them, such as `train.lr`, in the order of params.yaml."""
    names = []
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += parameter_names(field.annotation, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def _format_params_error(details: ErrorDetails) -> str:
    """Like `format_error`, with the known keys for an unknown one."""
    location = format_location(details["loc"])
    match details["type"]:
        case "extra_forbidden":
            if closest := _closest_key(details["loc"]):
                return f"{location}: unknown key; did you mean {closest}?"
            return f"{location}: unknown key; known keys: {', '.join(_section_at(details['loc']).model_fields)}"
        case "model_type" | "model_attributes_type":
            found = format_input(details["input"])
            return f"{location}: must be a section of keys {found}" if location else "must be a mapping of sections"
        case "invalid_key":
            return f"{location}: a key must be a string"
        case _:
            return format_error(details)


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section that holds the key at `location`."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            # An item of a list has the section in the list's annotation.
            section = cast(type[BaseModel], get_args(annotation)[0] if get_args(annotation) else annotation)
    return section


def _closest_key(location: tuple[int | str, ...]) -> str | None:
    """The location of the known key most similar to the unknown one at `location`; None if none is similar."""
    keys = difflib.get_close_matches(str(location[-1]), _section_at(location).model_fields, n=1, cutoff=0.5)
    return format_location((*location[:-1], keys[0])) if keys else None
