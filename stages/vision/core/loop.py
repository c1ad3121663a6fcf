"""The training loop: epochs, validation, early stopping, the best weights, and resuming."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vision.core.augment.resize import resize_images
from vision.core.config import TrainConfig
from vision.core.data import ImageDataset, epoch_indices, iter_batches
from vision.core.inference import predict
from vision.core.meter import DivergenceError, Meter, Progress
from vision.core.plan import EpochPlan, plan_epochs
from vision.core.trainer import State, Trainer


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch. Losses are mean cross-entropies in nats, accuracies are in [0, 1].

    Attributes:
        epoch: from 1.
        lr: the highest learning rate of the epoch.
        image_scale: size of the training images, relative to full size.
        images: number of images trained on. They may be the hardest ones only.
        train_loss: running mean over the epoch's steps, of augmented images, including label smoothing. The loss of a
            mixed image (MixUp, CutMix) is weighted over both labels.
        train_accuracy: running mean likewise. For a mixed image, the label with the larger weight counts.
        val_loss: of the weights at the end of the epoch; None without a validation split.
        val_accuracy: likewise.
        seconds: duration, including validation.
        images_per_s: speed, without validation.
    """

    epoch: int
    lr: float
    image_scale: float
    images: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    images_per_s: float


@dataclass(frozen=True)
class FitResult:
    """The result of a training. The model has the weights of `history[best_epoch - 1]`."""

    history: list[EpochMetrics]
    best_epoch: int
    stopped_early: bool


@dataclass(frozen=True)
class Callbacks:
    """Functions that `fit` calls.

    Attributes:
        on_progress: called several times a second.
        on_epoch: called at the end of each epoch. Training ends if it returns False.
        on_checkpoint: called every few steps with a function that makes the state of the training. Call that function
            at once, and copy or write its result before returning.
    """

    on_progress: Callable[[Progress], None] = lambda progress: None
    on_epoch: Callable[[EpochMetrics], bool | None] = lambda epoch: None
    on_checkpoint: Callable[[Callable[[], State]], None] = lambda state: None


def fit(
    model: nn.Module,
    train: ImageDataset,
    val: ImageDataset,
    config: TrainConfig,
    callbacks: Callbacks = Callbacks(),
    state: State | None = None,
) -> FitResult:
    """Train `model` in place. At the end it has the weights of the epoch that `config.keep` selects.

    Without validation images these are the last weights. With `config.ema_decay`, the exponential moving average of the
    weights is validated and kept instead of the weights.

    From the second epoch on, only the fraction `config.hard_example_fraction` of the images is used: those with the
    highest loss when they were last seen (after Jiang et al. 2019, "Accelerating Deep Learning by Focusing on the
    Biggest Losers", arXiv:1910.00762, which selects within each batch).

    Args:
        model: maps images [B, H, W, C], uint8 or float32 in [0, 255], to logits [B, classes]; on the device of the
            data. If `config.freeze_epochs` is not 0, it must have an attribute `head`, its last layer.
        train: the training split.
        val: the validation split; may be empty.
        config: how to train.
        callbacks: functions to call during training.
        state: what `Callbacks.on_checkpoint` was given in an earlier call with the same model, data and configuration.
            Training resumes there; on a CPU the result is bit-identical to that of an uninterrupted training, except
            for the times. `on_epoch` is called again for the epochs before.

    Raises:
        DivergenceError: the training or validation loss is not finite.
    """
    loop = _Loop(model, train, val, config, callbacks)
    if state is not None:
        loop.resume(state)
    while not loop.is_finished():
        loop.run_epoch()
    model.load_state_dict(loop.best_weights)
    best_epoch = _best_epoch(loop.history, config)
    return FitResult(loop.history, best_epoch.epoch, stopped_early=len(loop.history) < config.epochs)


