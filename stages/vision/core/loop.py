"""The training loop. It knows tensors; what it has to say goes out through callbacks."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vision.core.augment.resize import resize_images
from vision.core.config import TrainConfig
from vision.core.data import ImageDataset, batches_per_epoch, epoch_indices, iter_batches
from vision.core.inference import predict
from vision.core.metrics import Diverged, Meter, Progress
from vision.core.trainer import State, Trainer


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch's figures: losses are mean cross-entropies a label, accuracies lie in [0, 1].

    The training figures are running ones, of augmented images and changing weights, over the images of the epoch,
    which may be the hardest ones alone; `train_loss` includes label smoothing. The loss of a mixed image (MixUp,
    CutMix) is that of both labels by their weights; its accuracy is that of the label with the larger weight. The
    validation figures are None where there is no validation split. `lr` is the peak of the epoch, `images` how many
    were trained on, shrunk to `image_scale`; `seconds` include validation, `images_per_s` does not.
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
    """What came of it: the model holds the weights of `history[best_epoch - 1]`."""

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
    """Train `model` in place; what it holds at the end are the weights of the epoch that `config.keep` asks for.

    Without validation images these are the last ones. With `config.ema_decay`, what is validated and kept are not the
    weights themselves but an average of them, exponential by the step.

    An epoch trains on the fraction of the images that `config.hard_example_fraction` says: those whose loss was
    highest when they were last seen, as what the network already knows teaches it little (Jiang et al. 2019,
    "Accelerating deep learning by focusing on the biggest losers", arXiv:1910.00762, in which the choice is made anew
    for each batch).

    Args:
        model: maps uint8 images [B, H, W, C] to logits [B, classes]; on the device of the data. For
            `config.freeze_epochs` it has a `head`, its last layer.
        train: the training split.
        val: the validation split; may hold no images.
        config: how to train.
        callbacks: what is called meanwhile.
        state: go on from there instead of from the beginning, the model, the data and the settings being what they
            were; on a CPU everything but the times comes out the same, bit for bit. `on_epoch` hears of the epochs
            that lie behind once more.

    Raises:
        Diverged: the loss is not finite.
    """
    plan = [_Plan.of(epoch, len(train.labels), config) for epoch in range(1, config.epochs + 1)]
    pixels = sum(planned.pixels for planned in plan)
    training = Trainer(model, train, config, sum(planned.steps for planned in plan))
    history: list[EpochMetrics] = []
    best_weights: dict[str, Tensor] = {}
    left = train.labels[:0]  # numbers of the images that the epoch is still to show
    counted: State = {}
    goes_on = True

    def standing() -> State:
        return {
            "training": training.state(),
            "history": [asdict(epoch) for epoch in history],
            "best_weights": best_weights,
            "left": left.clone(),  # alone, without the whole order that it is the end of
            "counted": meter.state(),
        }

    if state is not None:
        for epoch in state["history"]:
            history.append(EpochMetrics(**epoch))
            training.begin_epoch(len(history))
            goes_on = callbacks.on_epoch(history[-1]) is not False
        training.load(state["training"])
        best_weights, left, counted = state["best_weights"], state["left"].to(left.device), state["counted"]

    scale, shown = 1.0, train
    while goes_on and not _over(history, config):
        number, done = len(history) + 1, sum(planned.pixels for planned in plan[: len(history)])
        planned = plan[len(history)]
        training.begin_epoch(number)
        meter = Meter(callbacks.on_progress, number, planned.steps, done / pixels, planned.pixels / pixels)
        if planned.scale != scale:
            scale, shown = planned.scale, ImageDataset(resize_images(train.images, planned.scale), train.labels)
        if len(left):
            meter.load(counted)
        else:
            hardest = training.losses.topk(planned.images).indices
            left = epoch_indices(hardest, config.batch_size, training.generator)
        for handful in iter_batches(shown, left, config.batch_size, training.augmented):
            for batch in handful:
                lr = training.lr
                loss, logits = training.step(batch)
                meter.add(lr, loss, logits, batch.labels)
            left = left[sum(len(batch.labels) for batch in handful) :]
            if len(left):
                callbacks.on_checkpoint(standing)
        told = meter.tell()
        val_loss, val_accuracy = _validate(training.kept, val, config) if len(val.labels) else (None, None)
        history.append(
            EpochMetrics(
                epoch=number,
                lr=meter.lr,
                image_scale=scale,
                images=meter.images,
                train_loss=told.loss,
                train_accuracy=told.accuracy,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                seconds=time.perf_counter() - meter.started,
                images_per_s=told.images_per_s,
            )
        )
        goes_on = callbacks.on_epoch(history[-1]) is not False
        if _best(history, config) is history[-1]:
            best_weights = _copied(training.kept)
        callbacks.on_checkpoint(standing)
    model.load_state_dict(best_weights)
    return FitResult(history, _best(history, config).epoch, stopped_early=len(history) < config.epochs)


def _over(history: Sequence[EpochMetrics], config: TrainConfig) -> bool:
    """Whether all epochs are done, or so many without a better one that patience ends."""
    if len(history) == config.epochs:
        return True
    if config.patience is None or not history:
        return False
    return len(history) - max(_best(history, config).epoch, config.freeze_epochs) >= config.patience


def _best(history: Sequence[EpochMetrics], config: TrainConfig) -> EpochMetrics:
    """The epoch whose weights are kept; of equally good ones the first."""
    return max(history, key=lambda epoch: _score(epoch, config.keep))


def _score(epoch: EpochMetrics, keep: str) -> float:
    """What the best epoch has most of."""
    if keep == "last" or epoch.val_loss is None or epoch.val_accuracy is None:
        return epoch.epoch
    return epoch.val_accuracy if keep == "val_accuracy" else -epoch.val_loss


@dataclass(frozen=True)
class _Plan:
    """What an epoch trains on; `pixels` is in those of one batch of full-sized images."""

    scale: float
    images: int
    steps: int

    @classmethod
    def of(cls, epoch: int, images: int, config: TrainConfig) -> "_Plan":
        share = scheduled(config.hard_example_fraction, epoch, config.epochs)
        # In the first epoch no image is known to be hard, and each has to be seen once.
        shown = images if epoch == 1 else min(images, max(config.batch_size, round(share * images)))
        scale = scheduled(config.progressive_resizing, epoch, config.epochs)
        return cls(scale, shown, batches_per_epoch(shown, config.batch_size))

    @property
    def pixels(self) -> float:
        return self.steps * self.scale**2


def scheduled(values: Sequence[float], epoch: int, epochs: int) -> float:
    """The value for `epoch` (from 1): each has an equal part of the epochs, and the last epoch has the last value."""
    return values[-(-epoch * len(values) // epochs) - 1]


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _validate(model: nn.Module, val: ImageDataset, config: TrainConfig) -> tuple[float, float]:
    logits = predict(model, val.images, max(config.batch_size, 500), config.dtype)
    loss = F.cross_entropy(logits, val.labels).item()
    if not math.isfinite(loss):
        raise Diverged("validation loss")
    return loss, (logits.argmax(1) == val.labels).sum().item() / len(val.labels)
