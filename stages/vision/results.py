"""All that a run left on disk, read and checked once, for the report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vision import arrays
from vision.arrays import read_document
from vision.stage import UserError


@dataclass(frozen=True)
class Results:
    """What the files of a run say; K classes, N test images.

    `confusion` is int [K, K], images by actual (rows) and predicted class; `actual` and `predicted` are int [N],
    `confidence` is float [N], the probability of the predicted class; `images` is uint8 [N, H, W, C].
    """

    classes: list[str]
    dataset: dict[str, Any]
    model: dict[str, Any]
    run: dict[str, Any]
    train: dict[str, Any]
    test: dict[str, Any]
    history: list[dict[str, Any]]
    per_class: list[dict[str, Any]]
    calibration: list[dict[str, Any]]
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
    classes = arrays.read_stats(processed).classes
    images = arrays.read_split(processed, "test").images
    confusion = np.array(
        [list(row.values()) for row in _table(metrics / "confusion_matrix.csv", dict.fromkeys(classes, int))]
    )
    predictions = root / "data" / "predictions" / "test.csv"
    actual, predicted, confidence = _predictions(predictions, classes)
    counted = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counted, (actual, predicted), 1)
    if len(actual) != len(images) or not np.array_equal(counted, confusion):
        raise UserError(f"{predictions}: does not fit {metrics} and {processed}; `dvc repro -f evaluate` renews it")
    losses = {f"{split}_{score}": _figure for split in ("train", "val") for score in ("loss", "accuracy")}
    scores = {"precision": float, "recall": float, "f1": float, "images": int}
    bins = {"confidence_from": float, "confidence_to": float, "images": int, "confidence": float, "accuracy": float}
    return Results(
        classes=classes,
        dataset=read_document(metrics / "dataset.json", "classes", "train", "val", "test", "by_class"),
        model=read_document(root / "models" / "model.json", "name"),
        run=read_document(
            metrics / "run.json",
            "mlflow",
            "tensorboard",
            *(f"environment.{key}" for key in ("device", "device_name", "precision", "versions")),
        ),
        train=read_document(
            metrics / "train.json", "best_epoch", "epochs", "seconds", "images_per_s", "share_of_peak", "parameters"
        ),
        test=read_document(metrics / "test.json", "accuracy", "accuracy_one_view", "f1_macro", "calibration_error"),
        history=_table(metrics / "history.csv", losses),
        per_class=_table(metrics / "per_class.csv", {"class": str, **scores}),
        calibration=_table(metrics / "calibration.csv", bins),
        confusion=confusion,
        actual=actual,
        predicted=predicted,
        confidence=confidence,
        images=images,
        samples=_picture(root / "data" / "samples.png"),
    )


def _table(path: Path, columns: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
    rows = []
    for line, row in enumerate(arrays.read_csv(path), start=2):
        try:
            rows.append({name: convert(row[name]) for name, convert in columns.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: line {line} is damaged ({error}); delete the file and run `dvc repro`") from None
    if not rows:
        raise UserError(f"{path}: holds no rows; delete it and run `dvc repro`")
    return rows


def _figure(cell: str) -> float | None:
    """A number; None for the empty cell of a split that there is not."""
    return float(cell) if cell else None


def _predictions(path: Path, classes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = {name: label for label, name in enumerate(classes)}
    rows = arrays.read_csv(path)
    try:
        actual = np.array([place[row["actual"]] for row in rows], dtype=int)
        predicted = np.array([place[row["predicted"]] for row in rows], dtype=int)
        confidence = np.array([float(row[f"p_{row['predicted']}"]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged, or of other classes ({error}); delete it and run `dvc repro`") from None
    return actual, predicted, confidence


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; `dvc repro` makes it") from None
    except OSError as error:
        raise UserError(f"{path}: not a picture ({error}); delete it and run `dvc repro`") from None