class _Loop:
    """The state of a call of `fit`."""

    def __init__(
        self, model: nn.Module, train: ImageDataset, val: ImageDataset, config: TrainConfig, callbacks: Callbacks
    ) -> None:
        self.train, self.val, self.config, self.callbacks = train, val, config, callbacks
        self.plans = plan_epochs(config, len(train.labels))
        self.trainer = Trainer(model, train, config, sum(plan.steps for plan in self.plans))
        self.history: list[EpochMetrics] = []
        self.best_weights: dict[str, Tensor] = {}
        self.remaining = train.labels[:0]  # indices of the images that the current epoch has not yet used
        self.meter_state: State = {}  # of the interrupted epoch, if `remaining` is not empty
        self.stop_requested = False
        self.resized = (1.0, train)

    def resume(self, state: State) -> None:
        """Restore a checkpoint."""
        for epoch in state["history"]:
            # The callback may look at which parameters were trainable.
            self.trainer.begin_epoch(epoch["epoch"])
            self._add_epoch(EpochMetrics(**epoch))
        self.trainer.load_state_dict(state["trainer"])
        self.best_weights = state["best_weights"]
        self.remaining = state["remaining"].to(self.remaining.device)
        self.meter_state = state["meter"]

    def is_finished(self) -> bool:
        """Whether all epochs are done, a callback has stopped the training, or patience has run out."""
        done = len(self.history)
        if self.stop_requested or done == self.config.epochs:
            return True
        if self.config.patience is None or not self.history:
            return False
        # Patience starts when the whole network is trained.
        best = _best_epoch(self.history, self.config)
        return done - max(best.epoch, self.config.freeze_epochs) >= self.config.patience

    def run_epoch(self) -> None:
        """Train, validate, and update the best weights."""
        plan = self.plans[len(self.history)]
        self.trainer.begin_epoch(plan.epoch)
        meter = Meter(plan, self.callbacks.on_progress)
        dataset = self._resized_images(plan.image_scale)
        if len(self.remaining):
            meter.load_state_dict(self.meter_state)
        else:
            hardest = self.trainer.hardest_indices(plan.num_images)
            self.remaining = epoch_indices(hardest, self.config.batch_size, self.trainer.generator)
        self._train_epoch(dataset, meter)
        self._add_epoch(self._epoch_metrics(plan, meter))
        if _best_epoch(self.history, self.config) is self.history[-1]:
            self.best_weights = {name: value.clone() for name, value in self.trainer.eval_model.state_dict().items()}
        self.callbacks.on_checkpoint(lambda: self._checkpoint_state(meter))

    def _resized_images(self, scale: float) -> ImageDataset:
        if self.resized[0] != scale:
            self.resized = scale, ImageDataset(resize_images(self.train.images, scale), self.train.labels)
        return self.resized[1]

    def _train_epoch(self, dataset: ImageDataset, meter: Meter) -> None:
        for batches in iter_batches(dataset, self.remaining, self.config.batch_size, self.trainer.augmentation):
            for batch in batches:
                lr = self.trainer.lr
                loss, logits = self.trainer.step(batch)
                meter.update(lr, loss, logits, batch.labels)
            self.remaining = self.remaining[sum(len(batch.labels) for batch in batches) :]
            if len(self.remaining):
                self.callbacks.on_checkpoint(lambda: self._checkpoint_state(meter))

    def _epoch_metrics(self, plan: EpochPlan, meter: Meter) -> EpochMetrics:
        progress = meter.summary()
        val_loss, val_accuracy = self._validate()
        return EpochMetrics(
            epoch=plan.epoch,
            lr=meter.lr,
            image_scale=plan.image_scale,
            images=meter.num_images,
            train_loss=progress.loss,
            train_accuracy=progress.accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.perf_counter() - meter.start_time,
            images_per_s=progress.images_per_s,
        )

    def _validate(self) -> tuple[float, float] | tuple[None, None]:
        images, labels = self.val
        if not len(labels):
            return None, None
        logits = predict(self.trainer.eval_model, images, max(self.config.batch_size, 500), self.config.dtype)
        loss = F.cross_entropy(logits, labels).item()
        if not math.isfinite(loss):
            raise DivergenceError("validation loss is not finite")
        return loss, (logits.argmax(1) == labels).sum().item() / len(labels)

    def _add_epoch(self, epoch: EpochMetrics) -> None:
        self.history.append(epoch)
        self.stop_requested = self.callbacks.on_epoch(epoch) is False

    def _checkpoint_state(self, meter: Meter) -> State:
        return {
            "trainer": self.trainer.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "best_weights": self.best_weights,
            "remaining": self.remaining.clone(),  # a slice would keep the whole order alive
            "meter": meter.state_dict(),
        }


def _best_epoch(history: Sequence[EpochMetrics], config: TrainConfig) -> EpochMetrics:
    """Return the epoch whose weights are kept; the first one of equally good ones."""
    return max(history, key=lambda epoch: _score(epoch, config.keep))


def _score(epoch: EpochMetrics, keep: str) -> float:
    if keep == "last" or epoch.val_loss is None or epoch.val_accuracy is None:
        return epoch.epoch
    return epoch.val_accuracy if keep == "val_accuracy" else -epoch.val_loss
