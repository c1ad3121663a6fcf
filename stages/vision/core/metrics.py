"""Running loss and accuracy of an epoch."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Progress:
    """Where training stands; loss, accuracy and speed are this epoch's so far.

    `share`, in [0, 1], is how much of all the pixels has been trained on: small or fewer images take less time.
    """

    epoch: int
    share: float
    loss: float
    accuracy: float
    images_per_s: float


class Meter:
    """Sums up seldom: a GPU has to wait for that, and small batches add up. When it does so changes no figure."""

    def __init__(
        self,
        on_progress: Callable[[Progress], None],
        epoch: int,
        steps: int,
        done: float,
        part: float,
    ) -> None:
        """`done` is the share of all training that lies before this epoch of `steps` steps, `part` the epoch's own."""
        self.on_progress = on_progress
        self.epoch, self.steps, self.done, self.part = epoch, steps, done, part
        self.started = self.told = time.perf_counter()
        self.step = self.images = self.correct = 0
        self.loss = self.lr = 0.0
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, lr: float, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take a step into account: its learning rate, its mean loss, and its logits [B, classes] for `labels` [B]."""
        self.step += 1
        self.images += len(labels)
        self.lr = max(self.lr, lr)
        self.waiting.append((loss.detach(), logits.detach(), labels))
        if time.perf_counter() - self.told > 0.25:
            self.tell()

    def tell(self) -> Progress:
        """Tell how the epoch goes so far.

        Raises:
            Diverged: the loss is not finite.
        """
        self._sum_up()
        self.told = time.perf_counter()
        progress = Progress(
            epoch=self.epoch,
            share=self.done + self.part * self.step / self.steps,
            loss=self.loss / self.images,
            accuracy=self.correct / self.images,
            images_per_s=self.images / (self.told - self.started),
        )
        self.on_progress(progress)
        return progress

    def state(self) -> dict[str, Any]:
        """What `load` goes on from."""
        self._sum_up()
        counted = {name: getattr(self, name) for name in ("step", "images", "correct", "loss", "lr")}
        return {**counted, "seconds": time.perf_counter() - self.started}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there; the seconds between count for nothing."""
        seconds = state["seconds"]
        vars(self).update({name: value for name, value in state.items() if name != "seconds"})
        self.started = self.told = time.perf_counter() - seconds

    def _sum_up(self) -> None:
        if self.waiting:
            losses, logits, labels = zip(*self.waiting, strict=True)
            self.waiting = []
            # One by one, so that the sum does not depend on how many have come together.
            for loss in torch.stack(losses).tolist():
                self.loss += loss * len(labels[0])  # all batches of an epoch are of one size
            self.correct += int((torch.cat(logits).argmax(1) == torch.cat(labels)).sum())
        if not math.isfinite(self.loss):
            raise Diverged(f"training loss in epoch {self.epoch}, step {self.step} of {self.steps}")
