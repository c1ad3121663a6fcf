"""What the stages tell about a model and its scores, whoever keeps it: MLflow, TensorBoard, both or nobody."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn


class Run:
    """The record of a model as a stage sees it. This one, for when tracking is off, does nothing.

    `record` goes into metrics/run.json, so that later stages find the MLflow run and TensorBoard's folder.
    """

    def __init__(self, mlflow: dict[str, str] | None = None, tensorboard: str | None = None) -> None:
        """Make the run that the two name; None is for what is off."""
        self.record: dict[str, Any] = {"mlflow": mlflow, "tensorboard": tensorboard}

    def log_epoch(self, row: Mapping[str, float | None]) -> None:
        """Record a row of metrics/history.csv at step `epoch`: `val_loss` as `val/loss`, `lr` as `train/lr`."""

    def log_metrics(self, figures: Mapping[str, float], step: int = 0) -> None:
        """Record figures, such as `test/accuracy`, of the run and of its logged model; curves have steps."""

    def set_tags(self, sections: Mapping[str, object]) -> None:
        """Record other facts, nested keys as `section.key`; unlike a run's parameters they may be set again."""

    def describe_as(self, text: str) -> None:
        """Set the text, in Markdown, that stands at the head of the run's page."""

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Keep a picture as the artifact `figures/<name>.png`."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file as the artifact `<folder>/<file name>`."""

    def log_model(self, model: "nn.Module", example: np.ndarray, classes: Sequence[str]) -> None:
        """Keep the model as an exported graph that loads, for any batch size, without this code; only in `train`.

        `model` is on the CPU, in evaluation mode, and maps uint8 [N, H, W, C] to float32 probabilities
        [N, classes]; `example` is at least two of its inputs.
        """

    def register_model(self, val_accuracy: float | None) -> None:
        """Enter the logged model, and how well it validates if that is known, into the registry; only in `train`."""


def epoch_metrics(row: Mapping[str, float | None]) -> dict[str, float]:
    """What a row of metrics/history.csv is called as metrics: `val_loss` is `val/loss`, `lr` is `train/lr`."""
    return {_metric(column): value for column, value in row.items() if column != "epoch" and value is not None}


def _metric(column: str) -> str:
    split, _, figure = column.partition("_")
    return f"{split}/{figure}" if split in ("train", "val") else f"train/{column}"
