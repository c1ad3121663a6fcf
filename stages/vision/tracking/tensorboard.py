"""TensorBoard event files of a run, which `tensorboard --logdir tensorboard` shows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def tensorboard_sink(folder: Path, purge: bool = False) -> Iterator["TensorBoardSink"]:
    """Write to the folder for the block; `purge` hides the events that it already has."""
    from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

    with SummaryWriter(folder, purge_step=0 if purge else None) as writer:
        yield TensorBoardSink(writer)


class TensorBoardSink:
    """Writes curves, summary values (as `summary/<name>`) and pictures; TensorBoard shows nothing else of a run."""

    def __init__(self, writer: "SummaryWriter") -> None:
        """Write with this writer, which the caller closes."""
        self._writer = writer

    def log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Write scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"summary/{name}" if step is None else name, value, step or 0)

    def log_figure(self, name: str, figure: "Figure") -> None:
        """Write a picture."""
        self._writer.add_figure(name, figure)

    def set_tags(self, *_: object, **__: object) -> None:
        """Do nothing, like the methods below."""

    log_artifact = log_model = register_model = set_tags
