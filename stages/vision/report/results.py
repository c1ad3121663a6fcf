"""All that a run left on disk, read and checked once, for the report."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NotRequired

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BeforeValidator, ConfigDict
from typing_extensions import TypedDict

from vision.pipeline.errors import UserError
from vision.pipeline.validation import Count, Finite, Line, NonNegative, NonNegativeCount, Positive, Share, printable
from vision.storage import arrays
from vision.storage.tables import read_csv, read_json
from vision.tracking.run import Record

_AND_MORE = ConfigDict(extra="allow")  # the page lists all figures that there are
_Empty = BeforeValidator(lambda cell: cell or None)
"""The empty cell of a split that there is not."""


class Counts(TypedDict):
    """Images of each split."""

    train: NonNegativeCount
    val: NonNegativeCount
    test: NonNegativeCount


class Dataset(Counts):
    """metrics/dataset.json."""

    classes: Count
    by_class: dict[str, Counts]


class Trained(TypedDict):
    """metrics/train.json."""

    __pydantic_config__ = _AND_MORE  # type: ignore[misc]
    best_epoch: Count
    epochs: Count
    stopped_early: bool
    parameters: Count
    val_accuracy: NotRequired[Share]


class Speed(TypedDict):
    """metrics/speed.json."""

    seconds: NonNegative
    images_per_s: Positive
    share_of_peak: NonNegative
    peak_tflops: Positive


class Tested(TypedDict):
    """metrics/test.json."""

    __pydantic_config__ = _AND_MORE  # type: ignore[misc]
    accuracy: Share
    accuracy_one_view: Share
    f1_macro: Share
    calibration_error: Share


class Environment(TypedDict):
    """What a model was trained with."""

    __pydantic_config__ = _AND_MORE  # type: ignore[misc]
    device: Line
    device_name: str
    precision: Line
    versions: dict[str, str]


class Recorded(Record):
    """metrics/run.json."""

    environment: Environment


class Epoch(TypedDict):
    """A row of metrics/history.csv, as far as it is drawn."""

    train_loss: Finite
    train_accuracy: Share
    val_loss: Annotated[Finite | None, _Empty]
    val_accuracy: Annotated[Share | None, _Empty]


Scores = TypedDict(
    "Scores", {"class": str, "precision": Share, "recall": Share, "f1": Share, "images": NonNegativeCount}
)
"""A row of metrics/per_class.csv."""


class Bin(TypedDict):
    """A row of metrics/calibration.csv."""

    confidence_from: Share
    confidence_to: Share
    images: Count
    confidence: Share
    accuracy: Share


class Model(TypedDict):
    """What the page says of models/model.json."""

    name: Line
    classes: list[str]


@dataclass(frozen=True)
class Results:
    """What the files of a run say; K classes, N test images.

    `confusion` is int [K, K], images by actual (rows) and predicted class; `actual` and `predicted` are int [N],
    `confidence` is float [N], the probability of the predicted class; `images` is uint8 [N, H, W, C].
    """

    classes: list[str]
    dataset: Dataset
    model: Model
    run: Recorded
    train: Trained
    speed: Speed
    test: Tested
    history: list[Epoch]
    per_class: list[Scores]
    calibration: list[Bin]
    confusion: np.ndarray
    actual: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    images: np.ndarray
    samples: Image.Image


def read_results(root: Path) -> Results:
    """Read what the other stages left below `root`.

    Raises:
        UserError: a file is missing or damaged, or two files do not belong together.
    """
    metrics, processed = root / "metrics", root / "data" / "processed"
    stats = arrays.read_stats(processed)
    classes = stats.classes
    images = arrays.read_split(processed, "test", len(classes), stats.image_shape).images
    predictions = root / "data" / "predictions" / "test.csv"
    actual, predicted, confidence = _predictions(predictions, classes)
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (actual, predicted), 1)
    results = Results(
        classes=classes,
        dataset=read_json(metrics / "dataset.json", Dataset),
        model=read_json(root / "models" / "model.json", Model),
        run=read_json(metrics / "run.json", Recorded),
        train=read_json(metrics / "train.json", Trained),
        speed=read_json(metrics / "speed.json", Speed),
        test=read_json(metrics / "test.json", Tested),
        history=read_csv(metrics / "history.csv", Epoch),
        per_class=read_csv(metrics / "per_class.csv", Scores),
        calibration=read_csv(metrics / "calibration.csv", Bin),
        confusion=confusion,
        actual=actual,
        predicted=predicted,
        confidence=confidence,
        images=images,
        samples=_picture(root / "data" / "samples.png"),
    )
    _check_that_they_fit(results, read_csv(metrics / "confusion_matrix.csv"))
    return results


def _check_that_they_fit(results: Results, matrix: list[dict[str, str]]) -> None:
    """Refuse files that are each whole, but not of one run; `matrix` is what metrics/confusion_matrix.csv holds."""
    classes, epochs = results.classes, results.train["epochs"]
    rows = (dict(zip(classes, row, strict=True)) for row in results.confusion.astype(str).tolist())
    validated = {row[name] is None for row in results.history for name in ("val_loss", "val_accuracy")}
    right = np.mean(results.actual == results.predicted)
    binned = sum(row["images"] for row in results.calibration)
    filter_classes = list(results.dataset["by_class"]) == classes and results.dataset["classes"] == len(classes)
    images = len(results.images)
    predictions = "data/predictions/test.csv"
    for one, other, stage, fits in (
        (predictions, "data/processed", "evaluate", len(results.actual) == images),
        (
            "metrics/confusion_matrix.csv",
            predictions,
            "evaluate",
            matrix == [{"actual": name, **row} for name, row in zip(classes, rows, strict=True)],
        ),
        ("metrics/per_class.csv", predictions, "evaluate", [row["class"] for row in results.per_class] == classes),
        ("metrics/calibration.csv", predictions, "evaluate", binned == images),
        ("metrics/test.json", predictions, "evaluate", abs(results.test["accuracy"] - right) < 1e-9),
        ("metrics/dataset.json", "data/processed", "preprocess", filter_classes and results.dataset["test"] == images),
        ("models/model.json", "data/processed", "train", results.model["classes"] == classes),
        (
            "metrics/history.csv",
            "metrics/train.json",
            "train",
            len(results.history) == epochs >= results.train["best_epoch"] and len(validated) == 1,
        ),
    ):
        if not fits:
            raise UserError(f"{one}: does not fit {other}; `dvc repro -f {stage}` makes it anew")


def _predictions(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = {name: label for label, name in enumerate(classes)}
    rows = read_csv(path)
    try:
        actual = np.array([place[row["actual"]] for row in rows], dtype=int)
        predicted = np.array([place[row["predicted"]] for row in rows], dtype=int)
        confidence = np.array([float(row[f"p_{row['predicted']}"]) for row in rows])
    except (KeyError, ValueError) as error:
        reason = printable(error)[:100]
        raise UserError(f"{path}: damaged, or of other classes ({reason}); delete it and run `dvc repro`") from None
    if not ((confidence >= 0) & (confidence <= 1)).all():  # nor NaN
        raise UserError(f"{path}: holds probabilities outside 0 to 1; delete it and run `dvc repro`")
    return actual, predicted, confidence


def _picture(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return Image.open(path, formats=["PNG"]).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except Exception as error:  # a damaged file can raise nearly anything
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise UserError(f"{path}: not a picture{reason}; delete it and run `dvc repro`") from None
