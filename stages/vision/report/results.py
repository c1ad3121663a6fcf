"""Read the results of a run from disk, and check that the files belong to the same run."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from typing_extensions import TypedDict

from vision.pipeline.errors import UserError
from vision.pipeline.metrics_schemas import (
    CalibrationBin,
    ClassScores,
    CorruptionScore,
    DatasetMetrics,
    HistoryRow,
    RunRecord,
    SpeedMetrics,
    TestMetrics,
    TrainMetrics,
)
from vision.pipeline.validation import Line, printable
from vision.storage import arrays
from vision.storage.arrays import HeatMaps
from vision.storage.tables import read_csv, read_json


class ModelSummary(TypedDict):
    """The part of models/model.json that the report shows."""

    name: Line
    classes: list[str]


@dataclass(frozen=True)
class Predictions:
    """data/predictions/test.csv, for N images: labels int [N], and the probability of the predicted class [N]."""

    actual: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Results:
    """The results of a run.

    `confusion` is int [K, K], test images by actual (rows) and predicted class (columns); `images` are the test images,
    uint8 [N, H, W, C]; `heat_maps` are of the most confident mistakes; `samples` is the picture of training images.
    `corruptions` is empty if they are off.
    """

    classes: list[str]
    dataset: DatasetMetrics
    model: ModelSummary
    run: RunRecord
    train: TrainMetrics
    speed: SpeedMetrics
    test: TestMetrics
    history: list[HistoryRow]
    per_class: list[ClassScores]
    calibration: list[CalibrationBin]
    calibration_before: list[CalibrationBin]
    corruptions: list[CorruptionScore]
    confusion: np.ndarray
    predictions: Predictions
    heat_maps: HeatMaps
    images: np.ndarray
    samples: Image.Image


def read_results(root: Path) -> Results:
    """Read the outputs of all other stages in a checkout.

    Raises:
        UserError: a file is missing or damaged, or two files do not match.
    """
    metrics, processed = root / "metrics", root / "data" / "processed"
    stats = arrays.read_stats(processed)
    classes = stats.classes
    images = arrays.read_split(processed, "test", len(classes), stats.image_shape).images
    predictions = read_predictions(root / "data" / "predictions" / "test.csv", classes)
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (predictions.actual, predictions.predicted), 1)
    results = Results(
        classes=classes,
        dataset=read_json(metrics / "dataset.json", DatasetMetrics),
        model=read_json(root / "models" / "model.json", ModelSummary),
        run=read_json(metrics / "run.json", RunRecord),
        train=read_json(metrics / "train.json", TrainMetrics),
        speed=read_json(metrics / "speed.json", SpeedMetrics),
        test=read_json(metrics / "test.json", TestMetrics),
        history=read_csv(metrics / "history.csv", HistoryRow),
        per_class=read_csv(metrics / "per_class.csv", ClassScores),
        calibration=read_csv(metrics / "calibration.csv", CalibrationBin),
        calibration_before=read_csv(metrics / "calibration_before.csv", CalibrationBin),
        corruptions=read_csv(metrics / "corruptions.csv", CorruptionScore, allow_empty=True),
        confusion=confusion,
        predictions=predictions,
        heat_maps=arrays.read_heat_maps(root / "data" / "predictions", len(images)),
        images=images,
        samples=_read_picture(root / "data" / "samples.png"),
    )
    _check_consistency(results, read_csv(metrics / "confusion_matrix.csv"))
    return results


def _check_consistency(results: Results, matrix: list[dict[str, str]]) -> None:
    """Raise UserError if two files are of different runs; `matrix` is the content of metrics/confusion_matrix.csv."""
    classes, images = results.classes, len(results.images)
    dataset, train, predictions = results.dataset, results.train, results.predictions
    rows = (dict(zip(classes, row, strict=True)) for row in results.confusion.astype(str).tolist())
    confusion = [{"actual": name, **row} for name, row in zip(classes, rows, strict=True)]
    accuracy = np.mean(predictions.actual == predictions.predicted)
    validated = {value is not None for row in results.history for value in (row.val_loss, row.val_accuracy)}
    table = "data/predictions/test.csv"
    for file, other, stage, matches in (
        (table, "data/processed", "evaluate", len(predictions.actual) == images),
        ("metrics/confusion_matrix.csv", table, "evaluate", matrix == confusion),
        ("metrics/per_class.csv", table, "evaluate", [row.name for row in results.per_class] == classes),
        ("metrics/calibration.csv", table, "evaluate", _count_images(results.calibration) == images),
        ("metrics/calibration_before.csv", table, "evaluate", _count_images(results.calibration_before) == images),
        ("metrics/test.json", table, "evaluate", abs(results.test.accuracy - accuracy) < 1e-9),
        ("metrics/corruptions.csv", "metrics/test.json", "evaluate", _match_mean(results)),
        (
            "metrics/dataset.json",
            "data/processed",
            "preprocess",
            list(dataset.by_class) == classes and dataset.classes == len(classes) and dataset.test == images,
        ),
        ("models/model.json", "data/processed", "train", results.model["classes"] == classes),
        (
            "metrics/history.csv",
            "metrics/train.json",
            "train",
            len(results.history) == train.epochs >= train.best_epoch and len(validated) == 1,
        ),
    ):
        if not matches:
            raise UserError(f"{file}: does not match {other}; run `dvc repro -f {stage}`")


def _match_mean(results: Results) -> bool:
    """Whether metrics/corruptions.csv has each corruption at each severity, or is off as in metrics/test.json."""
    rows, mean = results.corruptions, results.test.corrupted_accuracy
    if not rows or mean is None:
        return not rows and mean is None
    names = dict.fromkeys(row.corruption for row in rows)
    complete = [(row.corruption, row.severity) for row in rows] == [(name, n) for name in names for n in range(1, 6)]
    return complete and abs(sum(row.accuracy for row in rows) / len(rows) - mean) < 1e-9


def _count_images(bins: list[CalibrationBin]) -> int:
    return sum(row.images for row in bins)


def read_predictions(path: Path, classes: list[str]) -> Predictions:
    """Read data/predictions/test.csv.

    Raises:
        UserError: the file is missing or damaged, or was made with other classes.
    """
    labels = {name: label for label, name in enumerate(classes)}
    rows = read_csv(path)
    try:
        actual = np.array([labels[row["actual"]] for row in rows], dtype=int)
        predicted = np.array([labels[row["predicted"]] for row in rows], dtype=int)
        confidence = np.array([float(row[f"p_{row['predicted']}"]) for row in rows])
    except (KeyError, ValueError) as error:
        reason = printable(error)[:100]
        raise UserError(f"{path}: damaged, or of other classes ({reason}); delete it and run `dvc repro`") from None
    if not ((confidence >= 0) & (confidence <= 1)).all():  # also refuses NaN
        raise UserError(f"{path}: has probabilities outside 0 to 1; delete it and run `dvc repro`")
    return Predictions(actual, predicted, confidence)


def _read_picture(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return Image.open(path, formats=["PNG"]).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except Exception as error:  # a damaged file can raise any exception
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise UserError(f"{path}: not a picture{reason}; delete it and run `dvc repro`") from None
