"""A run: what the stages log about one model, passed on to MLflow, TensorBoard, both or neither."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sink(Protocol):
    """Gets what is logged to a `Run`. Do not inherit from it, so that mypy reports a method that is missing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None: ...  # noqa: D102
    def set_tags(self, tags: Mapping[str, object]) -> None: ...  # noqa: D102
    def log_figure(self, name: str, figure: "Figure") -> None: ...  # noqa: D102
    def log_artifact(self, path: Path, folder: str | None) -> None: ...  # noqa: D102
    def log_model(self, save: Callable[[Path], None]) -> None: ...  # noqa: D102
    def register_model(self, val_accuracy: float | None) -> None: ...  # noqa: D102


class Run:
    """Passes everything on to each sink. `record` goes into metrics/run.json, where later stages find the run."""

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        mlflow: Mapping[str, str] | None = None,
        tensorboard: str | None = None,
    ) -> None:
        """Without sinks, tracking is off."""
        self.sinks = sinks
        self.record: dict[str, Any] = {"mlflow": mlflow, "tensorboard": tensorboard}

    def log_epoch(self, metrics: Mapping[str, float | None]) -> None:
        """Log the metrics of an epoch at step `epoch`: `val_loss` as `val/loss`, `lr` as `train/lr`.

        Args:
            metrics: the fields of `EpochMetrics`, and `share_of_peak`. Those that are None are not logged.
        """
        values = {_metric_name(name): value for name, value in metrics.items() if name != "epoch" and value is not None}
        self.log_metrics(values, int(metrics["epoch"] or 0))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at `step`.

        Without a step they are summary values, attached to the run and to its logged model.

        Curves have names with a prefix, such as `train/loss`; MLflow shows them before names without, such as
        `test_accuracy`.
        """
        for sink in self.sinks:
            sink.log_metrics(metrics, step)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, nested keys as `section.key`; unlike parameters, tags may be set again."""
        for sink in self.sinks:
            sink.set_tags(tags)

    def set_description(self, text: str) -> None:
        """Set the Markdown text at the top of the run's page."""
        self.set_tags({"mlflow.note.content": text})

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Log a figure as the artifact `figures/<name>.png`."""
        for sink in self.sinks:
            sink.log_figure(name, figure)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a copy of a file as the artifact `<folder>/<file name>`."""
        for sink in self.sinks:
            sink.log_artifact(path, folder)

    def log_model(self, save: Callable[[Path], None]) -> None:
        """Log the model, which `save` writes to a new folder in MLflow's format."""
        for sink in self.sinks:
            sink.log_model(save)

    def register_model(self, val_accuracy: float | None) -> None:
        """Register the logged model; `val_accuracy`, in [0, 1], is None if there are no validation images."""
        for sink in self.sinks:
            sink.register_model(val_accuracy)


def _metric_name(field: str) -> str:
    split, _, metric = field.partition("_")
    return f"{split}/{metric}" if split in ("train", "val") else f"train/{field}"
