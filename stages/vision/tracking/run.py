"""A run: what the stages log about one model, to MLflow, TensorBoard, both or neither."""

import shutil
import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision.pipeline.formatting import flatten
from vision.pipeline.messages import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

    from vision.tracking.spool import Spool


@dataclass
class Run:
    """Logs to MLflow and TensorBoard. TensorBoard shows curves, summary values (as `summary/<name>`) and figures.

    Attributes:
        spool: takes the calls for MLflow; None if it gets nothing.
        writer: takes the events for TensorBoard; None if it gets nothing.
        record: goes into metrics/run.json, where later stages find the run.
        logged_epochs: the epochs that MLflow has already, because the training was killed and continues.
        version_tags: the tags of the version that `register_model` creates; None if it creates none.
    """

    spool: "Spool | None" = None
    writer: "SummaryWriter | None" = None
    record: dict[str, Any] = field(default_factory=lambda: {"mlflow": None, "tensorboard": None})
    logged_epochs: Collection[int] = ()
    version_tags: Mapping[str, str] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at `step`; without a step they are summary values, of the run and of its logged model.

        Curves have names with a prefix, such as `train/loss`; MLflow shows them before names without, such as
        `test_accuracy`.
        """
        if self.spool and not ("train/loss" in metrics and step in self.logged_epochs):
            self.spool.put({"metrics": {name: float(value) for name, value in metrics.items()}, "step": step})
        if self.writer:
            for name, value in metrics.items():
                self.writer.add_scalar(f"summary/{name}" if step is None else name, value, step or 0)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, nested keys as `section.key`; unlike parameters, tags may be set again."""
        if self.spool:
            self.spool.put({"tags": dict(flatten(tags))})

    def set_description(self, text: str) -> None:
        """Set the Markdown text at the top of the run's page."""
        self.set_tags({"mlflow.note.content": text})

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Log a figure as the artifact `figures/<name>.png`."""
        if self.spool:
            self.spool.put({"artifact": "figures"}, f"{name}.png", figure.savefig)
        if self.writer:
            self.writer.add_figure(name, figure)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a copy of a file as the artifact `<folder>/<file name>`."""
        if self.spool:
            self.spool.put({"artifact": folder}, path.name, partial(shutil.copyfile, path))

    def log_model(self, save: Callable[[Path], None]) -> None:
        """Log the model, which `save` writes to a new folder in MLflow's format."""
        if self.spool:
            try:
                self.spool.put({"model": "model"}, "model", save)
            except Exception as error:  # models/ has the model all the same
                warn("MLflow", textwrap.shorten(f"the model cannot be exported and is not logged ({error})", 250))

    def log_model_card(self, text: str) -> None:
        """Add a Markdown text to the logged model as README.md, and as the description of its registered version."""
        if self.spool:
            self.spool.put({"model_card": text})

    def register_model(self, val_accuracy: float | None) -> None:
        """Register the logged model; `val_accuracy`, in [0, 1], is None if there are no validation images."""
        if self.spool and self.version_tags is not None:
            accuracy = {} if val_accuracy is None else {"val_accuracy": repr(val_accuracy)}
            self.spool.put({"register": {**self.version_tags, **accuracy}})
