"""The schema of params.yaml, and `load_params()`: the whole file is checked before a stage does anything."""

import difflib
import math
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from vision.pipeline.errors import UserError
from vision.pipeline.paths import ROOT
from vision.pipeline.validation import (
    Count,
    NonNegativeCount,
    OneLine,
    Positive,
    all_different,
    got,
    place,
    printable,
    told,
)

# Bounds that no good value comes near, and beyond which float32 overflows or a figure takes all memory.
Rate = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Channels = Annotated[int, Field(ge=1, le=4096)]
Parts = Annotated[list[Annotated[float, Field(ge=0.001, le=1)]], Field(min_length=1, max_length=100)]

_MOST_BYTES = 2**18
_MOST_TOLD = 20  # mistakes


def _hex_digest(checksum: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", checksum):
        raise PydanticCustomError("checksum", "Value should be an MD5 (32 digits of 0-9a-f) or a SHA-256 (64)")
    return checksum


def _with_a_hue(strengths: list[float]) -> list[float]:
    if strengths[-1] > 0.5:
        raise PydanticCustomError("hue", "Value should have as its last, the hue, at most 0.5")
    return strengths


class Section(BaseModel):
    """A part of params.yaml: every key is required, no other key is allowed, no value is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Download(Section):
    """Where the raw data comes from."""

    dataset: Literal["cifar10", "cifar100", "folder"]
    source: Annotated[str, Field(max_length=4096), OneLine]
    checksums: Annotated[dict[str, Annotated[str, AfterValidator(_hex_digest)]], Field(min_length=1)] | None

    @field_validator("source")
    @classmethod
    def _a_folder_is_named(cls, source: str, info: ValidationInfo) -> str:
        if info.data.get("dataset") == "folder" and source == "auto":
            raise PydanticCustomError("path", "Input should be the path of the folder of images, such as ../photos")
        return source

    @field_validator("checksums")
    @classmethod
    def _checksums_are_of_a_path(cls, checksums: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        unused = info.data.get("source") == "auto" or info.data.get("dataset") == "folder"
        if checksums is not None and unused:
            raise PydanticCustomError("checksums", "Input should be null for source: auto and for dataset: folder")
        return checksums


class Preprocess(Section):
    """How the images are chosen, sized, split and described."""

    classes: Annotated[list[str], Field(min_length=2), AfterValidator(all_different)] | None
    image_size: Annotated[int, Field(ge=8, le=1024)] | None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)]
    val_fraction: Annotated[float, Field(ge=0, le=0.5)]
    folds: Annotated[int, Field(ge=2, le=1000)] | None
    fold: Annotated[int, Field(ge=0)]
    train_limit: Count | None
    normalize: Literal["per_channel", "half", "imagenet"]
    samples_per_class: Annotated[int, Field(ge=1, le=50)]

    @field_validator("fold")
    @classmethod
    def _one_of_the_folds(cls, fold: int, info: ValidationInfo) -> int:
        folds = info.data.get("folds")
        if fold >= (folds or 1):
            context = {"folds": "null" if folds is None else folds}
            raise PydanticCustomError("fold", "Input should be less than preprocess.folds, which is {folds}", context)
        return fold


class ConvNet(Section):
    """The fast network."""

    widths: Annotated[list[Channels], Field(min_length=1, max_length=4)]
    depth: Annotated[int, Field(ge=1, le=16)]


class PlainCNN(Section):
    """The textbook's network."""

    widths: Annotated[list[Channels], Field(min_length=1, max_length=8)]
    depth: Annotated[int, Field(ge=1, le=16)]
    kernel: Annotated[int, Field(ge=1, le=15)]
    padding: Literal["same", "valid"]
    batch_norm: bool
    hidden: Annotated[list[Annotated[int, Field(ge=1, le=100_000)]], Field(max_length=8)]
    dropout: Fraction


class Torchvision(Section):
    """A network of torchvision."""

    stem: Literal["small", "standard"]


class Model(Section):
    """The network."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=100)]
    image_size: Annotated[int, Field(ge=2, le=2048)] | None
    weights: Annotated[str, Field(max_length=4096), OneLine] | None
    freeze_epochs: NonNegativeCount
    convnet: ConvNet
    plain_cnn: PlainCNN
    torchvision: Torchvision

    @property
    def family(self) -> str:
        """The section that describes the network `name`."""
        return self.name if self.name in ("convnet", "plain_cnn") else "torchvision"


class Optimizer(Section):
    """The optimizer; `train.lr` is its learning rate."""

    name: Literal["muon", "sgd", "adam", "adamw"]
    adamw_lr: Rate
    momentum: Fraction
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Augment(Section):
    """Augmentation of the training images."""

    flip: Literal["none", "random", "alternate"]
    crop_padding: Annotated[int, Field(ge=0, le=64)]
    rotation: Annotated[float, Field(ge=0, le=180, allow_inf_nan=False)]
    color_jitter: Annotated[list[Strength], Field(min_length=4, max_length=4), AfterValidator(_with_a_hue)]
    cutout: Annotated[int, Field(ge=0, le=4096)]
    mixup: Strength
    cutmix: Strength


class Train(Section):
    """The training."""

    device: Literal["auto", "cuda", "mps", "cpu"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    deterministic: bool
    amx_convolution: Literal["auto", "off"]
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)]
    lr: Rate
    schedule: Literal["constant", "step", "cosine", "one_cycle", "linear"]
    warmup: Fraction
    optimizer: Optimizer
    augment: Augment
    clip_grad_norm: Rate | None
    label_smoothing: Fraction
    progressive_resizing: Parts
    hard_example_fraction: Parts
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    keep: Literal["val_loss", "val_accuracy", "last"]
    patience: Count | None
    checkpoint_seconds: Positive | None

    @field_validator("patience")
    @classmethod
    def _there_is_a_best_epoch(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and info.data.get("keep") == "last":
            raise PydanticCustomError("patience", "Input should be null where train.keep is last")
        return patience


class Evaluate(Section):
    """The test."""

    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    tta: Literal["none", "flip", "shift"]
    tta_fraction: Annotated[float, Field(ge=0, le=1)]


class Report(Section):
    """The page that people look at."""

    title: Annotated[str, Field(max_length=1000), OneLine]
    predictions: Annotated[int, Field(ge=1, le=500)]
    mistakes: Annotated[int, Field(ge=1, le=500)]
    confused_pairs: Annotated[int, Field(ge=1, le=100)]


class Tracking(Section):
    """MLflow and TensorBoard."""

    enabled: bool
    experiment: Annotated[str, Field(max_length=250), OneLine]
    registry: bool
    tensorboard: bool


def _finite(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PydanticCustomError("finite", "Input should be a finite number")
    return value


Number = Annotated[float, PlainValidator(_finite)]
"""A whole number stays one."""


class Searched(Section):
    """A parameter to search, from `low` to `high` or among `choices`; only here may keys be left out."""

    parameter: Annotated[str, Field(max_length=100), OneLine]
    low: Number | None = None
    high: Number | None = None
    log: bool = False
    choices: Annotated[list[Any], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _a_range_or_choices(self) -> "Searched":
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise PydanticCustomError("range", "Value should have either choices, or low and high")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise PydanticCustomError("range", "Value should have choices, or low and a higher high")
        elif self.log and self.low <= 0:
            raise PydanticCustomError("range", "Value should have a low above 0, as log is true")
        return self


class Search(Section):
    """The search for better parameters."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=100)]
    trials: Count
    jobs: Annotated[int, Field(ge=1, le=256)]
    sampler: Literal["tpe", "random"]
    pruner: Literal["median", "halving"] | None
    space: Annotated[list[Searched], Field(min_length=1, max_length=50)]


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
    """Read and check params.yaml.

    Raises:
        UserError: one line for each mistake in the file, all of them at once.
    """
    return checked(_read_yaml(path), path.name)


def checked(document: object, where: str) -> Params:
    """The parameters that a document holds.

    Raises:
        UserError: one line for each mistake, beginning with `where`.
    """
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)[:_MOST_TOLD]
        meant = {_nearest(details["loc"]) for details in mistakes if details["type"] == "extra_forbidden"}
        # A key that is missing because it is misspelt is one mistake, not two.
        lines = [_explain(one) for one in mistakes if not (one["type"] == "missing" and place(one["loc"]) in meant)]
        if error.error_count() > _MOST_TOLD:
            lines.append(f"and {error.error_count() - _MOST_TOLD:,} more mistakes")
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def names(section: type[BaseModel] = Params, prefix: str = "") -> list[str]:
    """The names of all parameters, as DVC writes them: `seed`, `train.lr`."""
    found = []
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += names(field.annotation, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return found


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number, as DVC does (YAML 1.2), and refuses a key given twice, and aliases.

    Ten lines of aliases of aliases would be read as a value of a billion parts.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor} is an alias; write the value itself", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(path: Path) -> object:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path.name}: not a file; move it away, and `git checkout {path.name}`")
        if status.st_size > _MOST_BYTES:
            raise UserError(f"{path.name}: has {status.st_size:,} bytes, more than {_MOST_BYTES:,}; shorten it")
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `git checkout {path.name}` brings it back") from None
    except UnicodeDecodeError:
        raise UserError(f"{path.name}: not a text file (expected YAML in UTF-8)") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path.name}: {where}{printable(error.problem)}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # also of values like a 13th month
        raise UserError(f"{path.name}: not valid YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise UserError(f"{path.name}: nested too deeply") from None


def _explain(details: ErrorDetails) -> str:
    """One line for one pydantic error, which knows of the other keys of the section."""
    where = place(details["loc"])
    match details["type"]:
        case "extra_forbidden":
            near = _nearest(details["loc"])
            known = ", ".join(_section(details["loc"]).model_fields)
            return f"{where}: unknown key; " + (f"did you mean {near}?" if near else f"known here: {known}")
        case "model_type" | "model_attributes_type":
            received = got(details["input"])
            return f"{where}: must be a section of keys {received}" if where else "must be a mapping of sections"
        case "invalid_key":
            return f"{where}: a key must be text"
        case _:
            return told(details)


def _section(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section that holds the key at `location`."""
    section: type[BaseModel] = Params
    for part in location[:-1]:
        if isinstance(part, str):
            kind = section.model_fields[part].annotation
            section = cast(type[BaseModel], get_args(kind)[0] if get_args(kind) else kind)  # of a list, of its items
    return section


def _nearest(location: tuple[int | str, ...]) -> str | None:
    """The known key that an unknown one at `location` looks like, as a path; None where there is none."""
    near = difflib.get_close_matches(str(location[-1]), _section(location).model_fields, n=1, cutoff=0.5)
    return place((*location[:-1], near[0])) if near else None
