"""Event files for TensorBoard, beside what MLflow keeps: `tensorboard --logdir tensorboard` shows them."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vision.tracking.run import Run, epoch_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn
    from torch.utils.tensorboard import SummaryWriter


def new_folder(name: str) -> str:
    """A folder of its own for the events of the run called `name`."""
    return (Path("tensorboard") / f"{name}-{uuid.uuid4().hex[:6]}").as_posix()


@contextmanager
def beside(run: Run, root: Path, folder: str | None, anew: bool = False) -> Iterator[Run]:
    """The same run, for the block; its metrics and figures are also written to `folder` below `root`, if not None.

    What the folder already has is hidden where all is told `anew`.
    """
    if folder is None:
        yield run
        return
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    with SummaryWriter(root / folder, purge_step=0 if anew else None) as writer:
        yield _Both(run, writer, folder)


class _Both(Run):
    def __init__(self, run: Run, writer: "SummaryWriter", folder: str) -> None:
        super().__init__(run.record["mlflow"], folder)
        self._run = run
        self._writer = writer

    def log_epoch(self, row: Mapping[str, float | None]) -> None:
        self._run.log_epoch(row)
        for name, value in epoch_metrics(row).items():
            self._writer.add_scalar(name, value, int(row["epoch"] or 0))

    def log_metrics(self, figures: Mapping[str, float], step: int = 0) -> None:
        self._run.log_metrics(figures, step)
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def log_figure(self, name: str, figure: "Figure") -> None:
        self._run.log_figure(name, figure)
        self._writer.add_figure(name, figure)

    def set_tags(self, sections: Mapping[str, object]) -> None:
        self._run.set_tags(sections)

    def describe_as(self, text: str) -> None:
        self._run.describe_as(text)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._run.log_artifact(path, folder)

    def log_model(self, model: "nn.Module", example: np.ndarray, classes: Sequence[str]) -> None:
        self._run.log_model(model, example, classes)

    def register_model(self, val_accuracy: float | None) -> None:
        self._run.register_model(val_accuracy)
