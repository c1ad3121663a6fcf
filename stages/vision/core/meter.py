"""Loss, accuracy and speed of a training epoch, while it runs."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vision.core.plan import EpochPlan

_REPORT_SECONDS = 0.25


class DivergenceError(ArithmeticError):
    """The loss is not finite."""


@dataclass(frozen=True)
class Progress:
    """The progress of a training; loss, accuracy and speed are those of the current epoch so far.

    `fraction`, in [0, 1], is the part of the whole training's work that is done. Work is measured in pixels, because
    small images, and epochs of fewer images, take less time.
    """

    epoch: int
    fraction: float
    loss: float
    accuracy: float
    images_per_s: float


class Meter:
    """Sums up the loss and accuracy of an epoch, and reports them about every quarter of a second.

    Results are read from the device only for a report, because reading makes a GPU wait. The figures do not depend on
    when that happens.
    """

    def __init__(self, plan: EpochPlan, on_progress: Callable[[Progress], None]) -> None:
        """Start the clock of the epoch that `plan` describes; `on_progress` gets the reports."""
        self.plan = plan
        self.on_progress = on_progress
        self.start_time = self._report_time = time.perf_counter()
        self.step = self.num_images = self.correct = 0
        self.loss = self.lr = 0.0
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, lr: float, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a step.

        Args:
            lr: learning rate of the step.
            loss: scalar, the mean over the batch.
            logits: [B, classes].
            labels: int64 [B].

        Raises:
            DivergenceError: the sum of the losses is not finite; checked at each report.
        """
        self.step += 1
        self.num_images += len(labels)
        self.lr = max(self.lr, lr)
        self._pending.append((loss.detach(), logits.detach(), labels))
        if time.perf_counter() - self._report_time > _REPORT_SECONDS:
            self.summary()

    def summary(self) -> Progress:
        """Return the progress, and pass it to `on_progress`.

        Raises:
            DivergenceError: the sum of the losses is not finite.
        """
        self._sum_pending()
        self._report_time = time.perf_counter()
        progress = Progress(
            epoch=self.plan.epoch,
            fraction=self.plan.start + (self.plan.end - self.plan.start) * self.step / self.plan.steps,
            loss=self.loss / self.num_images,
            accuracy=self.correct / self.num_images,
            images_per_s=self.num_images / (self._report_time - self.start_time),
        )
        self.on_progress(progress)
        return progress

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the seconds so far."""
        self._sum_pending()
        sums = {name: getattr(self, name) for name in ("step", "num_images", "correct", "loss", "lr")}
        return {**sums, "seconds": time.perf_counter() - self.start_time}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the time in between does not count."""
        seconds = state["seconds"]
        vars(self).update({name: value for name, value in state.items() if name != "seconds"})
        self.start_time = self._report_time = time.perf_counter() - seconds

    def _sum_pending(self) -> None:
        if self._pending:
            losses, logits, labels = zip(*self._pending, strict=True)
            self._pending = []
            # Added one by one, so that the sum does not depend on how many steps are pending.
            for loss in torch.stack(losses).tolist():
                self.loss += loss * len(labels[0])  # all batches of an epoch have the same size
            self.correct += int((torch.cat(logits).argmax(1) == torch.cat(labels)).sum())
        if not math.isfinite(self.loss):
            position = f"epoch {self.plan.epoch}, step {self.step} of {self.plan.steps}"
            raise DivergenceError(f"training loss is not finite in {position}")
