"""The training loop. It knows tensors; what it has to say goes out through callbacks."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from vision.augment import Augment, Cutout, Flip, shrunk
from vision.average import Average
from vision.batches import Examples, batches_per_epoch, shuffled_batches
from vision.color import ColorJitter
from vision.infer import autocast, predict
from vision.mix import Mix
from vision.optim import Name, Schedule, optimizers, schedule
from vision.warp import Rotate


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Settings:
    """How to train; params.yaml says what each means."""

    seed: int
    dtype: torch.dtype
    epochs: int
    batch_size: int
    freeze: int
    optimizer: Name
    lr: float
    other_lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: Schedule
    warmup: float
    clip_norm: float | None
    label_smoothing: float
    flip: Flip
    crop_padding: int
    rotation: float
    color_jitter: Sequence[float]
    cutout: int
    mixup: float
    cutmix: float
    image_scales: Sequence[float]
    image_shares: Sequence[float]
    ema: float | None
    keep: Literal["val_loss", "val_accuracy", "last"]
    patience: int | None


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


@dataclass(frozen=True)
class Epoch:
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
class Fitted:
    """What came of it: the model holds the weights of `history[best_epoch - 1]`."""

    history: list[Epoch]
    best_epoch: int
    stopped_early: bool


def fit(
    model: nn.Module,
    train: Examples,
    val: Examples,
    settings: Settings,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_epoch: Callable[[Epoch], bool | None] = lambda epoch: None,
) -> Fitted:
    """Train `model` in place; what it holds at the end are the weights of the epoch that `settings.keep` asks for.

    Without validation images these are the last ones. With `settings.ema`, what is validated and kept are not the
    weights themselves but an average of them, exponential by the step.

    An epoch trains on the share of the images that `image_shares` says: those whose loss was highest when they were
    last seen, as what the network already knows teaches it little (Jiang et al. 2019, "Accelerating deep learning by
    focusing on the biggest losers", arXiv:1910.00762, in which the choice is made anew for each batch).

    Args:
        model: maps uint8 images [B, H, W, C] to logits [B, classes]; on the device of the data. For `settings.freeze`
            it has a `head`, its last layer.
        train: the training split.
        val: the validation split; may hold no images.
        settings: how to train.
        on_progress: called several times a second.
        on_epoch: called at the end of each epoch; False ends training.

    Raises:
        Diverged: the loss is not finite.
    """
    device = train.images.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    augment = Augment(settings.flip, settings.crop_padding, len(train.labels), generator)
    rotate = Rotate(settings.rotation, generator)
    jitter = ColorJitter(settings.color_jitter, generator)
    cutout = Cutout(settings.cutout, train.images, generator)
    mix = Mix(settings.mixup, settings.cutmix, generator)

    def augmented(images: Tensor, numbers: Tensor) -> Tensor:
        return cutout(jitter(rotate(augment(images, numbers))))

    plan = [_Plan.of(epoch, len(train.labels), settings) for epoch in range(1, settings.epochs + 1)]
    steps = sum(planned.steps for planned in plan)
    made = optimizers(
        model,
        settings.optimizer,
        settings.lr,
        settings.other_lr,
        settings.momentum,
        settings.nesterov,
        settings.weight_decay,
        settings.dtype,
    )
    schedules = [schedule(optimizer, settings.schedule, steps, settings.warmup) for optimizer in made]
    trained = [p for p in model.parameters() if p.requires_grad]
    average = None if settings.ema is None else Average(model, settings.ema)
    kept = model if average is None else average.model
    # Half-precision gradients of small values vanish without a scale; bf16 has the range of fp32 and needs none.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.dtype == torch.float16)
    # The scaler leaves out steps whose gradients overflow, the first one perhaps; the schedule goes on all the same.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)`")

    history: list[Epoch] = []
    best_score, best_epoch, best_weights = -math.inf, 0, dict[str, Tensor]()
    pixels = sum(planned.pixels for planned in plan)
    scale, shown, done = 1.0, train, 0.0
    losses = torch.full((len(train.labels),), math.inf, device=device)  # of each image when it was last seen
    selecting = min(settings.image_shares) < 1
    for epoch, planned in enumerate(plan, start=1):
        model.train()
        _freeze(model, trained, epoch <= settings.freeze)
        meter = _Meter(on_progress, epoch, planned.steps, done / pixels, planned.pixels / pixels)
        done += planned.pixels
        lr = 0.0
        if planned.scale != scale:
            scale, shown = planned.scale, Examples(shrunk(train.images, planned.scale), train.labels)
        hardest = losses.topk(planned.images).indices
        for images, labels, numbers in shuffled_batches(shown, hardest, settings.batch_size, generator, augmented):
            images, others, weights = mix(images, labels)
            with autocast(device, settings.dtype):
                logits = model(images)
            each = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing, reduction="none")
            if weights is not None:
                of_others = F.cross_entropy(logits, others, label_smoothing=settings.label_smoothing, reduction="none")
                each = weights * each + (1 - weights) * of_others
            loss = each.mean()
            scaler.scale(loss).backward()
            if selecting:
                losses[numbers] = each.detach()
            lr = max(lr, made[0].param_groups[0]["lr"])
            moving = [optimizer for optimizer in made if _has_gradients(optimizer)]  # the others are frozen
            if settings.clip_norm is not None:
                for optimizer in moving:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            for optimizer in moving:
                scaler.step(optimizer)
            for p in trained:
                p.grad = None
            for going in schedules:
                going.step()
            scaler.update()
            if average is not None:
                average.update()
            meter.add(loss, logits, labels)
        told = meter.tell()
        val_loss, val_accuracy = _validate(kept, val, settings) if len(val.labels) else (None, None)
        history.append(
            Epoch(
                epoch=epoch,
                lr=lr,
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
        goes_on = on_epoch(history[-1]) is not False
        score = _score(history[-1], settings.keep)
        if score > best_score:
            best_score, best_epoch, best_weights = score, epoch, _copied(kept)
        elif settings.patience is not None and epoch - max(best_epoch, settings.freeze) >= settings.patience:
            goes_on = False
        if not goes_on:
            break
    model.load_state_dict(best_weights)
    return Fitted(history, best_epoch, stopped_early=len(history) < settings.epochs)


def _freeze(model: nn.Module, trained: Sequence[nn.Parameter], frozen: bool) -> None:
    """Train the head alone, or all parameters of `trained`. Frozen layers do not learn statistics either."""
    for p in trained:
        p.requires_grad_(not frozen)
    if frozen:
        for p in cast(nn.Module, model.head).parameters():
            p.requires_grad_(True)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                module.eval()


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _score(epoch: Epoch, keep: str) -> float:
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
    def of(cls, epoch: int, images: int, settings: Settings) -> "_Plan":
        share = scheduled(settings.image_shares, epoch, settings.epochs)
        # In the first epoch no image is known to be hard, and each has to be seen once.
        shown = images if epoch == 1 else min(images, max(settings.batch_size, round(share * images)))
        scale = scheduled(settings.image_scales, epoch, settings.epochs)
        return cls(scale, shown, batches_per_epoch(shown, settings.batch_size))

    @property
    def pixels(self) -> float:
        return self.steps * self.scale**2


def scheduled(values: Sequence[float], epoch: int, epochs: int) -> float:
    """The value for `epoch` (from 1): each has an equal part of the epochs, and the last epoch has the last value."""
    return values[-(-epoch * len(values) // epochs) - 1]


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _validate(model: nn.Module, val: Examples, settings: Settings) -> tuple[float, float]:
    logits = predict(model, val.images, max(settings.batch_size, 500), settings.dtype)
    loss = F.cross_entropy(logits, val.labels).item()
    if not math.isfinite(loss):
        raise Diverged("validation loss")
    return loss, (logits.argmax(1) == val.labels).sum().item() / len(val.labels)


class _Meter:
    """Running loss and accuracy of an epoch, summed up seldom: a GPU has to wait for that, and small batches add up."""

    def __init__(
        self,
        on_progress: Callable[[Progress], None],
        epoch: int,
        steps: int,
        done: float,
        part: float,
    ) -> None:
        """`done` is the share of all training that lies before this epoch of `steps` steps, `part` the epoch's own."""
        self.started = self.told = time.perf_counter()
        self.on_progress = on_progress
        self.epoch, self.steps, self.done, self.part = epoch, steps, done, part
        self.step = self.images = self.correct = 0
        self.loss = 0.0
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.step += 1
        self.images += len(labels)
        self.waiting.append((loss.detach(), logits.detach(), labels))
        if time.perf_counter() - self.told > 0.25:
            self.tell()

    def tell(self) -> Progress:
        if self.waiting:
            losses, logits, labels = zip(*self.waiting, strict=True)
            self.waiting = []
            # All batches of an epoch are of one size.
            self.loss += torch.stack(losses).sum().item() * len(labels[0])
            self.correct += int((torch.cat(logits).argmax(1) == torch.cat(labels)).sum())
        if not math.isfinite(self.loss):
            raise Diverged(f"training loss in epoch {self.epoch}, step {self.step} of {self.steps}")
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
